//! What a run of a controller can fail with. All of it is tried again.

use kube::core::Status;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Api(Box<kube::Error>),
    /// Several writes, of which some failed: the first failure, and how many there were.
    #[error("{failed} of {tried} requests failed; the first: {first}")]
    Several { failed: usize, tried: usize, first: Box<Error> },
    #[error("{0}")]
    Invalid(String),
    /// Something has to happen first that no watch tells.
    #[error("waiting for {0}")]
    Waiting(String),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl Error {
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(error) => status(error),
            Self::Several { first, .. } => first.status(),
            Self::Invalid(_) | Self::Waiting(_) => None,
        }
    }

    /// Another write came first, or the cache was behind: nobody need hear of it.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Waiting(_))
            || self
                .status()
                .is_some_and(|status| status.is_conflict() || status.is_not_found() || status.is_already_exists())
    }

    /// The text a user reads in a condition or an event: the server's own where it answered.
    pub fn text(&self) -> String {
        match self.status() {
            Some(status) => status.message.clone(),
            None => self.to_string(),
        }
    }
}

pub fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// Whether the server refused because the namespace is being deleted.
pub fn namespace_terminating(error: &kube::Error) -> bool {
    status(error)
        .and_then(|status| status.details.as_ref())
        .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// Turns "it is not there" into `None`.
pub fn found<T>(result: kube::Result<T>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if status(&error).is_some_and(Status::is_not_found) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
