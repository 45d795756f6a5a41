//! Associations of outbounds that carry no datagrams.

use super::*;
use crate::data::way::Way;

#[tokio::test]
async fn what_has_nowhere_to_go_is_dropped_for_a_while_and_says_why() {
    for (outbound, outcome) in [
        ("block://", Outcome::Blocked),
        ("http://192.0.2.1:8080", Outcome::Unsupported),
    ] {
        let bench = Bench::new(outbound, 10, "127.0.0.1:0");
        let (device, client) = bind("127.0.0.1:0").await;
        let target: SocketAddr = "192.0.2.9:443".parse().expect("literal");
        for _ in 0..100 {
            bench.steer(&[(client, target, b"x")]);
        }
        assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 1);
        let ended = async {
            while bench.counters().ended(outcome).load(Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, ended).await.expect("it ends after a while");
        assert_eq!(bench.relay.table().len(), 0);
        assert_eq!(bench.counters().up.load(Relaxed), 0);
        let answer = device.try_recv(&mut [0]);
        assert!(answer.is_err(), "{answer:?}");
    }
}

#[tokio::test]
async fn a_server_behind_another_one_carries_datagrams_only_on_a_stream() {
    let other = || Way::named("other", "socks5://192.0.2.1:1080");
    for (url, carries) in [
        ("ss://aes-128-gcm:secret@192.0.2.2:8388", false),
        ("socks5://192.0.2.2:1080", false),
        ("trojan://secret@192.0.2.2", true),
    ] {
        let way = Way::fixed(url);
        assert!(upstream::has_relay(&way), "{way:?}");
        assert_eq!(upstream::has_relay(&way.via(other())), carries, "{url}");
        let directly = Way::fixed(url).via(Way::fixed("direct://"));
        assert!(upstream::has_relay(&directly), "{url}");
    }
}
