//! bench
use crate::project::Project;
use anyhow::Result;
use clap::Args;
/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {}
pub(crate) fn run(_: &Project, _: &BenchArguments) -> Result<()> {
    anyhow::bail!("not yet")
}
