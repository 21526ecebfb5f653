//! Translates between an engine's documents and the model. Faces take no decision about networking.

pub mod dns_cli;
pub mod podman;

/// What `version` prints as JSON: the contract's version, and netpath's own. Tools compare `version` with numbers.
fn version_json(contract: &str, default_fw_driver: Option<&str>) -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    let mut version = serde_json::json!({
        "version": contract,
        "commit": option_env!("NETPATH_COMMIT").unwrap_or("unknown"),
        "build_time": env!("NETPATH_BUILD_TIME"),
        "target": format!("{}-unknown-linux-{libc}", std::env::consts::ARCH),
    });
    if let Some(driver) = default_fw_driver {
        version["default_fw_driver"] = driver.into();
    }
    version["netpath"] = env!("CARGO_PKG_VERSION").into();
    format!("{version:#}\n")
}
