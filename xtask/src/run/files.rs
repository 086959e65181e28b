//! The files that `run` leaves in `target/dev/`, and the text that says which features are off and which commands to try.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cloud::Cloud;
use super::flags::Flags;
use crate::project::Project;
use crate::step;

/// Copies the CA that clients trust and writes the kubeconfig that goes through hublet.
pub(super) fn write_client_files(project: &Project, flags: &Flags, token: bool) -> Result<()> {
    let dev = project.dev_dir();
    let root = PathBuf::from(flags.value("--root-dir").context("--root-dir was set")?);
    let made = root.join("pki").join("dev-ca.crt");
    let ca = dev.join("ca.crt");
    if !made.is_file() {
        // A mode with certificates from the cluster: clients trust the cluster's CA.
        step::note(format_args!(
            "no {}: clients trust the cluster's own CA",
            made.display()
        ));
        return Ok(());
    }
    std::fs::copy(&made, &ca).with_context(|| format!("cannot copy {}", made.display()))?;
    let token = if token { Some(dev.join("token")) } else { None };
    let text = kubeconfig_text(
        &format!("https://{}", flags.secure_address()?),
        &ca,
        token.as_deref(),
    );
    std::fs::write(dev.join("kubeconfig"), text)?;
    Ok(())
}

/// A kubeconfig as YAML (JSON strings are YAML strings).
fn kubeconfig_text(server: &str, ca: &Path, token: Option<&Path>) -> String {
    let ca = serde_json::json!(ca.display().to_string());
    let user = token.map_or_else(
        || "{}".to_owned(),
        |path| serde_json::json!({ "tokenFile": path.display().to_string() }).to_string(),
    );
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: hublet\n\
         clusters:\n- name: hublet\n  cluster:\n    server: {server}\n    certificate-authority: {ca}\n\
         users:\n- name: dev\n  user: {user}\n\
         contexts:\n- name: hublet\n  context: {{cluster: hublet, user: dev}}\n"
    )
}

/// Says where things are, what is off, and three commands to try.
pub(super) fn print_introduction(
    project: &Project,
    flags: &Flags,
    cloud: Option<&Cloud>,
    restricted: bool,
) {
    let secure = flags
        .secure_address()
        .map_or_else(|error| error.to_string(), |address| address.to_string());
    let dev = project.dev_dir();
    let dev = project.relative_path(&dev);
    println!("\nhublet is ready: https://{secure} (log: {dev}/hublet.log)");
    if restricted {
        println!("{}", restrictions_text(&secure));
    }
    let Some(cloud) = cloud else {
        println!(
            "It forwards to {}.",
            flags.value("--server-addr").unwrap_or_default()
        );
        println!(
            "Through hublet: kubectl --kubeconfig {dev}/kubeconfig --token=TOKEN get nodes\nCtrl-C ends it."
        );
        return;
    };
    println!(
        "The cloud is {} (behind the fault proxy: {}; log: {dev}/cloud.log)",
        cloud.direct, cloud.server
    );
    println!(
        "\nThree commands to try in another shell, here:\n\
         \n1. Calico's call, answered by the cloud:\n   {}\n\
         \n2. Cut the link, and make the same call: answered from the store (x-hublet-source, and its age):\n   \
         scripts/cut-cloud\n\
         \n3. Restore the link: from the cloud again within seconds:\n   scripts/restore-cloud\n\
         \nAlso: kubectl --kubeconfig {dev}/kubeconfig get --raw /apis (through hublet), {dev}/cloud.kubeconfig (past it).\n\
         Ctrl-C ends everything.",
        calico_call(&secure)
    );
}

fn calico_call(secure: &str) -> String {
    format!(
        "curl -i --cacert target/dev/ca.crt -H \"Authorization: Bearer $(cat target/dev/token)\" \
         https://{secure}/apis/crd.projectcalico.org/v1/clusterinformations/default"
    )
}

/// The features that an unprivileged run lacks, with reasons.
fn restrictions_text(secure: &str) -> String {
    format!(
        "\nWithout root these are off; start it with sudo for them:\n\
         - the interface hub-dummy0 with 169.254.2.1: making it needs CAP_NET_ADMIN. Clients use {secure}.\n\
         - steering of 10.96.0.1:443 and the callers' identities: loading eBPF needs CAP_BPF, CAP_NET_ADMIN.\n\
         All else works: forwarding, the store, answers while the cloud is away."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_names_server_ca_and_token_file() {
        let text = kubeconfig_text(
            "https://169.254.2.1:10268",
            Path::new("/a b/ca.crt"),
            Some(Path::new("/a b/token")),
        );
        assert!(
            text.contains("    server: https://169.254.2.1:10268\n"),
            "{text}"
        );
        assert!(
            text.contains("certificate-authority: \"/a b/ca.crt\""),
            "{text}"
        );
        assert!(
            text.contains("user: {\"tokenFile\":\"/a b/token\"}"),
            "{text}"
        );
    }

    #[test]
    fn the_call_to_try_is_the_documented_one() {
        let call = calico_call("169.254.2.1:10268");
        assert!(call.contains("--cacert target/dev/ca.crt"));
        assert!(call.ends_with(
            "https://169.254.2.1:10268/apis/crd.projectcalico.org/v1/clusterinformations/default"
        ));
    }
}
