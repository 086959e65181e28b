//! `METHOD URI`: a request that is understood means the same in another spelling.
#![no_main]

use http::{Method, Uri};
use hublet_wire::request::{ApiRequest, RequestInfo};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

fuzz_target!(|input: &str| {
    let Some((method, uri)) = input.split_once(' ') else {
        return;
    };
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), uri.parse::<Uri>()) else {
        return;
    };
    let info = RequestInfo::parse(&method, &uri);
    let _ = (info.verb().as_str(), info.describe(), info.is_proxied());
    let Some(request) = info.understood() else {
        return;
    };
    assert_eq!(request.verb(), info.verb());
    assert_same_when_spelled_anew(&method, request, uri.query());
    assert_same_in_reverse(&method, request, uri.query());
});

/// All that a key of the store or a decision is made of.
fn meaning(request: &ApiRequest) -> impl PartialEq + std::fmt::Debug {
    let names = [
        request.group(),
        request.version(),
        request.resource(),
        request.subresource(),
        request.namespace(),
        request.name(),
        request.label_selector(),
        request.field_selector(),
        request.resource_version(),
        request.continue_token(),
        request.hash(),
    ];
    (request.verb(), names.map(str::to_owned), *request.options())
}

/// Every name is escaped as a whole.
fn assert_same_when_spelled_anew(method: &Method, request: &ApiRequest, query: Option<&str>) {
    if !request.is_resource() || request.path().contains("/watch/") {
        return;
    }
    let group = match request.group() {
        "" => "/api".to_owned(),
        group => format!("/apis/{}", escape(group)),
    };
    let namespace = match request.namespace() {
        "" => String::new(),
        namespace => format!("/namespaces/{}", escape(namespace)),
    };
    let names = [request.resource(), request.name(), request.subresource()];
    let names = names.map(|name| match name {
        "" => String::new(),
        name => format!("/{}", escape(name)),
    });
    let version = escape(request.version());
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("{group}/{version}{namespace}{}{query}", names.concat());
    assert_same(method, request, &uri);
}

/// The query's pairs have no order, since none may stand twice.
fn assert_same_in_reverse(method: &Method, request: &ApiRequest, query: Option<&str>) {
    let Some(query) = query else { return };
    let pairs: Vec<&str> = query.split('&').rev().collect();
    let uri = format!("{}?{}", request.path(), pairs.join("&"));
    assert_same(method, request, &uri);
}

fn assert_same(method: &Method, request: &ApiRequest, uri: &str) {
    // A URI of 64 KiB is refused by the `http` crate.
    let Ok(parsed) = uri.parse::<Uri>() else {
        return;
    };
    let info = RequestInfo::parse(method, &parsed);
    let again = info
        .understood()
        .unwrap_or_else(|| panic!("{uri} is not understood"));
    assert_eq!(meaning(request), meaning(again), "{uri}");
}

fn escape(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}
