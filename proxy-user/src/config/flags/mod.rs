//! The command line of `hublet run`, as clap reads it: YurtHub's flags that have an effect ([`yurthub`]), our own
//! ([`own`]), and those that are accepted for the sake of existing manifests ([`ignored`]). Nothing is judged here
//! beyond syntax; `super::check` makes a [`super::Config`] of it.

pub mod ignored;
pub mod own;
pub mod yurthub;

use clap::Args;

pub use ignored::Ignored;
pub use own::OwnFlags;
pub use yurthub::YurthubFlags;

/// Everything that can be said on the command line of the daemon.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// YurtHub's flags.
    #[command(flatten)]
    pub yurthub: YurthubFlags,
    /// Our own flags.
    #[command(flatten)]
    pub own: OwnFlags,
    /// Accepted, without effect.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// A boolean as Go's flag package reads it.
///
/// # Errors
/// The text is none of Go's spellings.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}
