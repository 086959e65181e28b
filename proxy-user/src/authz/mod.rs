//! Callers: who they are, and what the cloud has allowed them.

pub(crate) mod attributes;
pub(crate) mod authorizer;
pub(crate) mod grants;
pub(crate) mod identity;
pub(crate) mod reader;
pub(crate) mod shares;
