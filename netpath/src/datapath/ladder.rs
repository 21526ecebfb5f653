//! Which rung serves this host, and why not the rungs above it. Decided by probes, never by version numbers.

use super::netfilter::{iptables, nftables};
use super::promote::Carry;
use super::{Backend, Datapath, IdleState, Inspect, LeadDns, ebpf, none};
use crate::model::error::{Error, Result};
use crate::model::{Desired, HostView, Rung};
use crate::state::Lock;

/// The rungs, best first. A new one is its directory, and a line here.
pub const LADDER: [&Backend; 4] = [&ebpf::BACKEND, &nftables::BACKEND, &iptables::BACKEND, &none::BACKEND];

/// The datapath that the user asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// The best that works.
    #[default]
    Auto,
    /// This one or an error.
    Only(Rung),
}

/// The rung to use, and the reason for each rejected one, best first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    pub rung: Rung,
    pub reasons: Vec<(Rung, String)>,
}

/// Chooses a rung. `kept` is the rung that containers of this host already use: it stays until the last of them is
/// gone, since a flow belongs to one table; another choice takes effect after that.
///
/// # Errors
/// The rung asked for cannot be used here; nothing was changed.
pub fn choose(choice: Choice, kept: Option<Rung>) -> Result<Chosen> {
    choose_with(choice, kept, usable)
}

/// What `rung` says about itself.
pub fn backend(rung: Rung) -> &'static Backend {
    LADDER.into_iter().find(|b| b.rung == rung).unwrap_or(&none::BACKEND)
}

/// The rung to take after the kernel has refused `rung`: the next one below; where foreign rules had put it first, the
/// one above that bypasses them; none of both before no datapath at all.
pub fn instead_of(rung: Rung) -> Option<Rung> {
    let below = LADDER.into_iter().skip_while(|b| b.rung != rung).skip(1);
    let above = LADDER.into_iter().take_while(|b| b.rung != rung).filter(|b| !b.through_netfilter);
    let mut serving = below.filter(|b| b.rung != Rung::None).chain(above);
    let found = serving.find(|b| (b.usable)().is_ok()).map(|b| b.rung);
    found.or((rung != Rung::None).then_some(Rung::None))
}

/// The rungs that publish ports and let packets meet the rules of others, best first.
pub fn through_netfilter() -> impl Iterator<Item = Rung> {
    LADDER.into_iter().filter(|b| b.through_netfilter && b.rung != Rung::None).map(|b| b.rung)
}

/// The datapath behind `rung` on the host with this cookie. Changes nothing yet.
///
/// # Errors
/// A requirement that this host does not meet.
pub fn open(rung: Rung, host: u64) -> Result<Box<dyn Datapath>> {
    (backend(rung).open)(host)
}

/// What `rung` has in the kernel for the host with this cookie.
pub fn inspect(rung: Rung, host: u64) -> Box<dyn Inspect> {
    (backend(rung).inspect)(host)
}

/// The names of all rungs, for a sentence.
pub fn names() -> String {
    let names = LADDER.map(|b| b.rung.to_string());
    let (last, others) = names.split_last().expect("a rung");
    format!("{} or {last}", others.join(", "))
}

/// As [`ServeSockets`](super::ServeSockets), by the best rung that has such programs. Without one there is nothing to do.
///
/// # Errors
/// They cannot be loaded or attached, or the maps cannot be written.
pub fn serve_sockets(host: u64, desired: &Desired, view: &HostView, may_load: bool) -> Result<Option<usize>> {
    let serve = LADDER.into_iter().find_map(|b| b.sockets);
    serve.map_or(Ok(Some(0)), |serve| serve(host, desired, view, may_load))
}

/// For the network namespace of this thread.
///
/// # Errors
/// The kernel refuses it.
pub fn open_dns() -> Result<Box<dyn LeadDns>> {
    let what = "cannot lead DNS queries to another port";
    let open = LADDER.into_iter().find_map(|b| b.lead_dns).ok_or_else(|| Error::new(what))?;
    open()
}

/// The programs that carry promoted flows, attached to nothing.
///
/// # Errors
/// The kernel's.
pub fn load_carrier(host: u64, desired: &Desired) -> Result<Box<dyn Carry>> {
    let what = "cannot prepare the promotion of flows";
    let load = LADDER.into_iter().find_map(|b| b.carry).ok_or_else(|| Error::new(what))?;
    load(host, desired)
}

/// The idle kernel objects of this host ([`Idle`]), of the best rung that has some.
pub fn idle(host: u64) -> Option<IdleState> {
    LADDER.into_iter().filter_map(|b| b.idle).find_map(|idle| (idle.state)(host))
}

/// Removes the idle kernel objects of this host. Returns their number.
///
/// # Errors
/// What could not be removed.
pub fn unload(lock: &Lock, host: u64) -> Result<usize> {
    LADDER.into_iter().filter_map(|b| b.idle).try_fold(0, |sum, idle| Ok(sum + (idle.unload)(lock, host)?))
}

/// Whether a rung can be used here, asked of the kernel.
///
/// # Errors
/// Why not.
pub fn usable(rung: Rung) -> std::result::Result<(), String> {
    (backend(rung).usable)()
}

fn choose_with(
    choice: Choice,
    kept: Option<Rung>,
    usable: impl Fn(Rung) -> std::result::Result<(), String>,
) -> Result<Chosen> {
    if let Some(rung) = kept {
        let reasons = match choice {
            Choice::Only(asked) if asked != rung => {
                tracing::warn!(%asked, using = %rung, "containers of this host use another datapath");
                vec![(asked, format!("containers of this host use {rung}; stop them all to change it"))]
            }
            _ => Vec::new(),
        };
        return Ok(Chosen { rung, reasons });
    }
    match choice {
        Choice::Only(rung) => match usable(rung) {
            Ok(()) => Ok(Chosen { rung, reasons: Vec::new() }),
            Err(why) => Err(Error::new(format!("cannot use the {rung} datapath, which was asked for"))
                .because(why)
                .next("netpath doctor shows what each datapath needs; without NETPATH_DATAPATH the best one is taken")),
        },
        Choice::Auto => {
            let mut reasons = Vec::new();
            for Backend { rung, .. } in LADDER {
                let rung = *rung;
                match usable(rung) {
                    Ok(()) => {
                        let why: Vec<String> = reasons.iter().map(|(rung, why)| format!("{rung}: {why}")).collect();
                        let why = why.join("; ");
                        if rung == Rung::None {
                            tracing::warn!(
                                "no datapath can be used, no port is published, nothing is masqueraded: {why}"
                            );
                        } else if !why.is_empty() {
                            tracing::info!("the datapath of this host is {rung}: {why}");
                        }
                        return Ok(Chosen { rung, reasons });
                    }
                    Err(why) => reasons.push((rung, why)),
                }
            }
            Err(Error::new("cannot use any datapath").because(format!("{reasons:?}")).next("netpath doctor"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_none(rung: Rung) -> std::result::Result<(), String> {
        if rung == Rung::None { Ok(()) } else { Err(format!("{rung} is missing")) }
    }

    #[test]
    fn every_rung_has_its_backend() {
        for rung in [Rung::Ebpf, Rung::Nftables, Rung::Iptables, Rung::None] {
            assert_eq!(rung, backend(rung).rung);
        }
    }

    #[test]
    fn auto_takes_the_best_that_works() {
        let all = |_| Ok(());
        assert_eq!(Rung::Ebpf, choose_with(Choice::Auto, None, all).expect("a rung").rung);
        let chosen = choose_with(Choice::Auto, None, only_none).expect("a rung");
        assert_eq!(Rung::None, chosen.rung);
        let over: Vec<Rung> = chosen.reasons.iter().map(|(r, _)| *r).collect();
        assert_eq!(vec![Rung::Ebpf, Rung::Nftables, Rung::Iptables], over);
    }

    #[test]
    fn a_forced_rung_that_cannot_be_used_is_an_error_with_its_reason() {
        let e = choose_with(Choice::Only(Rung::Iptables), None, only_none).expect_err("is missing");
        assert!(e.to_string().contains("iptables is missing"), "{e}");
    }

    #[test]
    fn the_rung_in_use_stays_whatever_is_asked() {
        let chosen = choose_with(Choice::Only(Rung::None), Some(Rung::Iptables), only_none).expect("kept");
        assert_eq!(Rung::Iptables, chosen.rung);
        assert_eq!(Rung::None, chosen.reasons[0].0);
        assert_eq!(Rung::Ebpf, choose_with(Choice::Auto, Some(Rung::Ebpf), only_none).expect("kept").rung);
    }
}
