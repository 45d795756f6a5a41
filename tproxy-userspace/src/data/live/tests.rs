use proptest::prelude::*;

use super::*;
use crate::data::router::Router;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a literal")
}

fn chosen(live: &Live, router: &Router, client: &str, destination: &str) -> Arc<Flow> {
    let flow = live.enter(Protocol::Tcp, address(client), address(destination));
    let query = crate::policy::rule::Query {
        protocol: flow.protocol,
        source: flow.client,
        destination: flow.destination,
        name: None,
    };
    flow.set_choice(router.default_choice(&query));
    flow
}

#[test]
fn bytes_are_accounted_once_while_a_flow_lives_and_after() {
    let (live, router) = (Live::default(), Router::fixed("direct://"));
    let one = chosen(&live, &router, "10.0.0.5:1", "203.0.113.1:443");
    let other = chosen(&live, &router, "[::ffff:10.0.0.5]:2", "203.0.113.200:80");
    let third = chosen(&live, &router, "[2001:db8::5]:2", "[2001:db8:1:2::3]:443");
    one.count_up(5);
    one.count_down(700);
    other.count_up(11);
    third.count_down(13);
    let account = live.account();
    let bytes = |up, down| Bytes { up, down };
    assert_eq!(
        account.devices,
        [
            (address("10.0.0.5:0").ip(), bytes(16, 700)),
            (address("[2001:db8::5]:0").ip(), bytes(0, 13)),
        ]
    );
    assert_eq!(
        account.networks,
        [
            ("203.0.113.0/24".parse().unwrap(), bytes(16, 700)),
            ("2001:db8:1::/48".parse().unwrap(), bytes(0, 13)),
        ]
    );
    assert_eq!(account.outbounds, [("fixed".to_owned(), bytes(16, 713))]);
    live.leave(&one);
    assert_eq!(live.account(), account);
    assert!(live.get(one.id).is_none());
    for flow in [&other, &third] {
        live.leave(flow);
    }
    assert_eq!(live.account(), account);
    assert!(live.all().is_empty());
}

#[test]
fn numbers_are_not_used_again_and_the_oldest_comes_first() {
    let live = Live::default();
    let enter = |live: &Live| {
        let (one, other) = (address("10.0.0.5:1"), address("203.0.113.1:443"));
        live.enter(Protocol::Udp, one, other)
    };
    let first = enter(&live);
    live.leave(&first);
    let rest: Vec<_> = (0..100).map(|_| enter(&live)).collect();
    let ids: Vec<_> = live.all().iter().map(|flow| flow.id).collect();
    assert!(!ids.contains(&first.id));
    assert_eq!(ids, rest.iter().map(|flow| flow.id).collect::<Vec<_>>());
}

#[test]
fn a_status_can_be_read_back() {
    let (live, router) = (Live::default(), Router::fixed("direct://"));
    let flow = chosen(&live, &router, "10.0.0.5:1", "203.0.113.1:443");
    flow.set_name(Some("www.example".into()));
    flow.count_up(3);
    let status = flow.status();
    assert_eq!(status.outbound.as_deref(), Some("fixed"));
    let text = serde_json::to_string(&status).unwrap();
    assert!(text.contains(r#""up":3"#), "{text}");
    assert_eq!(serde_json::from_str::<FlowStatus>(&text).unwrap(), status);
}

proptest! {
    // Each case fills the list.
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn no_byte_is_lost_when_there_are_more_devices_than_places(
        bytes in proptest::collection::vec((any::<u16>(), 1..1000_u64, 0..1000_u64), 1..40),
    ) {
        let mut sums = Sums::default();
        for device in 0..ACCOUNTED as u32 - 10 {
            let address = IpAddr::from((0xc000_0000 + device).to_be_bytes());
            sums.devices.insert(address, Bytes::default());
        }
        let live = Live::default();
        let mut wanted = Bytes::default();
        for (device, up, down) in bytes {
            let [high, low] = device.to_be_bytes();
            let client = SocketAddr::new([10, 0, high, low].into(), 1);
            let flow = live.enter(Protocol::Tcp, client, client);
            flow.count_up(up);
            flow.count_down(down);
            wanted.add(Bytes { up, down });
            sums.add(&flow);
        }
        prop_assert!(sums.devices.len() <= ACCOUNTED);
        let mut found = sums.other_devices;
        sums.devices.values().for_each(|bytes| found.add(*bytes));
        prop_assert_eq!(found, wanted);
    }
}
