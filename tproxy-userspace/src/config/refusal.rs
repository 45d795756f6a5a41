//! Why one value was refused.

use crate::data::OutboundError;
use crate::policy::domain::DomainError;
use crate::policy::port::PortError;
use crate::policy::prefix::PrefixError;

/// Why a text is not the value that it should be. `Display` gives both halves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", help.as_ref().map(|help| format!("; {help}")).unwrap_or_default())]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to write instead, if that can be told.
    pub help: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }
}

impl From<PrefixError> for Refusal {
    fn from(error: PrefixError) -> Self {
        Self {
            message: error.message(),
            help: error.help(),
        }
    }
}

impl From<OutboundError> for Refusal {
    fn from(error: OutboundError) -> Self {
        Self::new(error.message, error.help)
    }
}

impl From<DomainError> for Refusal {
    fn from(error: DomainError) -> Self {
        Self::new(error.message(), error.help())
    }
}

impl From<PortError> for Refusal {
    fn from(error: PortError) -> Self {
        Self::new(error.message(), error.help())
    }
}
