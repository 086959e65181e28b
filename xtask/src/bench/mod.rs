//! bench
use anyhow::Result;
use clap::Args;
use crate::project::Project;
/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {}
pub(crate) fn run(_: &Project, _: &BenchArguments) -> Result<()> { anyhow::bail!("not yet") }
