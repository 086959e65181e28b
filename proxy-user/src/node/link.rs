//! What the kernel says of a link. In: a message of rtnetlink's. Out: its name, its kind, whether it is hublet's.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

/// Written into the link's alias (`ip link` shows it), so that a later daemon knows it may be removed.
pub(crate) const ALIAS: &str = "made by hublet";

/// Did a hublet make it?
pub(crate) fn is_ours(link: &LinkMessage) -> bool {
    link.attributes
        .contains(&LinkAttribute::IfAlias(ALIAS.into()))
}

pub(crate) fn name_of(link: &LinkMessage) -> String {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
    name.unwrap_or_default()
}

/// What `ip -d link` calls it; none for a network card.
pub(crate) fn info_kind(link: &LinkMessage) -> Option<&InfoKind> {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
    infos.into_iter().flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// What kind of link it is, in a word.
pub(crate) fn kind_of(link: &LinkMessage) -> String {
    match info_kind(link) {
        Some(InfoKind::Other(other)) => other.clone(),
        Some(kind) => kind.to_string(),
        None if name_of(link) == "lo" => "loopback".into(),
        None => "device".into(),
    }
}
