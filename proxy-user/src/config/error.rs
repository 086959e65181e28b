//! Errors of the command line.

use std::fmt::Display;

/// A rejected setting. It is a usage error: exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("--{flag} is required: {fix}")]
    Missing {
        /// The flag's name without dashes.
        flag: &'static str,
        /// The setting to give, with an example.
        fix: String,
    },
    #[error("invalid --{flag}={value:?}: {reason}")]
    Value {
        flag: &'static str,
        value: String,
        /// The rule that is broken, and a value that obeys it.
        reason: String,
    },
    #[error("--{first} and --{second} are both {value}: use different ports")]
    SamePort {
        first: &'static str,
        second: &'static str,
        value: u16,
    },
}

impl ConfigError {
    pub(super) fn invalid(
        flag: &'static str,
        value: impl Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Value {
            flag,
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    pub(super) fn missing(flag: &'static str, fix: impl Into<String>) -> Self {
        Self::Missing {
            flag,
            fix: fix.into(),
        }
    }
}
