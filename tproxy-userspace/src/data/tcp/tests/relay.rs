//! Bytes through the relay: spliced to a plain server, copied to one behind TLS. Both have to do the same.

use super::*;
use tokio::io::split;

#[tokio::test]
async fn fin_of_the_device_leaves_the_way_back_open() {
    for mut pair in Pair::both().await {
        pair.device.write_all(b"question").await.expect("connected");
        pair.device.shutdown().await.expect("connected");
        assert_eq!(read(&mut pair.server, 8).await, b"question");
        assert!(is_end(&mut pair.server).await);
        send(&mut pair.server, b"answer").await;
        assert_eq!(read(&mut pair.device, 6).await, b"answer");
        pair.server.shutdown().await.expect("half open");
        assert!(is_end(&mut pair.device).await);
        assert_eq!(pair.outcome().await, Outcome::Finished);
    }
}

#[tokio::test]
async fn fin_of_the_server_leaves_the_way_up_open() {
    for mut pair in Pair::both().await {
        pair.server.shutdown().await.expect("connected");
        assert!(is_end(&mut pair.device).await);
        send(&mut pair.device, b"still here").await;
        assert_eq!(read(&mut pair.server, 10).await, b"still here");
        pair.device.shutdown().await.expect("half open");
        assert!(is_end(&mut pair.server).await);
        assert_eq!(pair.outcome().await, Outcome::Finished);
    }
}

#[tokio::test]
async fn a_reset_passes_in_both_directions() {
    for mut pair in Pair::both().await {
        reset_on_close(&pair.device);
        drop(pair.device);
        let error = timeout(SOON, pair.server.read(&mut [0; 64])).await;
        let error = error.expect("in time").expect_err("not FIN");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(outcome(&pair.relay).await, Outcome::DeviceReset);
    }
    for mut pair in Pair::both().await {
        // What was said before has arrived.
        send(&mut pair.server, b"x").await;
        read(&mut pair.device, 1).await;
        reset_on_close(pair.server.socket());
        drop(pair.server);
        assert!(is_reset(&mut pair.device).await);
        assert_eq!(outcome(&pair.relay).await, Outcome::UpstreamReset);
    }
}

#[tokio::test]
async fn a_reset_after_fin_is_seen_while_the_other_side_idles() {
    for mut pair in Pair::both().await {
        pair.device.shutdown().await.expect("connected");
        assert!(is_end(&mut pair.server).await);
        reset_on_close(&pair.device);
        drop(pair.device);
        // Past FIN there is nothing to read; the RST shows as an error.
        let errors = pair.server.socket().ready(tokio::io::Interest::ERROR);
        timeout(SOON, errors)
            .await
            .expect("in time")
            .expect("polled");
        let sent = async {
            pair.server.write_all(b"x").await?;
            pair.server.flush().await
        };
        let error = sent.await.expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(outcome(&pair.relay).await, Outcome::DeviceReset);
    }
    for mut pair in Pair::both().await {
        pair.server.shutdown().await.expect("connected");
        assert!(is_end(&mut pair.device).await);
        reset_on_close(pair.server.socket());
        drop(pair.server);
        assert_eq!(outcome(&pair.relay).await, Outcome::UpstreamReset);
    }
}

#[tokio::test]
async fn tls_that_ends_without_a_word_is_a_reset() {
    let mut pair = Pair::secure(&Limits::default()).await;
    send(&mut pair.server, b"half of").await;
    assert_eq!(read(&mut pair.device, 7).await, b"half of");
    // FIN of TCP alone: somebody on the way may have sent it.
    socket2::SockRef::from(pair.server.socket())
        .shutdown(Shutdown::Write)
        .expect("connected");
    assert!(is_reset(&mut pair.device).await);
    assert_eq!(pair.outcome().await, Outcome::UpstreamReset);
}

/// Numbers that repeat with no power of two.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|number| (number % 251) as u8).collect()
}

async fn transfer(pair: Pair, bytes: usize) -> Outcome {
    let sent = pattern(bytes);
    let Pair {
        device,
        server,
        relay,
    } = pair;
    let (mut device_read, mut device_write) = split(device);
    let (mut server_read, mut server_write) = split(server);
    let mut up = Vec::new();
    let mut down = Vec::new();
    // Both directions at once; the device reads after a while, so that buffers and pipe fill up.
    let work = async {
        tokio::try_join!(
            async {
                device_write.write_all(&sent).await?;
                device_write.shutdown().await
            },
            async {
                server_write.write_all(&sent).await?;
                server_write.shutdown().await
            },
            server_read.read_to_end(&mut up),
            async {
                tokio::task::yield_now().await;
                device_read.read_to_end(&mut down).await
            },
        )
    };
    timeout(SOON, work).await.expect("in time").expect("whole");
    assert!(up == sent, "the way up changed bytes");
    assert!(down == sent, "the way down changed bytes");
    let counters = &relay.hands.shared.counters;
    assert_eq!(counters.up.load(Relaxed), bytes as u64);
    assert_eq!(counters.down.load(Relaxed), bytes as u64);
    outcome(&relay).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_stay_equal_through_pipes() {
    let pair = Pair::new().await;
    let relay = Arc::clone(&pair.relay);
    assert_eq!(transfer(pair, 48 << 20).await, Outcome::Finished);
    assert_eq!(relay.hands.shared.counters.pipe_missing.load(Relaxed), 0);
    assert_eq!(relay.pool.lent(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_stay_equal_without_pipes() {
    let pair = Pair::over(relay_with(10, 0, "direct://", &Limits::default())).await;
    let relay = Arc::clone(&pair.relay);
    assert_eq!(transfer(pair, 8 << 20).await, Outcome::Finished);
    assert!(relay.hands.shared.counters.pipe_missing.load(Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_stay_equal_through_tls() {
    let pair = Pair::secure(&Limits::default()).await;
    let relay = Arc::clone(&pair.relay);
    assert_eq!(transfer(pair, 3 << 20).await, Outcome::Finished);
    assert_eq!(relay.pool.lent(), 0);
}

#[tokio::test]
async fn single_bytes_pass_one_by_one() {
    for mut pair in Pair::both().await {
        for number in 0..1000_u32 {
            let byte = [(number % 251) as u8];
            pair.device.write_all(&byte).await.expect("connected");
            assert_eq!(read(&mut pair.server, 1).await, byte);
            send(&mut pair.server, &byte).await;
            assert_eq!(read(&mut pair.device, 1).await, byte);
        }
    }
}

#[tokio::test]
async fn many_single_bytes_fill_the_pipe_by_pages_not_by_bytes() {
    let mut pair = Pair::new().await;
    let sent = pattern(5000);
    for byte in &sent {
        pair.device.write_all(&[*byte]).await.expect("connected");
    }
    assert_eq!(read(&mut pair.server, 5000).await, sent);
}

#[tokio::test]
async fn an_idle_connection_holds_no_pipe_and_a_stuck_one_does() {
    let mut pair = Pair::new().await;
    pair.device.write_all(b"a").await.expect("connected");
    read(&mut pair.server, 1).await;
    pair.server.write_all(b"b").await.expect("connected");
    read(&mut pair.device, 1).await;
    // On one thread, reading "b" means that the relay was last polled with nothing left.
    assert_eq!(pair.relay.pool.lent(), 0);

    // The server does not read: bytes pile up until the relay holds some.
    let block = vec![0; 1 << 20];
    while pair.relay.pool.lent() == 0 {
        let written = timeout(SOON, pair.device.write_all(&block)).await;
        written.expect("in time").expect("connected");
        tokio::task::yield_now().await;
    }
    // A pipe with bytes in it does not go back.
    pair.relay.reset_all();
    let pool = Arc::clone(&pair.relay.pool);
    pair.outcome().await;
    assert_eq!(pool.lent(), 0);
}

#[tokio::test]
async fn idle_connections_are_reset_and_busy_ones_are_not() {
    let limits = Limits {
        tcp_idle: Duration::from_millis(300),
        ..Limits::default()
    };
    for secure in [false, true] {
        let mut pair = if secure {
            Pair::secure(&limits).await
        } else {
            Pair::over(relay_with(10, 8, "direct://", &limits)).await
        };
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(700) {
            ticks.tick().await;
            pair.device.write_all(b"x").await.expect("it lives");
            read(&mut pair.server, 1).await;
        }
        assert!(is_reset(&mut pair.device).await);
        pair.server.read(&mut [0]).await.expect_err("reset");
        assert_eq!(pair.outcome().await, Outcome::Idle);
    }
}
