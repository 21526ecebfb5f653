//! Promotion under load: rules that are replaced all the time, beside many connections.

use crate::promote::{Talk, World, ready};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use support::host::patience;
use support::long_lived::{LongLived, all_answer, idle};
use support::need;
use support::netavark::Network;
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

const STREAMS: usize = 50;
const IDLE: usize = 1_000;
const REPLACEMENTS: usize = 200;
/// Each of these replacements is followed by a look at the client that it bans.
const LOOKED_AT: usize = 10;

/// Bans one of two clients, by the source port of its datagrams.
fn rules(banned: u16) -> String {
    format!(
        "flush chain inet other forward
add rule inet other forward udp sport {banned} drop
add rule inet other forward ct state established counter accept
"
    )
}

#[test]
fn replaced_rules_break_nothing_that_they_allow_and_end_what_they_forbid() -> Result<()> {
    need!(ready());
    if !need::is_full() {
        need!(Err::<(), _>("NETPATH_SOAK=full: it takes more than a minute".to_owned()));
    }
    let topology = Topology::new()?;
    let world = World::new(&topology, &Network::dual(7))?;
    let to = Family::V4.host();
    let tcp = Server::echo_for(&world.web, STREAMS + IDLE + 10, ANY, 80, "web")?;
    let dial = Dial::new(Proto::Tcp, to, 8080);
    let streams = (0..STREAMS).map(|_| LongLived::start(&topology.client, &dial)).collect::<Result<Vec<_>>>()?;
    let mut waiting = idle(&topology.client, &dial, IDLE)?;
    let udp = Server::echo(&world.web, Proto::Udp, ANY, 80, "web")?;
    let ask = || Talk::start(&topology.client, &Dial::new(Proto::Udp, to, 8080), Proto::Udp, Family::V4, (to, 8080));
    let mut talks = [ask()?, ask()?];
    let ports = [talks[0].port()?, talks[1].port()?];
    for talk in &mut talks {
        world.is_promoted(talk)?;
    }
    for n in 0..REPLACEMENTS {
        let [banned, allowed] = [n % 2, 1 - n % 2];
        topology.host.feed("nft", &["-f", "-"], &rules(ports[banned]))?;
        if n % LOOKED_AT > 1 {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        std::thread::sleep(Duration::from_secs(1) * patience());
        talks[banned].drain()?;
        ensure!(talks[banned].rounds(1).is_err(), "replacement {n}: the banned client has an answer");
        talks[banned].drain()?;
        talks[allowed].rounds(20).with_context(|| format!("replacement {n}: the client that is allowed again"))?;
    }
    streams.iter().try_for_each(LongLived::goes_on)?;
    all_answer(&mut waiting)?;
    streams.into_iter().try_for_each(LongLived::finish)?;
    drop((waiting, tcp, udp));
    world.end()
}
