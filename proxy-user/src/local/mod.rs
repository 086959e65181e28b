//! (being written)
pub mod negotiate;
