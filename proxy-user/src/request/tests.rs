use super::*;

fn read(call: &str, check: impl FnOnce(Reading<'_>)) {
    let (method, uri) = call.split_once(' ').unwrap();
    let uri: Uri = uri.parse().unwrap_or_else(|e| panic!("{call}: {e}"));
    check(ApiRequest::parse(&method.parse().unwrap(), &uri));
}

/// `METHOD uri → verb group version resource subresource namespace name`, "-" for empty.
#[test]
fn requests_are_taken_apart_like_the_api_server_does() {
    let table = [
        ("GET /api/v1/namespaces/default/pods/pod-a", "get - v1 pods - default pod-a"),
        ("GET /api/v1/namespaces/default/pods", "list - v1 pods - default -"),
        ("GET /api/v1/namespaces/default/config%6Daps", "list - v1 configmaps - default -"),
        ("GET /api/v1/pods?watch=true", "watch - v1 pods - - -"),
        ("GET /api/v1/watch/pods", "watch - v1 pods - - -"),
        ("GET /api/v1/namespaces/default", "get - v1 namespaces - - default"),
        ("GET /api/v1/namespaces", "list - v1 namespaces - - -"),
        ("PUT /api/v1/namespaces/x/finalize", "update - v1 namespaces finalize - x"),
        ("PATCH /api/v1/namespaces/default/pods/a/status", "patch - v1 pods status default a"),
        (
            "GET /apis/crd.projectcalico.org/v1/ipamblocks/10-0-0-0-26",
            "get crd.projectcalico.org v1 ipamblocks - - 10-0-0-0-26",
        ),
        (
            "POST /apis/crd.projectcalico.org/v1/ipamhandles",
            "create crd.projectcalico.org v1 ipamhandles - - -",
        ),
        ("DELETE /api/v1/namespaces/a/configmaps", "deletecollection - v1 configmaps - a -"),
        ("DELETE /api/v1/namespaces/a/configmaps/b", "delete - v1 configmaps - a b"),
        ("GET /apis/apps/v1", "get - - - - - -"),
        ("GET /api/v1/", "get - - - - - -"),
        ("GET /api", "get - - - - - -"),
        ("GET /", "get - - - - - -"),
        ("GET /version", "get - - - - - -"),
        ("POST /version", "other - - - - - -"),
    ];
    for (input, expected) in table {
        read(input, |reading| {
            let r = reading.understood().unwrap_or_else(|| panic!("{input} is not understood"));
            let dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
            let got = [&*r.group, &r.version, &r.resource, &r.subresource, &r.namespace, &r.name].map(dash);
            assert_eq!(format!("{} {}", r.verb.as_str(), got.join(" ")), expected, "{input}");
        });
    }
}

#[test]
fn equal_selectors_have_one_spelling() {
    let labels = |call: &str| {
        let mut labels = String::new();
        read(call, |r| labels = r.understood().unwrap().query.label_selector.clone().into_owned());
        labels
    };
    assert_eq!(labels("GET /api/v1/pods?labelSelector=b%3D1,a%3D2&fieldSelector=x%3Dy"), "a=2,b=1");
    assert_eq!(labels("GET /api/v1/pods?fieldSelector=x%3Dy&label%53elector=a%3D2%2Cb%3D1"), "a=2,b=1");
    assert_eq!(labels("GET /api/v1/pods?labelSelector=z+in+(b,a),c"), "z in (b,a),c");
}

#[test]
fn a_request_that_is_not_wholly_understood_keeps_its_verb_and_has_no_key() {
    let table = [
        ("GET /api/v1/pods?labelSelector=a%3Db&labelSelector=", Verb::List),
        ("GET /api/v1/pods?labelSelector=a%3Db;limit=1", Verb::List),
        ("GET /api/v1/pods?labelSelector=a%3Db&x=%zz", Verb::List),
        ("GET /api/v1/pods?watch=true&watch=false", Verb::Watch),
        ("GET /api/v1/pods?watch=false&watch=true", Verb::List),
        ("GET /api/v1/pods?w%61tch=yes&limit=many", Verb::Watch),
        ("GET /api/v1/watch/namespaces/d/pods/a", Verb::Watch),
        ("GET /api/v1/watch/pods?sendInitialEvents=true", Verb::Watch),
        ("GET /api/v1/namespaces/d/pods%2Fa", Verb::Get),
        ("GET /api/v1%2Fnamespaces/d/pods?watch=1", Verb::Watch),
        ("GET /api/v1/namespaces/../pods/x", Verb::Get),
        ("GET /api/v1/namespaces/d/secrets/s1%23status", Verb::Get),
        ("GET /api/v1/namespaces/d%3Fl=a/pods", Verb::List),
        ("GET /api/v1/namespaces/d/pods/a/status/b", Verb::Get),
        ("GET /api/v1/pods/", Verb::List),
        ("GET /api/v1/pods?resourceVersion=now", Verb::List),
        ("GET /api/v1/namespaces/d/pods/a?export=true", Verb::Get),
        ("GET /openapi/v2?x=1", Verb::Document),
        ("GET /openapi/v2?hash=1", Verb::Document),
        ("GET /v%65rsion", Verb::Document),
    ];
    for (input, verb) in table {
        read(input, |reading| {
            assert!(reading.understood().is_none(), "{input} is understood");
            assert_eq!(reading.verb, verb, "{input}");
        });
    }
}
