//! How the endpoints of a network are attached to it: one variant for each driver, with what the driver needs.

use super::IfName;
use serde::{Deserialize, Serialize};

/// On disk the variant is a field of its network: version 0.1 wrote `"bridge": "podman1"`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// A veth to the bridge of this name, which is created with the first endpoint and removed with the last.
    Bridge(IfName),
    Macvlan(Macvlan),
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
