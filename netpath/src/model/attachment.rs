//! How the endpoints of a network are attached to it: one variant for each driver, with what the driver needs.

use super::IfName;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// On disk the variant is a field of its network: version 0.1 wrote `"bridge": "podman1"`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// A veth to the bridge of this name, which is created with the first endpoint and removed with the last.
    Bridge(IfName),
    /// A veth to this bridge, which the administrator creates, configures and removes.
    Unmanaged(IfName),
    Macvlan(Macvlan),
    Ipvlan(Ipvlan),
    Plugin(Plugin),
}

/// A program makes the interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plugin {
    pub program: PathBuf,
    /// JSON that the program reads from standard input: container, published ports, network, and the container's options on it.
    pub input: String,
}

/// An interface with its own MAC address on a link of the host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Macvlan {
    /// `None`: the link of the default route.
    pub parent: Option<IfName>,
    pub mode: MacvlanMode,
    /// IFLA_MACVLAN_BC_CUTOFF (6.4): frames to multicast groups with more members than this are queued; -1: none is.
    pub bclim: Option<i32>,
}

/// An interface that shares the MAC address of a link of the host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ipvlan {
    /// `None`: the link of the default route.
    pub parent: Option<IfName>,
    pub mode: IpvlanMode,
}

/// What the parent does with packets of its ipvlans: it switches (L2), or routes without (L3) or with its host's netfilter (L3S).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    #[default]
    L2,
    L3,
    L3S,
}

impl std::str::FromStr for IpvlanMode {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Ok(match word {
            "" | "l2" => Self::L2,
            "l3" => Self::L3,
            "l3s" => Self::L3S,
            // The text is netavark's.
            _ => return Err(format!("invalid ipvlan mode {word:?}: expected l2, l3 or l3s")),
        })
    }
}

/// How the macvlans of one parent reach each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    #[default]
    Bridge,
    Private,
    Vepa,
    Passthru,
    Source,
}

impl std::str::FromStr for MacvlanMode {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Ok(match word {
            "" | "bridge" => Self::Bridge,
            "private" => Self::Private,
            "vepa" => Self::Vepa,
            "passthru" => Self::Passthru,
            "source" => Self::Source,
            // The text is netavark's.
            _ => {
                return Err(format!(
                    "invalid macvlan mode {word:?}: expected bridge, private, vepa, passthru or source"
                ));
            }
        })
    }
}
