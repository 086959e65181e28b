//! The command line of `hublet run`, as clap parses it: YurtHub's flags that have an effect
//! ([`yurthub`]), hublet's own ([`own`]), and those that existing manifests may pass ([`ignored`]).
//! Only the syntax is checked here; [`super::check`] makes a [`super::Config`] of it.

pub mod ignored;
pub mod own;
pub mod yurthub;

use clap::Args;

pub use ignored::Ignored;
pub use own::OwnFlags;
pub use yurthub::YurthubFlags;

/// The daemon's flags.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    #[command(flatten)]
    pub yurthub: YurthubFlags,
    #[command(flatten)]
    pub own: OwnFlags,
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Parses a boolean as Go's `strconv.ParseBool`.
///
/// # Errors
/// The text is not one of Go's spellings.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("invalid boolean {text:?}; use true or false")),
    }
}
