//! Associations of outbounds that carry no datagrams.

use super::*;

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
