//! Which datapath serves this host: what was asked for, what is in use, and the change from one to another.

use crate::datapath::ladder::{self, Choice};
use crate::datapath::{Datapath, Refusal, filter};
use crate::link::Rtnl;
use crate::model::error::{Error, Result};
use crate::model::{Desired, Record, Rung, Way, port_conflicts};
use crate::state::{Lock, Store};

/// What `NETPATH_DATAPATH` asks for; `None` = nothing.
///
/// # Errors
/// A word that names no datapath, or one that this version does not have.
pub fn wish(word: &str) -> Result<Option<Choice>> {
    let refuse = |why: &str| {
        Err(Error::new(format!("cannot use datapath {word:?}"))
            .because(why.to_owned())
            .next("set NETPATH_DATAPATH to ebpf, iptables or none, or unset it"))
    };
    match word.to_ascii_lowercase().as_str() {
        "" | "auto" => Ok(None),
        "ebpf" => Ok(Some(Choice::Only(Rung::Ebpf))),
        "nftables" => Ok(Some(Choice::Only(Rung::Nftables))),
        "iptables" => Ok(Some(Choice::Only(Rung::Iptables))),
        "none" => Ok(Some(Choice::Only(Rung::None))),
        _ => refuse("there is none of that name"),
    }
}

/// The datapath for `coming` beside what is `there` already, which changes over to it if it must.
///
/// # Errors
/// It cannot be used, or it cannot do what a record asks for. Nothing was changed then, except that a change-over that
/// fails in the middle leaves both, which the next command puts right.
pub(super) fn decide(
    choice: Choice,
    store: &Store,
    lock: &Lock,
    rtnl: &Rtnl,
    cookie: u64,
    there: &Desired,
    coming: &[Record],
) -> Result<Box<dyn Datapath>> {
    let kept = if there.records.is_empty() { None } else { store.rung()? };
    let rung = match (choice, kept) {
        (Choice::Only(asked), Some(kept)) if asked != kept => ladder::choose(choice, None)?.rung,
        _ => ladder::choose(choice, kept)?.rung,
    };
    let rung = match choice {
        Choice::Auto => beside_foreign_rules(rung, kept.is_some(), store, lock, coming)?,
        Choice::Only(_) => rung,
    };
    let mut datapath = ladder::open(rung)?;
    for record in coming {
        refuse(datapath.as_ref(), record)?;
    }
    let most = datapath.places_of_a_port();
    if let Some((proto, port)) = port_conflicts::exceeds_limit(coming, &there.records, most) {
        return Err(Error::new(format!("cannot publish port {port}/{proto} on one more address of the host"))
            .because(format!("the {rung} datapath serves a port on {most} addresses, and so many are in use"))
            .next("publish it on every address, or use NETPATH_DATAPATH=iptables"));
    }
    let all: Vec<&Record> = there.records.iter().chain(coming).collect();
    if let Some((what, limit)) = datapath.exceeded(&all) {
        return Err(Error::new("cannot attach one more container")
            .because(format!("the {rung} datapath has room for {limit} {what} of one host"))
            .next("use fewer of them, publish ranges instead of single ports, or set NETPATH_DATAPATH=iptables"));
    }
    if let Some(old) = kept.filter(|old| *old != rung) {
        for record in &there.records {
            refuse(datapath.as_ref(), record)?;
        }
        change_over(old, datapath.as_mut(), there, store, lock, rtnl, cookie)?;
    }
    Ok(datapath)
}

/// Where forwarded packets can meet rules of others, netfilter translates: eBPF would bypass them. Without one of its
/// rungs that can serve, eBPF does all the same, and each container that starts says what is bypassed.
fn beside_foreign_rules(rung: Rung, is_kept: bool, store: &Store, lock: &Lock, coming: &[Record]) -> Result<Rung> {
    let asks = coming.iter().find(|r| r.network.path == Way::Offload);
    if matches!(rung, Rung::Nftables | Rung::Iptables)
        && let Some(record) = asks
    {
        let (network, next) = (&record.network.name, "stop all containers of this host and start this one first");
        tracing::warn!(next, "netpath.path=offload of network {network} has no effect on the {rung} datapath");
    }
    if rung != Rung::Ebpf || asks.is_some() {
        return Ok(rung);
    }
    let Some(rule) = filter::bypassed(&filter::foreign()) else { return Ok(rung) };
    if is_kept {
        let next = "stop all containers of this host; the next one that starts takes nftables";
        tracing::warn!(next, "packets of containers bypass rules of this host, in whole or in part: {rule}");
        return Ok(rung);
    }
    let mut reasons = Vec::new();
    for lower in [Rung::Nftables, Rung::Iptables] {
        let serves = ladder::usable(lower)
            .map_err(Error::new)
            .and_then(|()| ladder::open(lower))
            .and_then(|d| coming.iter().try_for_each(|r| refuse(d.as_ref(), r)));
        match serves {
            Ok(()) => {
                tracing::info!("the datapath of this host is {lower}: {rule}");
                store.reject_rung(lock, rung, filter::passes_over(&rule))?;
                return Ok(lower);
            }
            Err(e) => reasons.push(format!("{lower}: {e}")),
        }
    }
    let (next, reasons) = ("netpath doctor", reasons.join("; "));
    tracing::warn!(next, "packets of containers bypass rules of this host, in whole or in part: {rule}; {reasons}");
    Ok(rung)
}

pub(super) fn refuse(datapath: &dyn Datapath, record: &Record) -> Result<()> {
    match datapath.refusals(record).into_iter().next() {
        None => Ok(()),
        Some(Refusal { feature, why, next }) => Err(Error::new(format!(
            "cannot {feature} for {} on network {} with the {} datapath",
            record.container.label(),
            record.network.name,
            datapath.rung()
        ))
        .because(why)
        .next(next)),
    }
}

/// First all into the new one, then the old one is emptied: a packet always finds one of them.
fn change_over(
    old: Rung,
    new: &mut dyn Datapath,
    there: &Desired,
    store: &Store,
    lock: &Lock,
    rtnl: &Rtnl,
    cookie: u64,
) -> Result<()> {
    tracing::info!(from = %old, to = %new.rung(), containers = there.records.len(), "changing the datapath of this host");
    let wanted: Vec<_> = new.sysctls(there).into_iter().map(|s| (s.path, s.value)).collect();
    super::sysctls::ensure(store, lock, &wanted)?;
    let mut view = rtnl.host_view(cookie)?;
    super::reconcile::see_sources(new.rung(), rtnl, there, &mut view);
    new.reconcile(there, &view)?;
    store.keep_rung(lock, new.rung())?;
    let emptied = ladder::open(old).and_then(|mut d| d.reconcile(&Desired::default(), &view));
    emptied.map(drop).map_err(|e| e.within(format!("cannot empty the {old} datapath")))
}
