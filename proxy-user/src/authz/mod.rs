//! Callers: who they are, and what the cloud has allowed them.

pub(crate) mod decide;
pub(crate) mod grants;
pub(crate) mod identity;
pub(crate) mod shares;
