//! The error type of the control plane: operation and object, cause, and next step.

use std::fmt;

/// Displays as `cannot create bridge podman7: File exists (os error 17)`. The next step is separate, since each face prints
/// it at another place.
#[derive(Debug)]
pub struct Error {
    what: String,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    next: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `what` names the operation and the object: "cannot create bridge podman7".
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), cause: None, next: None }
    }

    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The action that fixes the error.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    /// Prefixes the outer operation: "setup of web: cannot create …". Keeps the next step.
    #[must_use]
    pub fn within(mut self, what: impl fmt::Display) -> Self {
        self.what = format!("{what}: {}", self.what);
        self
    }

    pub fn next_step(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {cause}")?;
            let mut deeper = cause.source();
            while let Some(e) = deeper {
                let text = e.to_string();
                if !cause.to_string().contains(&text) {
                    write!(f, ": {text}")?;
                }
                deeper = e.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Adds operation and object to any error.
pub trait Context<T> {
    /// # Errors
    /// `what`, with the error of `self` as its cause.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(what()).because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_object_and_cause() {
        let e = Error::new("cannot create bridge podman7").because(std::io::Error::from_raw_os_error(17)).next("retry");
        assert_eq!("cannot create bridge podman7: File exists (os error 17)", e.to_string());
        assert_eq!(Some("retry"), e.next_step());
        assert_eq!(
            "setup of web: cannot create bridge podman7: File exists (os error 17)",
            e.within("setup of web").to_string()
        );
    }
}
