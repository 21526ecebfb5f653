//! How the endpoints of a network are attached to it: one variant for each driver, with what the driver needs.

use super::IfName;
use serde::{Deserialize, Serialize};

/// On disk the variant is a field of its network, so that `"bridge": "podman1"` is what version 0.1 wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// A veth to the bridge of this name, which is made with the first endpoint and removed with the last.
    Bridge(IfName),
    Macvlan(Macvlan),
}

/// An interface of its own on the wire of a link of the host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Macvlan {
    /// `None`: the link of the default route.
    pub parent: Option<IfName>,
    pub mode: MacvlanMode,
    /// Up to how many members a multicast or broadcast frame is delivered at once, instead of later in a queue; -1 = always
    /// (6.4).
    pub bclim: Option<i32>,
}

/// What the macvlans of one parent see of each other.
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
            // Netavark's words.
            _ => {
                return Err(format!(
                    "invalid macvlan mode {word:?}: expected bridge, private, vepa, passthru or source"
                ));
            }
        })
    }
}
