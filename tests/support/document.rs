//! The JSON documents that Podman gives to its network backend.

use crate::topology::{Container, Family};
use serde_json::{Map, Value, json};

/// `networks` in the format of Podman 5, or of Podman 6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Shape {
    #[default]
    Map,
    Array,
}

/// A network of the contract's `network_info`.
#[derive(Clone, Debug)]
pub struct Network {
    pub name: String,
    pub info: Value,
}

impl Network {
    pub fn new(name: &str, bridge: &str) -> Self {
        let id = format!("{:0>64}", name.bytes().map(|b| format!("{b:02x}")).collect::<String>());
        let info = json!({
            "name": name, "id": id, "driver": "bridge", "network_interface": bridge, "subnets": [],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
        });
        Self { name: name.to_owned(), info }
    }

    /// Network `net<n>` on bridge `podman<n>` with 10.89.n.0/24 and fd41:n::/64 (n as hexadecimal digits there).
    pub fn dual(n: u8) -> Self {
        let [net4, net6] = Family::BOTH.map(|f| f.container(n, 0));
        let [gateway4, gateway6] = Family::BOTH.map(|f| f.gateway(n).to_string());
        Self::new(&format!("net{n}"), &format!("podman{n}"))
            .subnet(&format!("{net4}/24"), &gateway4)
            .subnet(&format!("{net6}/64"), &gateway6)
    }

    /// A subnet with its gateway.
    #[must_use]
    pub fn subnet(mut self, net: &str, gateway: &str) -> Self {
        if net.contains(':') {
            self.info["ipv6_enabled"] = true.into();
        }
        if let Some(subnets) = self.info["subnets"].as_array_mut() {
            subnets.push(json!({"subnet": net, "gateway": gateway}));
        }
        self
    }

    #[must_use]
    pub fn option(mut self, key: &str, value: &str) -> Self {
        self.info["options"][key] = value.into();
        self
    }

    /// Any key of the network object.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.info[key] = value.into();
        self
    }
}

/// A setup document for one container.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub shape: Shape,
    attached: Vec<(Network, Value)>,
    ports: Vec<Value>,
    dns_servers: Vec<String>,
}

impl Document {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// On `network` as `interface` with these addresses.
    #[must_use]
    pub fn on(self, network: &Network, interface: &str, addresses: &[&str]) -> Self {
        self.attach(network, json!({"interface_name": interface, "static_ips": addresses}))
    }

    /// On [`Network::dual`] `n`, or a change of it, as host `host` of both its subnets.
    #[must_use]
    pub fn on_dual(self, network: &Network, interface: &str, n: u8, host: u8) -> Self {
        let [v4, v6] = Family::BOTH.map(|f| f.container(n, host).to_string());
        self.on(network, interface, &[&v4, &v6])
    }

    /// On `network` with these per-network options.
    #[must_use]
    pub fn attach(mut self, network: &Network, options: Value) -> Self {
        self.attached.push((network.clone(), options));
        self
    }

    /// Publishes `host_port` as `container_port`.
    #[must_use]
    pub fn publish(self, host_ip: &str, host_port: u16, container_port: u16, protocol: &str) -> Self {
        self.publish_range(host_ip, host_port, container_port, 1, protocol)
    }

    #[must_use]
    pub fn publish_range(
        mut self,
        host_ip: &str,
        host_port: u16,
        container_port: u16,
        range: u16,
        protocol: &str,
    ) -> Self {
        self.ports.push(json!({
            "host_ip": host_ip, "host_port": host_port, "container_port": container_port,
            "range": range, "protocol": protocol,
        }));
        self
    }

    #[must_use]
    pub fn dns_server(mut self, address: &str) -> Self {
        self.dns_servers.push(address.to_owned());
        self
    }

    /// The JSON for `container`.
    pub fn json(&self, container: &Container) -> Value {
        self.json_for(&container.id, &container.name)
    }

    pub fn json_for(&self, id: &str, name: &str) -> Value {
        let networks = match self.shape {
            Shape::Map => self.attached.iter().map(|(n, o)| (n.name.clone(), o.clone())).collect(),
            Shape::Array => self
                .attached
                .iter()
                .map(|(n, o)| {
                    let mut options = o.clone();
                    options["name"] = n.name.clone().into();
                    options
                })
                .collect(),
        };
        let info: Map<String, Value> = self.attached.iter().map(|(n, _)| (n.name.clone(), n.info.clone())).collect();
        let mut document = json!({
            "container_id": id, "container_name": name,
            "port_mappings": self.ports, "networks": Value::Null, "network_info": info,
        });
        document["networks"] = networks;
        if !self.dns_servers.is_empty() {
            document["dns_servers"] = json!(self.dns_servers);
        }
        document
    }
}
