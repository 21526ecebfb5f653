//! Which of the kernel's two mechanisms attaches classifiers.

use crate::model::error::{Error, Result};

/// How classifiers are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TcMode {
    Tcx,
    Clsact,
}

impl TcMode {
    /// `NETPATH_TC`: for tests, and for hosts whose other software is incompatible with one of the two.
    ///
    /// # Errors
    /// It is neither `tcx` nor `clsact`.
    pub(super) fn forced() -> Result<Option<Self>> {
        match std::env::var("NETPATH_TC").as_deref() {
            Err(_) | Ok("") => Ok(None),
            Ok("tcx") => Ok(Some(Self::Tcx)),
            Ok("clsact") => Ok(Some(Self::Clsact)),
            Ok(other) => Err(Error::new(format!("cannot use NETPATH_TC={other:?}")).because("expected tcx or clsact")),
        }
    }
}
