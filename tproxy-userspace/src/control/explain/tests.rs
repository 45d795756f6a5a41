use tproxy_common::abi::Link;

use super::*;

const LAN: u32 = 2;
const OTHER: u32 = 3;
const WAN: u32 = 4;

fn link(index: u32, name: &str, flags: u32) -> AttachedLink {
    AttachedLink {
        index,
        name: name.to_owned(),
        link: Link { flags },
    }
}

fn known() -> Known {
    let prefix = |text: &str| text.parse::<IpNet>().expect("a literal");
    Known {
        links: vec![
            link(LAN, "lan0", Link::LAN),
            link(OTHER, "lan1", Link::LAN),
            link(WAN, "wan0", Link::WAN),
        ],
        sources: vec![
            (Via::arriving(LAN), prefix("10.77.0.0/24")),
            (Via::arriving(LAN), prefix("10.0.0.0/8")),
            (Via::arriving(LAN), prefix("2001:db8:77::/64")),
            (Via::arriving(OTHER), prefix("10.78.0.0/24")),
            (Via::leaving(WAN), prefix("192.0.2.1/32")),
        ],
        locals: vec![
            (prefix("10.77.0.1/32"), true),
            (prefix("10.0.0.2/32"), true),
            (prefix("192.0.2.1/32"), true),
            (prefix("192.0.2.0/24"), false),
        ],
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal")
}

fn way() -> Option<WayOut> {
    Some(WayOut {
        link: WAN,
        source: Some(ip("192.0.2.1")),
        mtu: None,
    })
}

fn arriving(link: u32, source: &str) -> Result<Course, NoCourse> {
    Ok(Course::Seen {
        via: Via::arriving(link),
        source: ip(source),
    })
}

fn leaving(source: &str) -> Result<Course, NoCourse> {
    Ok(Course::Seen {
        via: Via::leaving(WAN),
        source: ip(source),
    })
}

#[test]
fn a_device_is_found_that_is_not_the_gateway() {
    let far = ip("203.0.113.1");
    let course = |on| known().course(Sender::Anyone, far, on, way());
    // 10.0.0.2 would be the first, and is the gateway's own.
    assert_eq!(course(None), arriving(LAN, "10.0.0.3"));
    assert_eq!(course(Some("lan1")), arriving(OTHER, "10.78.0.2"));
    let v6 = known().course(Sender::Anyone, ip("2001:db8:f::1"), None, None);
    assert_eq!(v6, arriving(LAN, "2001:db8:77::2"));
    let error = known()
        .course(Sender::Anyone, ip("2001:db8:f::1"), Some("lan1"), None)
        .expect_err("no source");
    let error = error.to_string();
    assert!(
        error.contains("IPv6") && error.contains("lan1") && error.contains("--from"),
        "{error}"
    );
    let mut single = known();
    single.sources = vec![(
        Via::arriving(LAN),
        "10.9.9.9/32".parse().expect("a literal"),
    )];
    assert_eq!(
        single.course(Sender::Anyone, far, None, None),
        arriving(LAN, "10.9.9.9")
    );
}

#[test]
fn an_address_arrives_where_it_is_admitted() {
    let course =
        |source, on| known().course(Sender::Address(ip(source)), ip("203.0.113.1"), on, way());
    assert_eq!(course("10.77.0.9", None), arriving(LAN, "10.77.0.9"));
    // The longer prefix.
    assert_eq!(course("10.78.0.9", None), arriving(OTHER, "10.78.0.9"));
    assert_eq!(
        course("10.78.0.9", Some("lan0")),
        arriving(LAN, "10.78.0.9")
    );
    // Nowhere: the first link.
    assert_eq!(course("198.51.100.1", None), arriving(LAN, "198.51.100.1"));
}

#[test]
fn what_the_gateway_sends_leaves_by_its_way() {
    let far = ip("203.0.113.1");
    let course = |sender, on| known().course(sender, far, on, way());
    assert_eq!(course(Sender::Gateway, None), leaving("192.0.2.1"));
    assert_eq!(course(Sender::Gateway, Some("wan0")), leaving("192.0.2.1"));
    let own = Sender::Address(ip("192.0.2.1"));
    assert_eq!(course(own, None), leaving("192.0.2.1"));
    // On a link with devices it comes from outside, whoever it says it is.
    assert_eq!(course(own, Some("lan0")), arriving(LAN, "192.0.2.1"));
    assert_eq!(course(Sender::Anyone, Some("wan0")), leaving("192.0.2.1"));
    let stranger = Sender::Address(ip("198.51.100.1"));
    assert_eq!(course(stranger, Some("wan0")), leaving("198.51.100.1"));

    let not_wan = course(Sender::Gateway, Some("lan0"));
    assert_eq!(not_wan, Err(NoCourse::NotWan("lan0".to_owned())));

    let elsewhere = Some(WayOut {
        link: 9,
        source: Some(ip("192.0.2.1")),
        mtu: None,
    });
    let unseen = known().course(Sender::Gateway, far, None, elsewhere);
    assert_eq!(unseen, Ok(Course::Unseen(elsewhere)));
    let no_way = known().course(Sender::Gateway, far, None, None);
    assert_eq!(no_way, Ok(Course::Unseen(None)));
}

#[test]
fn a_link_that_is_not_attached_is_told() {
    let far = ip("203.0.113.1");
    let error = known().course(Sender::Anyone, far, Some("eth9"), way());
    let error = error.expect_err("no such link").to_string();
    assert!(error.contains("eth9") && error.contains("lan0"), "{error}");
}
