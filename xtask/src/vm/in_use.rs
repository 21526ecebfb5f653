//! Checks that the host runs the variant that is measured: where a kernel rejects something, netpath falls back, and another
//! variant would be measured under this name.

use anyhow::{Result, bail};
use report::variants::{PATH, RUNG, Variant, XDP};
use serde_json::Value;

/// Compares `netpath status --json` while the container is up with the request.
///
/// # Errors
/// Another rung, another path, or programs at the wrong hooks.
pub(super) fn check(variant: &Variant, status: &Value, uplinks: &[&str]) -> Result<()> {
    if let Some(wrong) = wrong(variant, status, uplinks) {
        bail!("{} is not in use: {wrong}\n  next: leave it out by --variants, or take another --kernel", variant.title);
    }
    Ok(())
}

fn wrong(variant: &Variant, status: &Value, uplinks: &[&str]) -> Option<String> {
    let asked = |of: &[(&str, &'static str)], name| of.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let hooks = || list(status, "hooks");
    let (rung, wanted) = (status["rung"].as_str(), asked(variant.environment, RUNG));
    if rung != wanted {
        let shown = |rung: Option<&str>| rung.map_or("none of netpath's".to_owned(), |r| format!("netpath's {r}"));
        return Some(format!(
            "the datapath is {}, not {}{}",
            shown(rung),
            shown(wanted),
            why(status, "rejected_rungs")
        ));
    }
    if wanted != Some("ebpf") {
        // They would add to the cost of each packet; those at sockets do not see any.
        let hook = hooks().find(|hook| hook["side"] != "sockets")?;
        return Some(format!("{} is still attached, side {}", hook["program"], hook["side"]));
    }
    let path = asked(variant.options, PATH);
    let paths: Vec<Option<&str>> = list(status, "networks").map(|n| n["path"].as_str()).collect();
    if paths.is_empty() || paths.iter().any(|p| *p != path) {
        return Some(format!("the path of its network is {paths:?}, not {path:?}"));
    }
    let is_early = asked(variant.options, XDP) == Some("on");
    for uplink in uplinks {
        let has = |program: &str| hooks().any(|h| h["program"] == program && h["interface"] == *uplink);
        if !has("np_uplink_in") {
            return Some(format!("np_uplink_in is not at {uplink}"));
        }
        if has("np_xdp_in") != is_early {
            let is = if is_early { "is not" } else { "is" };
            return Some(format!("np_xdp_in {is} at {uplink}{}", why(status, "xdp_refused")));
        }
    }
    None
}

fn list<'a>(status: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    status[name].as_array().into_iter().flatten()
}

/// The reasons in a list of rejected choices, if any.
fn why(status: &Value, name: &str) -> String {
    list(status, name).filter_map(|r| r["why"].as_str()).map(|why| format!(": {why}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::variants::{ALL, PEER_IN_GUESTS as PEER};
    use serde_json::json;

    /// The status on the eBPF rung, with the uplinks that have the XDP program.
    fn status(early: &[&str]) -> Value {
        let hook = |program: &str, uplink: &str| json!({"program": program, "interface": uplink, "side": "ingress"});
        let uplinks = ["eth0", "eth1"].iter().map(|u| hook("np_uplink_in", u));
        let hooks: Vec<Value> = uplinks.chain(early.iter().map(|u| hook("np_xdp_in", u))).collect();
        json!({"rung": "ebpf", "networks": [{"path": "offload"}], "hooks": hooks})
    }

    #[test]
    fn a_variant_that_came_up_another_way_is_not_measured() {
        let wrong = |key: &str, status: &Value| {
            let variant = ALL.iter().find(|v| v.key == key).expect("a variant");
            check(variant, status, &["eth0", "eth1"]).err().map(|e| e.to_string()).unwrap_or_default()
        };
        let offload = status(&[]);
        let iptables = json!({"rung": "iptables", "hooks": [], "rejected_rungs": [{"rung": "ebpf", "why": "no BPF"}]});
        let nothing = json!({"rung": null, "hooks": [], "networks": []});
        assert_eq!("", wrong("netpath-offload", &offload));
        assert_eq!("", wrong("netpath-xdp", &status(&["eth0", "eth1"])));
        assert_eq!("", wrong("netpath-iptables", &iptables));
        assert_eq!("", wrong(PEER, &nothing));

        assert!(wrong("netpath-offload", &iptables).contains("netpath's iptables, not netpath's ebpf: no BPF"));
        assert!(wrong("netpath-nftables", &nothing).contains("none of netpath's"));
        assert!(wrong("netpath-nftables", &offload).contains("netpath's ebpf, not netpath's nftables"));
        assert!(wrong("netpath-offload", &status(&["eth1"])).contains("np_xdp_in is at eth1"));
        assert!(wrong("netpath-xdp", &offload).contains("np_xdp_in is not at eth0"));
        assert!(wrong("netpath-xdp", &status(&["eth0"])).contains("np_xdp_in is not at eth1"));
        assert!(wrong(PEER, &offload).contains("not none of netpath's"));
        let mut left = nothing.clone();
        left["hooks"] = offload["hooks"].clone();
        assert!(wrong(PEER, &left).contains("np_uplink_in"), "{}", wrong(PEER, &left));
        let mut refused = offload.clone();
        refused["xdp_refused"] = json!([{"interface": "eth0", "why": "its driver has none"}]);
        assert!(wrong("netpath-xdp", &refused).contains("its driver has none"));
        let mut no_uplink = offload.clone();
        no_uplink["hooks"] = json!([]);
        assert!(wrong("netpath-offload", &no_uplink).contains("np_uplink_in is not at eth0"));
    }
}
