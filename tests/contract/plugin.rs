//! Networks of other drivers: a program in a plugin directory attaches the container (API 1.0.0).

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::{Answer, Document, Netavark, Network, Shape, write_program};
use support::residue::Residue;
use support::topology::{Container, Topology};

/// Appends its arguments and its input to `calls` beside it, and does as the file `does` says.
const RECORDER: &str = r#"#!/bin/sh
dir=$(dirname "$0")
{ echo "$*"; tr -d '\n'; echo; } >> "$dir/calls"
echo "$1 was called" >&2
[ -e "$dir/does-$1" ] && . "$dir/does-$1"
[ "$1" = setup ] && echo '{"dns_search_domains": ["lab"], "dns_server_ips": ["192.0.2.9"], "zone": 7, "interfaces": {"x0": {"mac_address": "0a:00:00:00:00:01", "subnets": null}}}'
exit 0
"#;

struct Case {
    topology: Topology,
    web: Container,
    dir: PathBuf,
}

impl Case {
    fn new(name: &str, program: &str) -> Result<Self> {
        let topology = Topology::new()?;
        let web = topology.container("web")?;
        let dir = topology.dir().join("plugins");
        std::fs::create_dir_all(&dir)?;
        write_program(&dir.join(name), program.as_bytes())?;
        let _ = std::fs::remove_file(dir.join("calls"));
        Ok(Self { topology, web, dir })
    }

    /// With an empty directory in front.
    fn call(&self, words: &[&str], input: &Value) -> Result<Answer> {
        let (empty, dir) = (self.topology.config_dir(), self.dir.to_string_lossy().into_owned());
        let empty = empty.to_string_lossy().into_owned();
        let all = [&["--plugin-directory", &empty, "--plugin-directory", &dir], words].concat();
        Netavark::with(&self.topology, &[])?.call(&all, input.to_string().as_bytes())
    }

    fn verb(&self, verb: &str, document: &Document) -> Result<Answer> {
        self.call(&[verb, &self.web.path().to_string_lossy()], &document.json(&self.web))
    }

    /// Arguments and input of each call so far.
    fn calls(&self) -> Result<Vec<(String, Value)>> {
        let text = std::fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.chunks(2).map(|c| Ok((c[0].to_owned(), serde_json::from_str(c[1]).context(c[1].to_owned())?))).collect()
    }

    /// The recorder runs these lines in `verb`.
    fn does(&self, verb: &str, script: &str) -> Result<()> {
        std::fs::write(self.dir.join(format!("does-{verb}")), script).context("cannot write")
    }
}

fn lab(driver: &str) -> Network {
    let mut network = Network::new("lab", "v0").set("driver", driver).set("options", json!({"speed": "9", "mtu": "x"}));
    network.info["of_tomorrow"] = json!([1]);
    network
}

fn document(driver: &str) -> Document {
    let options = json!({"interface_name": "x0", "static_ips": ["10.1.1.1"], "aliases": ["www"]});
    Document::new().shape(Shape::Array).attach(&lab(driver), options).publish("", 8080, 80, "tcp")
}

#[test]
fn a_plugin_gets_its_document_and_its_answer_is_handed_on() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", RECORDER)?;
    let residue = Residue::watch(&case.topology)?;
    let answer = case.verb("setup", &document("warp"))?;
    let status = json!({"lab": {
        "dns_search_domains": ["lab"], "dns_server_ips": ["192.0.2.9"], "zone": 7,
        "interfaces": {"x0": {"mac_address": "0a:00:00:00:00:01", "subnets": null}},
    }});
    assert_eq!(status, answer.json()?);
    ensure!(answer.stderr.contains("setup was called"), "standard error is the engine's: {answer}");
    case.verb("teardown", &document("warp"))?.done()?;
    let calls = case.calls()?;
    let netns = case.web.path().display().to_string();
    assert_eq!(
        vec![format!("setup {netns}"), format!("teardown {netns}")],
        calls.iter().map(|c| c.0.clone()).collect::<Vec<_>>()
    );
    assert_eq!(calls[0].1, calls[1].1, "both get the same document");
    let expected = json!({
        "container_id": case.web.id, "container_name": case.web.name,
        "port_mappings": [{"host_ip": "", "host_port": 8080, "container_port": 80, "range": 1, "protocol": "tcp"}],
        "network": lab("warp").info,
        "network_options": {"interface_name": "x0", "static_ips": ["10.1.1.1"], "aliases": ["www"]},
    });
    assert_eq!(expected, calls[0].1);
    residue.nothing_left(&case.topology, &[&case.web])
}

#[test]
fn a_failing_plugin_fails_the_setup_and_what_was_made_is_undone() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", RECORDER)?;
    let residue = Residue::watch(&case.topology)?;
    for (script, text) in [
        ("echo '{\"error\": \"setup error\"}'; exit 1", "plugin \"warp\" failed: exit code 1, message: setup error"),
        ("echo nonsense; exit 7", "plugin \"warp\" failed: exit code 7, parse error: "),
        ("kill -9 $$", "plugin \"warp\" killed by signal"),
    ] {
        case.does("setup", script)?;
        let beside = Document::new()
            .on_dual(&Network::dual(7), "eth0", 7, 5)
            .attach(&lab("warp"), json!({"interface_name": "x0"}));
        let told = case.verb("setup", &beside)?.error()?;
        ensure!(told.contains(text) && told.contains("none left behind"), "{told}");
        residue.nothing_left(&case.topology, &[&case.web])?;
    }
    // The first plugin is undone when the second one fails.
    case.does("setup", "case $(tail -n 1 \"$dir/calls\") in *'\"x1\"'*) exit 1 ;; esac")?;
    std::fs::remove_file(case.dir.join("calls"))?;
    let two =
        document("warp").attach(&Network::new("two", "v1").set("driver", "warp"), json!({"interface_name": "x1"}));
    case.verb("setup", &two)?.error()?;
    let verbs: Vec<String> = case
        .calls()?
        .iter()
        .map(|(words, input)| {
            format!("{} {}", words.split(' ').next().unwrap_or(""), input["network"]["name"].as_str().unwrap_or(""))
        })
        .collect();
    assert_eq!(vec!["setup lab", "setup two", "teardown two", "teardown lab"], verbs);
    residue.nothing_left(&case.topology, &[&case.web])
}

#[test]
fn a_plugin_that_does_not_end_is_killed_with_its_children_and_the_setup_is_undone() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", RECORDER)?;
    let residue = Residue::watch(&case.topology)?;
    // Also where teardown, which undoes the setup, does not end.
    for hangs in ["", "sleep 100"] {
        case.does("setup", "sleep 100 & echo $! > \"$dir/child\"; wait")?;
        case.does("teardown", hangs)?;
        let beside = Document::new()
            .on_dual(&Network::dual(7), "eth0", 7, 5)
            .attach(&lab("warp"), json!({"interface_name": "x0"}));
        let answer = case.verb("setup", &beside)?;
        let (took, told) = (answer.took, answer.error()?);
        ensure!(told.contains("plugin \"warp\" did not end within") && told.contains("undone"), "{told}");
        ensure!(took < Duration::from_secs(10), "an engine waited {took:?}");
        let child = std::fs::read_to_string(case.dir.join("child"))?;
        wait_for("the end of the plugin's child", SOON, || (!is_alive(child.trim())).then_some(()))?;
        residue.nothing_left(&case.topology, &[&case.web])?;
    }
    // A process that it leaves behind is its own affair, also one that keeps its output open.
    // (Not its standard error, which is the engine's.)
    case.does("setup", "sleep 100 2>/dev/null & echo $! > \"$dir/child\"")?;
    case.does("teardown", "")?;
    let answer = case.verb("setup", &document("warp"))?;
    ensure!(answer.took < SOON, "netpath waited for a daemon: {answer}");
    answer.json()?;
    let child = std::fs::read_to_string(case.dir.join("child"))?;
    ensure!(is_alive(child.trim()), "the daemon was killed");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.trim().parse()?), nix::sys::signal::Signal::SIGKILL)?;
    case.verb("teardown", &document("warp"))?.done()?;
    residue.nothing_left(&case.topology, &[&case.web])
}

/// Not a zombie either, which its parent has not waited for.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn teardown_calls_the_plugin_for_a_namespace_that_is_gone_and_for_a_container_without_a_record() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", RECORDER)?;
    let residue = Residue::watch(&case.topology)?;
    case.verb("setup", &document("warp"))?.json()?;
    let json = document("warp").json(&case.web);
    for _ in 0..2 {
        case.call(&["teardown", "/no/such/netns"], &json)?.done()?;
    }
    let calls: Vec<String> = case.calls()?.into_iter().map(|(words, _)| words).collect();
    assert_eq!("teardown /no/such/netns", calls[2], "{calls:?}");
    case.does("teardown", "echo '{\"error\": \"teardown error\"}'; exit 1")?;
    let told = case.call(&["teardown", "/no/such/netns"], &json)?.error()?;
    ensure!(told.contains("plugin \"warp\" failed: exit code 1, message: teardown error"), "{told}");
    std::fs::remove_file(case.dir.join("does-teardown"))?;
    case.call(&["teardown", "/no/such/netns"], &json)?.done()?;
    residue.nothing_left(&case.topology, &[&case.web])
}

#[test]
fn a_second_setup_of_the_same_endpoint_is_refused() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", RECORDER)?;
    case.verb("setup", &document("warp"))?.json()?;
    let told = case.verb("setup", &document("warp"))?.error()?;
    ensure!(told.contains("x0 already exists") && told.contains("nothing was changed"), "{told}");
    assert_eq!(1, case.calls()?.len(), "the plugin of the running container is left alone");
    case.verb("teardown", &document("warp"))?.done()
}

#[test]
fn only_an_executable_file_in_a_plugin_directory_is_a_driver() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", RECORDER)?;
    std::fs::write(case.dir.join("text"), RECORDER)?;
    std::fs::create_dir(case.dir.join("dir"))?;
    write_program(&case.topology.dir().join("outside"), RECORDER.as_bytes())?;
    // Of the trial run.
    std::fs::remove_file(case.topology.dir().join("calls"))?;
    for driver in ["absent", "text", "dir", "../outside", ""] {
        let told = case.verb("setup", &document(driver))?.error()?;
        ensure!(told.contains(&format!("unknown network driver {driver:?}")), "{driver}: {told}");
    }
    ensure!(case.calls()?.is_empty() && !case.topology.dir().join("calls").exists(), "none was run");
    Ok(())
}

#[test]
fn create_asks_the_plugin() -> Result<()> {
    need!(need::root(), need::netpath());
    let case = Case::new("warp", "#!/bin/sh\nsed 's/\"speed\": *\"9\"/\"speed\": \"10\"/'\n")?;
    let input = |name: &str| {
        json!({
            "network": {"name": name, "id": "a".repeat(64), "driver": "warp", "dns_enabled": false, "internal": false,
                "ipv6_enabled": false, "options": {"speed": "9"}},
            "used": {"interfaces": [], "names": {}, "subnets": []},
            "options": {"subnet_pools": [], "default_interface_name": "podman", "check_used_subnets": true},
        })
    };
    let made = case.call(&["create"], &input("lab"))?.json()?;
    assert_eq!((json!("10"), json!("warp")), (made["options"]["speed"].clone(), made["driver"].clone()));
    let other = Path::new("/dev/null").display().to_string();
    let told = Netavark::with(&case.topology, &[])?
        .call(&["--plugin-directory", &other, "create"], input("lab").to_string().as_bytes())?
        .error()?;
    assert_eq!("plugin for driver \"warp\" not found in plugin directories", told);
    write_program(&case.dir.join("warp"), b"#!/bin/sh\nsed s/lab/other/\n")?;
    let told = case.call(&["create"], &input("lab"))?.error()?;
    assert_eq!("warp plugin invalid result: changed network name", told);
    Ok(())
}

/// `docs/examples/host-device`, which writers of plugins can copy.
#[test]
fn the_example_moves_a_link_into_the_container_and_back() -> Result<()> {
    need!(need::root(), need::netpath(), need::program("nsenter"));
    let case = Case::new("host-device", include_str!("../../docs/examples/host-device"))?;
    case.topology.host.ip("link add v0 type veth peer name v1\n")?;
    let residue = Residue::watch(&case.topology)?;
    let mac = case.topology.host.ip_json(&["link", "show", "dev", "v0"])?[0]["address"].clone();
    let input = json!({
        "network": lab("host-device").info, "used": {"interfaces": [], "names": {}, "subnets": []},
        "options": {"subnet_pools": [], "default_interface_name": "podman", "check_used_subnets": true},
    });
    assert_eq!(json!("v0"), case.call(&["create"], &input)?.json()?["network_interface"]);
    let document = Document::new().attach(&lab("host-device"), json!({"interface_name": "eth0"}));
    let answer = case.verb("setup", &document)?.json()?;
    assert_eq!(mac, answer["lab"]["interfaces"]["eth0"]["mac_address"]);
    let link = case.web.ip_json(&["link", "show", "dev", "eth0"])?;
    ensure!(link[0]["flags"].to_string().contains("\"UP\""), "{link}");
    ensure!(
        case.topology.host.ip_json(&["link", "show"])?.to_string().matches("\"v0\"").count() == 0,
        "still on the host"
    );
    case.verb("teardown", &document)?.done()?;
    case.verb("teardown", &document)?.done()?;
    residue.nothing_left(&case.topology, &[&case.web])?;
    let absent = Document::new()
        .attach(&lab("host-device").set("network_interface", "absent0"), json!({"interface_name": "eth0"}));
    let told = case.verb("setup", &absent)?.error()?;
    ensure!(told.contains("plugin \"host-device\" failed: exit code 1, message: cannot move absent0: "), "{told}");
    residue.nothing_left(&case.topology, &[&case.web])
}
