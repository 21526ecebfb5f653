//! The documents that Podman and netavark exchange, with a description of each field.
//!
//! Names are those of netavark's `src/network/types.rs` (2.1). A version in parentheses is the first netavark with the
//! field or value; all others are in 1.0. Every struct keeps unknown fields, so a document that is read and written
//! again is unchanged. Conversion into the model: `request.rs`, `network.rs`, `options.rs`; the output: `status.rs`.

use super::json_reader::{Field, List, Map, Node, Optional, Required, Type, Typed};
use indexmap::IndexMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;

/// Unknown fields, in the order of the document.
type Extra = serde_json::Map<String, Value>;

/// Generates a serde struct with `extra`, and for each field a method of its [`Node`] that returns the field's value or
/// records a mistake.
macro_rules! documents {
    ($($(#[$doc:meta])* pub struct $name:ident {
        $($(#[$field_doc:meta])* pub $field:ident: $presence:ident<$type:ty>,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
        #[serde(default)]
        pub(super) struct $name {
            $($(#[$field_doc])* #[serde(skip_serializing_if = "Field::is_absent")] pub $field: $presence<$type>,)*
            #[serde(flatten)]
            pub extra: Extra,
        }

        impl Typed for $name {
            const TYPE: Type = Type::Object;
        }

        #[allow(dead_code, reason = "some fields are only passed on")]
        impl<'a> Node<'a, $name> {
            $($(#[$field_doc])* pub(super) fn $field(&self) -> Option<Node<'a, $type>> {
                self.below(stringify!($field), &self.value.$field).get()
            })*
        }
    )*};
}

documents! {
    /// Standard input of `setup` and `teardown`.
    pub struct Request {
        /// Any non-empty text; Podman sends 64 hexadecimal digits.
        pub container_id: Required<String>,
        /// The first DNS name; the pod's name for a pod's infra container.
        pub container_name: Required<String>,
        /// Used only for DHCP (1.14). Empty in `podman network connect`.
        pub container_hostname: Optional<String>,
        /// The interfaces to create, in this order.
        pub networks: Required<Networks>,
        /// Each network of `networks`, by name.
        pub network_info: Required<Map<Network>>,
        /// Published on every managed bridge network of the document.
        pub port_mappings: Optional<List<PortMapping>>,
        /// IP addresses: upstream servers of this container's DNS (1.3).
        pub dns_servers: Optional<List<String>>,
    }

    /// One interface of the container.
    pub struct PerNetworkOptions {
        /// The network, in the list form of [`Networks`] (2.0); in a map the network is the key.
        pub name: Required<String>,
        /// The name inside the container.
        pub interface_name: Required<String>,
        /// IP addresses, chosen by Podman: at least one, unless another IPAM driver assigns them (`ipam_options`). More
        /// than one per subnet since 2.0.
        pub static_ips: Optional<List<String>>,
        /// Six bytes separated by `:` or `-`. Empty: the kernel chooses.
        pub static_mac: Optional<String>,
        /// Additional DNS names.
        pub aliases: Optional<List<String>>,
        /// `host_interface_name`: name of the host's end of the veth (1.14). And `netpath.allow…`.
        pub options: Optional<Map<String>>,
    }

    /// A network, as Podman stores it. Also the input and output of `create` (2.0).
    pub struct Network {
        pub name: Required<String>,
        /// 64 hexadecimal digits.
        pub id: Required<String>,
        /// `bridge`, `macvlan`, `ipvlan` (1.5), or the name of a plugin (1.6).
        pub driver: Required<String>,
        /// The bridge; the parent of a macvlan or ipvlan, which may be absent. Always optional in `create`.
        pub network_interface: Optional<String>,
        /// RFC 3339 (2.0).
        pub created: Optional<String>,
        pub subnets: Optional<List<Subnet>>,
        /// Static routes inside the container (1.7).
        pub routes: Optional<List<Route>>,
        /// The network has an IPv6 subnet.
        pub ipv6_enabled: Required<bool>,
        /// No traffic to or from the outside.
        pub internal: Required<bool>,
        pub dns_enabled: Required<bool>,
        /// IP addresses: upstream servers of this network's DNS (1.4).
        pub network_dns_servers: Optional<List<String>>,
        /// Free text of the user (2.0; ignored before). netpath reads its options from keys `netpath.…`.
        pub labels: Optional<Map<String>>,
        /// Options of the driver. Bridge: `mtu`, `isolate` = `true`, `false` (1.1; the default before 2.0), `strict`
        /// (1.7; the default since 2.0), `metric` (1.3), `no_default_route` (1.7), `vrf` (1.8), `vlan`, `mode` =
        /// `managed`, `unmanaged` (1.14), `outbound_addr4`, `outbound_addr6` (2.0). And `netpath.…`.
        pub options: Optional<Map<String>>,
        /// `driver`: the IPAM driver: `host-local` (Podman assigns addresses; the default), `dhcp`, `none`.
        pub ipam_options: Optional<Map<String>>,
    }

    /// Standard input of `create` (2.0), whose output is the completed network.
    pub struct Create {
        pub network: Required<Network>,
        pub used: Required<Used>,
        pub options: Required<CreateOptions>,
    }

    /// What a new network must not use.
    pub struct Used {
        /// The bridges of other networks.
        pub interfaces: Required<List<String>>,
        /// Id by name, of other networks.
        pub names: Required<Map<String>>,
        /// Of other networks and of the host's interfaces.
        pub subnets: Required<List<String>>,
    }

    pub struct CreateOptions {
        /// Where free subnets are taken from, in this order.
        pub subnet_pools: Required<List<SubnetPool>>,
        /// A number is appended: `podman`.
        pub default_interface_name: Optional<String>,
        /// Whether [`Used::subnets`] matter.
        pub check_used_subnets: Required<bool>,
    }

    pub struct SubnetPool {
        /// Address and prefix length.
        pub base: Required<String>,
        /// The prefix length of its subnets.
        pub size: Required<u32>,
    }

    /// A subnet of a network, and the part of it that Podman's IPAM uses.
    pub struct Subnet {
        /// Address and prefix length.
        pub subnet: Required<String>,
        /// The bridge's address.
        pub gateway: Optional<String>,
        /// The addresses that Podman assigns.
        pub lease_range: Optional<LeaseRange>,
    }

    pub struct LeaseRange {
        /// The first address.
        pub start_ip: Optional<String>,
        /// The last address.
        pub end_ip: Optional<String>,
    }

    /// A static route.
    pub struct Route {
        /// Address and prefix length.
        pub destination: Required<String>,
        /// An address of the destination's family. Required for `unicast`, otherwise rejected.
        pub gateway: Optional<String>,
        /// 100 if absent.
        pub metric: Optional<u32>,
        /// `unicast` (the default), `blackhole`, `unreachable`, `prohibit` (2.0).
        pub route_type: Optional<String>,
    }

    /// A published port, or a range of them.
    pub struct PortMapping {
        /// An address of the host; empty, `0.0.0.0` or `::` for all.
        pub host_ip: Required<String>,
        pub host_port: Required<u16>,
        pub container_port: Required<u16>,
        /// The number of ports; 0 means 1.
        pub range: Required<u16>,
        /// `tcp`, `udp` or `sctp`.
        pub protocol: Required<String>,
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Networks {
    /// Podman 6 (2.0).
    List(List<PerNetworkOptions>),
    /// Podman 4 and 5, by name.
    Map(Map<PerNetworkOptions>),
}

impl Typed for Networks {
    const TYPE: Type = Type::ListOrObject;
}

/// The output of `setup`: a block for each network of the request. Podman checks the number.
pub(super) type Status = IndexMap<String, StatusBlock>;

/// The result for one network. Podman reads `null` as empty. A plugin's `setup` prints one.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(super) struct StatusBlock {
    pub dns_search_domains: Option<Vec<String>>,
    /// For the container's resolv.conf.
    pub dns_server_ips: Option<Vec<IpAddr>>,
    /// By the name inside the container.
    pub interfaces: Option<IndexMap<String, NetInterface>>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(super) struct NetInterface {
    pub mac_address: String,
    pub subnets: Option<Vec<NetAddress>>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(super) struct NetAddress {
    /// The interface's address, with the prefix length of its subnet.
    pub ipnet: IpNet,
    /// The subnet's gateway. Present on an internal network too, which has no route through it.
    pub gateway: Option<IpAddr>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
