//! A `Status` of any words reads back, in both encodings: code and five lines.
#![no_main]

use hublet_wire::json::{StatusHead, parse_head};
use hublet_wire::media::Encoding;
use hublet_wire::protobuf::{Unknown, parse_status};
use hublet_wire::status::{Status, StatusDetails};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &str)| {
    let (code, text) = input;
    let mut lines = text.splitn(5, '\n');
    let mut next = || lines.next();
    let (reason, message) = (next().unwrap_or_default(), next().unwrap_or_default());
    let details = next().map(|name| StatusDetails {
        name,
        group: next().unwrap_or_default(),
        resource: next().unwrap_or_default(),
    });
    let status = Status {
        code,
        reason,
        message,
        details,
    };
    let expected = StatusHead {
        status: "Failure".into(),
        reason: reason.into(),
        name: details.map_or("", |details| details.name).into(),
        resource: details.map_or("", |details| details.resource).into(),
    };
    let body = status.encode(Encoding::Json);
    let head = parse_head(&body).expect("JSON");
    assert_eq!((&*head.kind, head.status), ("Status", expected));
    let value: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (&value["message"], &value["code"]),
        (&message.into(), &code.into())
    );
    let body = status.encode(Encoding::Protobuf);
    let unknown = Unknown::parse(&body).expect("protobuf");
    assert_eq!(unknown.type_meta.kind, "Status");
    let read = parse_status(unknown.raw).expect("protobuf");
    assert_eq!(
        read,
        parse_head(&status.encode(Encoding::Json))
            .expect("JSON")
            .status
    );
});
