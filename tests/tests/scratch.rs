//! scratch
use hublet_tests::kube::connection::Endpoint;
use hublet_tests::replay::*;
#[tokio::test]
async fn start() {
    let t = std::time::Instant::now();
    let cloud = hublet_tests::kube::KubeCloud::start(Default::default()).await.unwrap();
    eprintln!("ready {:?} {}", t.elapsed(), cloud.dir().display());
    let rec = Recording::calico().unwrap();
    let mut replay =
        Replay::new(Endpoint::new(cloud.address(), cloud.ca(), None).unwrap(), cloud.calico_token());
    let t = std::time::Instant::now();
    let d = replay.play(rec.all()).await.unwrap();
    eprintln!("played {:?}", t.elapsed());
    for d in &d {
        eprintln!("{d}");
    }
    eprintln!("{} differences", d.len());
    for r in replay.known().reads() {
        eprintln!("{r}");
    }
    if std::env::var("HOLD").is_ok() {
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    }
}
