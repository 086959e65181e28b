//! A watch's events, one by one. In: a frame. Out: what it tells of its object and of its collection.

use super::MAX_MEMBERS;
use crate::cache::change::{Op, Said};
use crate::cache::exchange::Exchange;
use crate::cache::record::{Collection, NewRecord, TypeHint};
use crate::cache::variants;
use hublet_wire::media::Encoding;
use hublet_wire::watch::OnFrame;
use hublet_wire::{CodecError, json, protobuf};

/// The treatment of each frame of a watch.
pub(super) fn frame<'a>(
    exchange: &'a Exchange,
    members: &'a mut Option<Vec<Vec<u8>>>,
    (now, ops): (u64, &'a mut Vec<Op>),
) -> Box<OnFrame<'a>> {
    Box::new(move |frame| match exchange.encoding {
        Encoding::Json => {
            let (kind, object) = json::watch_event(frame)?;
            event(exchange, &kind, object, members, (now, ops))
        }
        Encoding::Protobuf => {
            let (kind, object) = protobuf::watch_event(frame)?;
            event(exchange, kind, object, members, (now, ops))
        }
    })
}

fn event(
    exchange: &Exchange,
    kind: &str,
    object: &[u8],
    members: &mut Option<Vec<Vec<u8>>>,
    (now, ops): (u64, &mut Vec<Op>),
) -> Result<(), CodecError> {
    let collection = || exchange.key.clone();
    if kind == "BOOKMARK" {
        return bookmark(exchange, object, members, (now, ops));
    }
    if !matches!(kind, "ADDED" | "MODIFIED" | "DELETED") {
        return Err(CodecError::Json(format!("the watch ended with {kind}")));
    }
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(object, TypeHint::default(), now)?,
        Encoding::Protobuf => NewRecord::protobuf(object, now)?,
    };
    let key = exchange.object_key(&record.namespace, &record.name);
    let version = record.version;
    let joins = kind != "DELETED";
    if let (Some(members), true) = (members.as_mut(), joins) {
        if members.len() >= MAX_MEMBERS {
            return Err(CodecError::Limit("a watch has too many initial events"));
        }
        members.push(key.clone());
    }
    let member = exchange.selective().then(|| (key.clone(), joins));
    let said = Said::event(now);
    ops.push(if joins {
        // Initial events are a list.
        let said = if members.is_some() {
            Said {
                at: now,
                ..exchange.said_of_many()
            }
        } else {
            said
        };
        Op::Upsert { key, record, said }
    } else if !exchange.selective() || exchange.fixed_selector {
        Op::Gone { key, version, said }
    } else {
        Op::Forget { key, version }
    });
    // Initial events come in no order of versions: the bookmark behind them counts.
    if members.is_none() {
        let departs = !joins;
        ops.push(Op::Advance {
            collection: collection(),
            from: exchange.from,
            version,
            at: now,
            member,
            departs,
        });
    }
    Ok(())
}

fn bookmark(
    exchange: &Exchange,
    object: &[u8],
    members: &mut Option<Vec<Vec<u8>>>,
    (now, ops): (u64, &mut Vec<Op>),
) -> Result<(), CodecError> {
    let (api_version, kind, version, end) = match exchange.encoding {
        Encoding::Json => {
            let head = json::head(object)?;
            let (version, end) = (head.meta.version(), head.meta.initial_events_end);
            (
                head.api_version.into_owned(),
                head.kind.into_owned(),
                version,
                end,
            )
        }
        Encoding::Protobuf => {
            let unknown = protobuf::Unknown::parse(object)?;
            let meta = protobuf::object_meta(unknown.raw)?;
            let (version, end) = (meta.version(), meta.initial_events_end);
            (
                unknown.api_version.to_owned(),
                unknown.kind.to_owned(),
                version,
                end,
            )
        }
    };
    if variants::is_other(&api_version, &kind) {
        return Err(CodecError::OtherForm(kind));
    }
    let Some(version) = version else {
        return Ok(());
    };
    if let (true, Some(members)) = (end, members.take()) {
        // A group of custom resources has a dot and is served unstructured; built-in ones are typed.
        let unstructured = is_custom(&exchange.resource);
        let record = Collection {
            unstructured,
            ..Collection::new(
                version,
                now,
                format!("{kind}List"),
                exchange.api_version.clone(),
            )
        };
        let said = Said {
            at: now,
            ..exchange.said_of_many()
        };
        ops.push(Op::Complete {
            collection: exchange.key.clone(),
            record,
            members,
            said,
        });
    } else if members.is_none() {
        let collection = exchange.key.clone();
        let from = exchange.from;
        ops.push(Op::Advance {
            collection,
            from,
            version,
            at: now,
            member: None,
            departs: false,
        });
    }
    Ok(())
}

/// The API server's own groups end in `.k8s.io` or have no dot; all others are custom resources or aggregated.
fn is_custom(resource: &[u8]) -> bool {
    let group = resource.split(|b| *b == b'/').next().unwrap_or_default();
    group.contains(&b'.') && !group.ends_with(b".k8s.io")
}
