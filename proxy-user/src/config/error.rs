//! Why a command line is refused.

use std::fmt::Display;

/// A refused setting: the flag, what was said, and the way out. Usage, so exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A flag that hublet can't do without is missing.
    #[error("--{flag} is missing: {way_out}")]
    Missing {
        /// The flag's name, without dashes.
        flag: &'static str,
        way_out: String,
    },
    /// A flag's value is wrong.
    #[error("--{flag} {value:?} {reason}")]
    Value {
        /// The flag's name, without dashes.
        flag: &'static str,
        value: String,
        /// What is wrong with it and what to write instead, to follow the value in a sentence.
        reason: String,
    },
    /// Two flags that can't be together.
    #[error("--{0} and --{1} {2}")]
    Clash(&'static str, &'static str, String),
}

impl ConfigError {
    pub(super) fn value(
        flag: &'static str,
        value: impl Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Value {
            flag,
            value: format!("{value}"),
            reason: reason.into(),
        }
    }
    pub(super) fn missing(flag: &'static str, way_out: impl Into<String>) -> Self {
        Self::Missing {
            flag,
            way_out: way_out.into(),
        }
    }
}
