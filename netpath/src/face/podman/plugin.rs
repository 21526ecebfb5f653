//! Networks of other drivers, whose endpoints a plugin attaches.

use super::json_reader::{Node, Required};
use super::wire::{self, PerNetworkOptions, Request};
use crate::driver::plugin::find;
use crate::model::attachment::Plugin;
use crate::model::{Attachment, Isolation, Network, TranslationPath, Xdp};
use serde_json::{Value, json};
use std::ffi::OsString;

/// Drivers that are part of netpath.
pub(super) const BUILT_IN: [&str; 3] = ["bridge", "macvlan", "ipvlan"];

/// What a plugin needs to know of a request.
pub(super) struct Plugins<'a> {
    dirs: &'a [OsString],
    request: &'a Request,
}

impl<'a> Plugins<'a> {
    pub(super) fn new(dirs: &'a [OsString], request: &'a Request) -> Self {
        Self { dirs, request }
    }

    /// How the plugin of a network attaches an endpoint; `None`: the driver is built in, or there is no such plugin.
    pub(super) fn attachment(
        &self,
        info: &Node<'_, wire::Network>,
        options: &Required<PerNetworkOptions>,
    ) -> Option<Attachment> {
        let driver = match &info.value.driver {
            Required::Is(driver) if !BUILT_IN.contains(&driver.as_str()) => driver,
            _ => return None,
        };
        let program = find(self.dirs, driver)?;
        let mut options = json!(options);
        // Only the list form has it.
        if let Value::Object(map) = &mut options {
            map.shift_remove("name");
        }
        let request = self.request;
        let ports = if request.port_mappings.is_given() { json!(request.port_mappings) } else { Value::Null };
        let input = json!({
            "container_id": request.container_id, "container_name": request.container_name, "port_mappings": ports,
            "network": info.value, "network_options": options,
        });
        Some(Attachment::Plugin(Plugin { program, input: input.to_string() }))
    }
}

/// The network of a plugin, of which netpath only knows the name. `None`: it has no id.
pub(super) fn network(info: &Node<'_, wire::Network>, name: &str, attachment: Attachment) -> Option<Network> {
    Some(Network {
        name: name.to_owned(),
        id: info.id()?.text().to_owned(),
        attachment,
        mtu: None,
        subnets: Vec::new(),
        routes: Vec::new(),
        internal: false,
        isolation: Isolation::Open,
        default_route: false,
        metric: 0,
        outbound4: None,
        outbound6: None,
        path: TranslationPath::Auto,
        direct: false,
        masquerade: true,
        xdp: Xdp::Auto,
        vlan: None,
        vrf: None,
        dhcp: false,
        dhcp6: false,
        slaac: false,
        dns: false,
        dns_addresses: None,
        dns_port: crate::model::network::DNS_PORT,
        dns_servers: Vec::new(),
        dns_ttl: 0,
    })
}
