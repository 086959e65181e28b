//! A container image without a registry: an archive as `docker save` writes it, with one static program as its only file, for
//! `ctr images import`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

/// The image's name for pods and containerd's sandboxes. Nothing of that name can be pulled.
pub(super) const NAME: &str = "hublet.test/pod:1";
/// The program, in the image.
pub const PROGRAM: &str = "/pod";

pub(super) fn write_archive(program: &Path, archive: &Path) -> Result<()> {
    let bytes = std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let mut layer = tar::Builder::new(Vec::new());
    add_file(&mut layer, &PROGRAM[1..], 0o755, &bytes)?;
    let layer = layer.into_inner()?;
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &layer);
    let sum: String = sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        // A sandbox says nothing of what to run: it holds the pod's namespaces.
        "config": {"Cmd": [PROGRAM, "pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);

    let file = File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
    let mut image = tar::Builder::new(file);
    add_file(
        &mut image,
        "config.json",
        0o644,
        config.to_string().as_bytes(),
    )?;
    add_file(&mut image, "layer.tar", 0o644, &layer)?;
    add_file(
        &mut image,
        "manifest.json",
        0o644,
        manifest.to_string().as_bytes(),
    )?;
    image.into_inner()?;
    Ok(())
}

fn add_file<W: std::io::Write>(
    to: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len().try_into()?);
    header.set_mode(mode);
    to.append_data(&mut header, name, bytes)
        .with_context(|| format!("{name} into the archive"))
}
