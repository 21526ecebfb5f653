//! How the endpoints of a network are attached to it: one variant for each driver, with what the driver needs.

use super::IfName;
use serde::{Deserialize, Serialize};

/// On disk the variant is a field of its network, so that `"bridge": "podman1"` is what version 0.1 wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// A veth to the bridge of this name, which is made with the first endpoint and removed with the last.
    Bridge(IfName),
}
