//! Setup and teardown times of one container beside others: printed, not asserted, as the machine is shared.

use anyhow::Result;
use std::time::Duration;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, binary};
use support::residue::Residue;
use support::topology::Topology;

#[test]
fn setup_and_teardown_times_are_printed() -> Result<()> {
    need!(need::root());
    for rung in Rung::ALL {
        if need::rung(rung).is_ok() {
            times(rung)?;
        }
    }
    Ok(())
}

fn times(rung: Rung) -> Result<()> {
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, rung)?;
    // Keeps bridge and programs, as on a host where other containers run.
    let keeper = topology.container("keeper")?;
    let stays = Document::new().on_dual(&Network::dual(7), "eth0", 7, 9).publish("", 8009, 80, "tcp");
    let begun = std::time::Instant::now();
    netavark.setup(&keeper, &stays)?;
    let first = begun.elapsed();
    let (mut setups, mut teardowns) = (Vec::new(), Vec::new());
    for n in 0..21 {
        let web = topology.container("web")?;
        let document =
            Document::new().on_dual(&Network::dual(7), "eth0", 7, 10 + n).publish("", 8080, 80, "tcp").json(&web);
        let setup = netavark.try_setup(&web, &document)?;
        setup.done()?;
        let teardown = netavark.try_teardown(&web, &document)?;
        teardown.done()?;
        setups.push(setup.took);
        teardowns.push(teardown.took);
    }
    need::say(&format!(
        "{rung:?}: setup {} ms (20 wanted), teardown {} ms (60 wanted), first setup {} ms; medians of 21, {}",
        median(setups).as_millis(),
        median(teardowns).as_millis(),
        first.as_millis(),
        binary()?.display()
    ));
    netavark.teardown(&keeper, &stays)?;
    residue.nothing_left(&topology, &[&keeper])
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
