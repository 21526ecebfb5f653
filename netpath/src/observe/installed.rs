//! Whether Podman finds netpath where it was installed.

use crate::datapath::inspect::Finding;
use crate::model::error::Result;
use crate::state::installed::{self, Found, NAMES, Root, UNITS};
use std::path::PathBuf;

const AGAIN: &str = "netpath install podman";

/// What is missing, left over or in front of netpath. Nothing on a host where netpath was never installed for Podman.
///
/// # Errors
/// A file cannot be examined.
pub(super) fn findings(root: &Root) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut binary = None;
    let mut missing = Vec::new();
    for name in NAMES {
        let places = root.helper_dirs()?.into_iter().map(|dir| dir.join(name));
        let there = places.map(|at| Ok((installed::link(&at)?, at))).collect::<Result<Vec<(Found, PathBuf)>>>()?;
        let mut first = there.iter().filter(|(found, at)| *found != Found::Nothing && at.exists());
        let own = there.iter().find_map(|(found, at)| match found {
            Found::Own(to) => Some((to, at)),
            _ => None,
        });
        let Some((to, at)) = own else {
            missing.push(name);
            continue;
        };
        binary = binary.or(Some(to.clone()));
        if !root.at(to).exists() {
            findings.push(Finding {
                what: format!("{} leads to {}, which is gone: Podman passes it over", at.display(), to.display()),
                next: "put netpath there again, or: netpath uninstall podman".to_owned(),
            });
        } else if let Some((Found::Other(_), other)) = first.next() {
            findings.push(Finding {
                what: format!(
                    "Podman runs {} and not netpath ({}), since it looks there first",
                    other.display(),
                    at.display()
                ),
                next: format!("move {} away, or: netpath uninstall podman", other.display()),
            });
        }
    }
    let units = UNITS.iter().map(|(name, text)| (root.unit(name), text));
    let units = units.map(|(at, text)| Ok((installed::unit(&at)?, at, text))).collect::<Result<Vec<_>>>()?;
    // Links made by hand need no units.
    let has_units = units.iter().any(|(found, ..)| matches!(found, Found::Own(_)));
    for name in missing.into_iter().filter(|_| has_units && binary.is_some()) {
        let what = format!("{name} is missing where Podman looks first: podman may run another program of that name");
        findings.push(Finding { what, next: AGAIN.to_owned() });
    }
    for (found, at, template) in units.iter().filter(|_| has_units) {
        let at = at.display();
        let (what, next) = match (found, &binary) {
            (Found::Own(_), None) => {
                (format!("{at} is left over: no name of Podman leads to netpath"), "netpath uninstall podman")
            }
            (Found::Own(path), Some(to)) => {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                if text == installed::unit_text(template, to) {
                    continue;
                }
                (format!("{at} is of another version, or starts another program than {}", to.display()), AGAIN)
            }
            (Found::Nothing, Some(_)) => (format!("{at} is missing"), AGAIN),
            _ => continue,
        };
        findings.push(Finding { what, next: next.to_owned() });
    }
    Ok(findings)
}
