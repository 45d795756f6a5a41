use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn addresses_are_read_as_they_were_written(
        client in address(),
        destination in address(),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut message = vec![0; 1 + 2 * ADDRESS];
        message[0] = DATAGRAM;
        write_address(&mut message[1..], client);
        write_address(&mut message[1 + ADDRESS..], destination);
        message.extend(&payload);
        let wanted = Message::Datagram(client, destination, &payload);
        prop_assert_eq!(Message::parse(&message), Some(wanted));
        message[0] = RELEASE;
        prop_assert_eq!(Message::parse(&message), Some(Message::Release(client)));
    }

    #[test]
    fn what_is_cut_off_is_no_message(length in 0..2 * ADDRESS, kind in 0..6_u8) {
        let mut message = vec![4; 1 + length];
        message[0] = kind;
        let whole = match kind {
            RELEASE => length >= ADDRESS,
            COUNTS => length >= 16,
            END => length >= 8,
            _ => false,
        };
        prop_assert_eq!(Message::parse(&message).is_some(), whole);
    }
}

#[tokio::test]
async fn datagrams_of_a_predecessors_clients_go_there_until_it_lets_them_go() {
    let client = |port: u16| SocketAddr::from(([10, 0, 0, 5], port));
    let far = SocketAddr::from(([203, 0, 113, 1], 443));
    let (theirs, ours) = Channel::pair().unwrap();
    let predecessors = Predecessors::default();
    let predecessor = Arc::new(Predecessor {
        pid: 1,
        channel: Channel::new(ours).unwrap(),
        clients: Mutex::new([client(1), client(2)].into()),
        connections: AtomicU64::new(0),
        associations: AtomicU64::new(0),
        task: Mutex::default(),
    });
    predecessors.add(Arc::clone(&predecessor));
    let batch = || {
        let mut datagrams: [Option<Datagram<'static>>; BATCH] = [None; BATCH];
        for (place, port) in datagrams.iter_mut().zip([3, 1, 3, 2]) {
            *place = Some((client(port), far, b"question"));
        }
        datagrams
    };
    let mut datagrams = batch();
    assert_eq!(predecessors.take(&mut datagrams), 0);
    let left: Vec<u16> = datagrams
        .iter()
        .flatten()
        .map(|(client, ..)| client.port())
        .collect();
    assert_eq!(left, [3, 3]);
    let mut message = vec![0; MESSAGE];
    for port in [1, 2] {
        let length = theirs.receive(&mut message).await.unwrap();
        let wanted = Message::Datagram(client(port), far, b"question");
        assert_eq!(Message::parse(&message[..length]), Some(wanted));
    }
    predecessor.clients().remove(&client(1));
    let mut datagrams = batch();
    predecessors.take(&mut datagrams);
    assert_eq!(datagrams.iter().flatten().count(), 3);
    // One that is gone loses datagrams, and no more.
    drop(theirs);
    let mut datagrams = batch();
    assert_eq!(predecessors.take(&mut datagrams), 1);
    predecessors.remove(&predecessor);
    assert!(predecessors.is_empty());
    let mut datagrams = batch();
    assert_eq!(predecessors.take(&mut datagrams), 0);
    assert_eq!(datagrams.iter().flatten().count(), 4);
}

#[tokio::test]
async fn a_predecessor_is_told_how_long_it_has_and_waited_for() {
    let (theirs, ours) = Channel::pair().unwrap();
    let predecessors = Arc::new(Predecessors::default());
    let predecessor = Arc::new(Predecessor {
        pid: 1,
        channel: Channel::new(ours).unwrap(),
        clients: Mutex::default(),
        connections: AtomicU64::new(0),
        associations: AtomicU64::new(0),
        task: Mutex::default(),
    });
    predecessors.add(Arc::clone(&predecessor));
    let limit = Duration::from_secs(3600);
    let ending = tokio::spawn({
        let predecessors = Arc::clone(&predecessors);
        async move { predecessors.end(limit).await }
    });
    let mut message = [0; 16];
    let length = theirs.receive(&mut message).await.unwrap();
    assert_eq!(
        Message::parse(&message[..length]),
        Some(Message::End(limit))
    );
    tokio::task::yield_now().await;
    assert!(!ending.is_finished());
    predecessors.remove(&predecessor);
    ending.await.unwrap();
    // Without one there is nothing to wait for.
    predecessors.end(limit).await;
}
