//! Promise (I5): a program that uses kube-rs lists, gets and watches through hublet, and continues when the link is
//! cut: its watch stays open without an error, and after the link is restored it sees the changes of the meantime.
//!
//! kube-rs represents clients that hold a watch for hours. Before, a cut link left them with a watch that delivered
//! nothing and never ended.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::{Stream, StreamExt as _};
use hublet_tests::daemon::SECURE;
use hublet_tests::fault::Fault;
use hublet_tests::kube::edge::{Edge, RESTORE_LIMIT};
use hublet_tests::kube::workload::pod_manifest;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// kube-rs' client of hublet, with the administrator's token.
fn client(edge: &Edge) -> Result<Client> {
    let mut config = kube::Config::new(SECURE.parse()?);
    let ca = CertificateDer::from_pem_slice(edge.daemon.ca_pem()?.as_bytes())?;
    config.root_cert = Some(vec![ca.to_vec()]);
    config.auth_info.token = Some(edge.cloud.admin_token().to_owned().into());
    config.default_namespace = "default".into();
    // kube-rs asks again after a 503, for minutes: here every answer counts as it comes.
    config.default_retry = false;
    // Longer than any answer may take; a watch that stays open is silent for less.
    config.read_timeout = Some(Duration::from_secs(20));
    Ok(Client::try_from(config)?)
}

/// Runs the program on the node.
fn on_the_node<F: Future<Output = Result<()>>>(
    edge: &Edge,
    program: impl FnOnce() -> F + Send,
) -> Result<()> {
    edge.netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(program())
    })
}

async fn names(pods: &Api<Pod>) -> Result<Vec<String>> {
    let list = pods.list(&ListParams::default()).await?;
    Ok(list.items.iter().map(kube::ResourceExt::name_any).collect())
}

/// Waits until the watch shows the pod; any error of the watch is a failure.
async fn see<S>(watch: &mut S, name: &str) -> Result<()>
where
    S: Stream<Item = watcher::Result<Event<Pod>>> + Unpin,
{
    let seen = async {
        while let Some(event) = watch.next().await {
            match event.context("the watch reported an error")? {
                Event::Apply(pod) | Event::InitApply(pod) if pod.name_any() == name => {
                    return Ok(());
                }
                _ => {}
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(Duration::from_secs(15), seen)
        .await
        .with_context(|| format!("{name} was not seen within 15 s"))?
}

#[test]
fn kube_rs_lists_and_gets_online_and_after_the_cut() -> Result<()> {
    Edge::run(|edge| {
        on_the_node(edge, async || {
            let kube = client(edge)?;
            let pods: Api<Pod> = Api::namespaced(kube.clone(), "default");
            let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", "IPPool");
            let pools: Api<DynamicObject> =
                Api::all_with(kube, &ApiResource::from_gvk_with_plural(&kind, "ippools"));
            let online = (
                names(&pods).await?,
                pods.get("pod-a").await?,
                pools.get("default-ipv4-ippool").await?,
            );
            assert_eq!(online.0, ["pod-a", "pod-b"]);
            assert!(pods.get_opt("absent").await?.is_none());

            for fault in [Fault::Refuse, Fault::Blackhole(None)] {
                edge.fault.set_async(fault).await?;
                // The same client, and one that connects anew.
                for kube in [pods.clone().into_client(), client(edge)?] {
                    let pods: Api<Pod> = Api::namespaced(kube, "default");
                    assert_eq!(names(&pods).await?, online.0, "{fault}");
                    assert_eq!(pods.get("pod-a").await?, online.1, "{fault}");
                    assert!(pods.get_opt("absent").await?.is_none(), "{fault}");
                }
                assert_eq!(
                    pools.get("default-ipv4-ippool").await?.data,
                    online.2.data,
                    "{fault}"
                );
                let name = format!("never-asked-for-before-{fault}");
                let unknown = pods.get(&name).await.expect_err("it can't be known");
                let kube::Error::Api(status) = unknown else {
                    bail!("no Status: {unknown}")
                };
                assert_eq!(
                    (status.code, status.reason.as_str()),
                    (503, "ServiceUnavailable"),
                    "{fault}"
                );
                edge.fault.set_async(Fault::None).await?;
                wait_for_the_cloud(&pods, &name).await?;
            }
            Ok(())
        })
    })
}

/// After the mend: until the cloud says of a pod what the store couldn't know.
async fn wait_for_the_cloud(pods: &Api<Pod>, unknown: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + RESTORE_LIMIT;
    loop {
        match pods.get_opt(unknown).await {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => bail!("a pod that nobody made"),
            Err(cause) if tokio::time::Instant::now() > deadline => {
                bail!("not within {RESTORE_LIMIT:?}: {cause}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[test]
fn a_kube_rs_watch_outlives_a_refused_link_i5() -> Result<()> {
    watch_survives(Fault::Refuse)
}

#[test]
fn a_kube_rs_watch_outlives_a_black_hole_i5() -> Result<()> {
    watch_survives(Fault::Blackhole(None))
}

fn watch_survives(fault: Fault) -> Result<()> {
    Edge::run(|edge| {
        on_the_node(edge, async || {
            let pods: Api<Pod> = Api::namespaced(client(edge)?, "default");
            let mut watch = Box::pin(watcher(pods, watcher::Config::default()));
            see(&mut watch, "pod-b").await?;
            edge.cloud
                .admin()
                .create(PODS, &pod_manifest("pod-c", "edge-1"))?;
            see(&mut watch, "pod-c").await?;

            edge.fault.set_async(fault).await?;
            edge.cloud
                .admin()
                .create(PODS, &pod_manifest("pod-d", "edge-1"))?;
            // Four seconds of silence: longer than hublet needs to know that the cloud is away.
            let quiet =
                tokio::time::timeout(Duration::from_secs(4), see(&mut watch, "pod-d")).await;
            if let Ok(seen) = quiet {
                seen?;
                bail!("pod-d came through a link that is cut");
            }
            edge.fault.set_async(Fault::None).await?;
            see(&mut watch, "pod-d").await
        })
    })
}
