//! Attributes of a link in a message of rtnetlink.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

/// Alias of links that hublet creates (`ip link` shows it): a later daemon may remove them.
pub(crate) const ALIAS: &str = "made by hublet";

/// True if a hublet created the link.
pub(crate) fn is_ours(link: &LinkMessage) -> bool {
    link.attributes
        .contains(&LinkAttribute::IfAlias(ALIAS.into()))
}

pub(crate) fn name_of(link: &LinkMessage) -> String {
    let mut attributes = link.attributes.iter();
    let name = attributes.find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

/// The type as `ip -d link` shows it; none for a network card.
pub(crate) fn info_kind(link: &LinkMessage) -> Option<&InfoKind> {
    link_infos(link).iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn link_infos(link: &LinkMessage) -> &[LinkInfo] {
    let mut attributes = link.attributes.iter();
    let infos = attributes.find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos.as_slice()),
        _ => None,
    });
    infos.unwrap_or_default()
}

/// The type, for people.
pub(crate) fn kind_name(link: &LinkMessage) -> String {
    match info_kind(link) {
        Some(InfoKind::Other(other)) => other.clone(),
        Some(kind) => kind.to_string(),
        None if name_of(link) == "lo" => "loopback".into(),
        None => "device".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        message
    }

    #[test]
    fn a_link_is_ours_by_its_alias_only() {
        let name = LinkAttribute::IfName("hub-dummy0".into());
        assert!(!is_ours(&link(vec![name.clone()])));
        let alias = LinkAttribute::IfAlias(ALIAS.into());
        assert!(is_ours(&link(vec![name, alias])));
    }

    #[test]
    fn types_have_names() {
        let named = |name: &str| LinkAttribute::IfName(name.into());
        let of_type = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        assert_eq!(kind_name(&link(vec![named("lo")])), "loopback");
        assert_eq!(kind_name(&link(vec![named("eth0")])), "device");
        let bridge = link(vec![named("b"), of_type(InfoKind::Bridge)]);
        assert_eq!(kind_name(&bridge), "bridge");
        let other = link(vec![of_type(InfoKind::Other("openvswitch".into()))]);
        assert_eq!(kind_name(&other), "openvswitch");
        assert_eq!(name_of(&other), "");
    }
}
