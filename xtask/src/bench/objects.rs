//! The objects that the bench asks for: a ConfigMap of about 1 KiB, one of about 20 KiB, and 10,000 Pods of about 1.2 kB
//! in 40 namespaces, as a file for `hublet-load post`.

use std::fmt::Write;

use serde_json::{Value, json};

/// Path of the small object.
pub(super) const SMALL: &str = "/api/v1/namespaces/bench/configmaps/small";
/// Path of the large object.
pub(super) const LARGE: &str = "/api/v1/namespaces/bench/configmaps/large";
/// Path of the list.
pub(super) const LIST: &str = "/api/v1/pods";
/// Pods in the list.
pub(super) const PODS: usize = 10_000;
const NAMESPACES: usize = 40;
/// Bytes that the server adds to a ConfigMap: uid, resourceVersion, time, and the JSON around them.
const FRAME: usize = 260;

/// One line an object: the collection's path, a tab, the object.
pub(super) fn post_file() -> String {
    let mut text = String::with_capacity(PODS * 1400);
    add_line(
        &mut text,
        "/api/v1/namespaces",
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}}),
    );
    for (name, size) in [("small", 1024), ("large", 20 * 1024)] {
        add_line(
            &mut text,
            "/api/v1/namespaces/bench/configmaps",
            &config_map(name, size),
        );
    }
    for namespace in 0..NAMESPACES {
        let name = format!("bench-{namespace}");
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        add_line(&mut text, "/api/v1/namespaces", &object);
    }
    for number in 0..PODS {
        let namespace = format!("bench-{}", number % NAMESPACES);
        add_line(
            &mut text,
            &format!("/api/v1/namespaces/{namespace}/pods"),
            &pod(number, &namespace),
        );
    }
    text
}

fn add_line(to: &mut String, path: &str, object: &Value) {
    // Writing to a String does not fail.
    let _ = writeln!(to, "{path}\t{object}");
}

fn config_map(name: &str, size: usize) -> Value {
    let words = "address=10.244.0.1 mtu=1450 mode=vxlan node=edge-17 backend=bird; ";
    let text: String = words.chars().cycle().take(size - FRAME).collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "bench"}, "data": {"config": text}})
}

fn pod(number: usize, namespace: &str) -> Value {
    let node = format!("edge-{}", number % 200);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("web-{number:05}-7d4b9c6f5d-x{:03}", number % 977),
            "namespace": namespace,
            "labels": {"app": format!("web-{}", number % 500), "pod-template-hash": "7d4b9c6f5d", "tier": "front"},
            "annotations": {"cni.projectcalico.org/podIP": format!("10.{}.{}.7/32", number / 250, number % 250)}
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "web",
                "image": "registry.example/web:1.27.3",
                "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                "volumeMounts": [{
                    "name": "kube-api-access-x7k2p",
                    "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"
                }],
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent"
            }],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]
        },
        "status": {
            "phase": "Running",
            "podIP": format!("10.{}.{}.7", number / 250, number % 250),
            "startTime": "2026-01-02T03:04:05Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            "qosClass": "Burstable"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_have_the_sizes_that_the_figures_are_for() {
        let text = post_file();
        let objects: Vec<&str> = text
            .lines()
            .map(|line| line.split_once('\t').unwrap().1)
            .collect();
        assert_eq!(objects.len(), PODS + NAMESPACES + 3);
        let pods = &objects[objects.len() - PODS..];
        let mean = pods.iter().map(|pod| pod.len()).sum::<usize>() / PODS;
        // The server adds about 130 bytes of metadata.
        assert!((1000..1200).contains(&mean), "{mean} bytes a Pod");
        assert!(
            (850..1024).contains(&objects[1].len()),
            "{}",
            objects[1].len()
        );
        assert!(
            (20 * 1024 - 200..20 * 1024).contains(&objects[2].len()),
            "{}",
            objects[2].len()
        );
    }
}
