//! The stream, against a server's side in pieces of any size.

use std::io;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

use super::*;
use crate::data::outbound::Target;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let limit = Duration::from_secs(30);
    runtime
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(limit, future).await.expect("it hangs") })
}

fn keys_at(index: usize) -> Arc<Keys> {
    let all = all_keys();
    Arc::clone(&all[index % all.len()])
}

/// A stream, and the server's end of it.
fn connect(keys: &Arc<Keys>, room: usize) -> (ShadowsocksStream<DuplexStream>, DuplexStream) {
    let (client, server) = duplex(room);
    (
        ShadowsocksStream::new(client, keys, target().into()),
        server,
    )
}

async fn read_some(server: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = vec![0; 100_000];
    let length = server.read(&mut bytes).await.expect("the client sends");
    bytes.truncate(length);
    bytes
}

async fn error_of(stream: &mut ShadowsocksStream<DuplexStream>) -> io::Error {
    stream
        .read_to_end(&mut Vec::new())
        .await
        .expect_err("an error")
}

#[test]
fn the_target_goes_with_the_first_payload_or_by_a_flush() {
    for keys in all_keys() {
        run(async {
            let (mut stream, mut server) = connect(&keys, 1 << 20);
            // Nothing to write is no reason to write.
            assert_eq!(stream.write(b"").await.expect("nothing"), 0);
            stream.write_all(b"hello").await.expect("room");
            let (_, payload) = serve(&keys, &read_some(&mut server).await);
            assert_eq!(payload, b"hello");

            let (mut stream, mut server) = connect(&keys, 1 << 20);
            stream.flush().await.expect("room");
            let sent = read_some(&mut server).await;
            let (head, payload) = serve(&keys, &sent);
            assert_eq!(
                (&head[..], payload),
                (&[1, 192, 0, 2, 1, 1, 187][..], Vec::new())
            );
            stream.flush().await.expect("room");
            assert!(!stream.has_answered());
            let salt = &sent[..keys.method().key_length()];
            let banner = answer(&keys, salt, unix_seconds(), &[b"220 hello"]);
            server.write_all(&banner).await.expect("room");
            let mut text = [0; 9];
            stream.read_exact(&mut text).await.expect("the banner");
            assert_eq!(&text, b"220 hello");
            assert!(stream.has_answered());

            // A client that only ends its way says where to, too.
            let (mut stream, mut server) = connect(&keys, 1 << 20);
            stream.shutdown().await.expect("room");
            assert_eq!(serve(&keys, &read_some(&mut server).await).1, b"");
            assert_eq!(read_some(&mut server).await, b"", "the end");
        });
    }
}

#[test]
fn a_name_goes_as_a_name() {
    let name = "x".repeat(253);
    for name in ["example.com", &name] {
        for keys in all_keys() {
            let target = Target::Name(name, target().port());
            let mut out = Vec::new();
            let salt = random_salt(keys.method());
            let (_, taken) = Encoder::start(&keys, &salt, target, &[7; 70_000], &mut out);
            let (head, payload) = serve(&keys, &out);
            assert_eq!(
                head,
                [&[3, name.len() as u8], name.as_bytes(), &[1, 187]].concat()
            );
            assert_eq!(payload.len(), taken);
            assert!(taken > keys.method().longest_chunk() - 300);
        }
    }
}

#[test]
fn each_end_says_what_can_be_known() {
    for keys in all_keys() {
        run(async {
            // Closed without a word: perhaps a wrong password, perhaps a target that has nothing to say.
            let (mut stream, server) = connect(&keys, 1 << 20);
            drop(server);
            assert_eq!(stream.read(&mut [0; 9]).await.expect("an end"), 0);
            assert!(!stream.has_answered() && stream.fault().is_none());

            // Another password, or no Shadowsocks at all.
            let other = Keys::new(Method::Chacha20Poly1305, b"another").expect("a password");
            let foreign = answer(&other, &[], 0, &[&[7; 100]]);
            for garbage in [&foreign[..], &b"HTTP/1.1 400 Bad Request\r\n"[..]] {
                let (mut stream, mut server) = connect(&keys, 1 << 20);
                server.write_all(garbage).await.expect("room");
                drop(server);
                let error = error_of(&mut stream).await;
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                assert!(error.to_string().contains("password or method"), "{error}");
                assert_eq!(stream.fault(), Some(Fault::Key));
            }

            // Cut off, and changed on its way: what came before is read first.
            for (cut, fault) in [(true, Fault::Cut), (false, Fault::Forged)] {
                let (mut stream, mut server) = connect(&keys, 1 << 20);
                stream.flush().await.expect("room");
                let sent = read_some(&mut server).await;
                let salt = &sent[..keys.method().key_length()];
                let mut bytes = answer(&keys, salt, unix_seconds(), &[b"one", b"two"]);
                if cut {
                    bytes.pop();
                } else {
                    *bytes.last_mut().expect("bytes") ^= 1;
                }
                server.write_all(&bytes).await.expect("room");
                drop(server);
                let mut text = [0; 100];
                assert_eq!(stream.read(&mut text).await.expect("one"), 3);
                let error = error_of(&mut stream).await;
                assert_eq!(stream.fault(), Some(fault), "{error}");
                assert!(stream.has_answered());
                // It stays broken.
                error_of(&mut stream).await;
            }
        });
    }
}

#[test]
fn a_chunk_of_sip004_has_14_bits() {
    let keys = Keys::new(Method::Aes128Gcm, b"x").expect("a password");
    let bytes = answer(&keys, &[], 0, &[&[0; 0x4000]]);
    assert_eq!(read_all(&keys, &[], &bytes, 0), Err(Fault::Length(0x4000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_goes_in_comes_out_in_any_pieces(
        index: usize,
        room in prop_oneof![1..40_usize, 1000..200_000_usize],
        up in vec(prop_oneof![0..10_usize, 0..100_000_usize], 0..4),
        down in vec(prop_oneof![1..10_usize, 1..0x4000_usize, Just(0x3fff)], 0..6),
        piece in prop_oneof![1..30_usize, 1..100_000_usize],
    ) {
        // Byte by byte is slow.
        let scale = |length: &usize| if room < 40 || piece < 30 { length % 700 } else { *length };
        let keys = keys_at(index);
        let up: Vec<Vec<u8>> = up.iter().map(scale).enumerate().map(|(at, length)| vec![at as u8; length]).collect();
        let down: Vec<Vec<u8>> = down.iter().map(|length| scale(length).max(1)).map(|length| vec![9; length]).collect();
        let (stream, mut server) = connect(&keys, room);
        run(async {
            let (mut read, mut write) = split(stream);
            let client_up = async {
                for part in &up {
                    write.write_all(part).await.expect("it is taken");
                }
                write.shutdown().await.expect("it ends");
            };
            let client_down = async {
                let (mut text, mut buffer) = (Vec::new(), vec![0; piece]);
                loop {
                    match read.read(&mut buffer).await.expect("it is read") {
                        0 => return text,
                        length => text.extend_from_slice(&buffer[..length]),
                    }
                }
            };
            let served = async {
                let mut bytes = Vec::new();
                server.read_to_end(&mut bytes).await.expect("the client ends");
                let salt = &bytes[..keys.method().key_length()];
                let parts: Vec<&[u8]> = down.iter().map(Vec::as_slice).collect();
                if !parts.is_empty() {
                    let answer = answer(&keys, salt, unix_seconds(), &parts);
                    server.write_all(&answer).await.expect("the client reads");
                }
                drop(server);
                serve(&keys, &bytes).1
            };
            let ((), got, served) = tokio::join!(client_up, client_down, served);
            assert_eq!(got, down.concat());
            assert_eq!(served, up.concat());
        });
    }

    #[test]
    fn no_bytes_break_a_decoder_even_with_our_key(
        index: usize, plain in vec(any::<u8>(), 0..120), bytes in vec(any::<u8>(), 0..300),
    ) {
        let keys = keys_at(index);
        let salt = random_salt(keys.method());
        let _ = read_all(&keys, &salt, &bytes, 0);
        // Whatever is in the head, encrypted as it should be.
        let mut out = random_salt(keys.method());
        let start = out.len();
        out.extend(&plain);
        Counting::new(keys.method(), keys.subkey(&out[..start]).as_slice()).seal(&mut out, start);
        let _ = read_all(&keys, &salt, &out, 0);
    }
}

/// Two servers, one behind the other.
#[test]
fn a_stream_goes_over_a_stream() {
    let (outer, inner) = (keys_at(3), keys_at(0));
    let (client, mut server) = duplex(1 << 20);
    let first = ShadowsocksStream::new(client, &outer, target().into());
    let mut second = ShadowsocksStream::new(first, &inner, target().into());
    run(async {
        second.write_all(b"through both").await.expect("room");
        second.shutdown().await.expect("room");
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).await.expect("an end");
        let (_, within) = serve(&outer, &bytes);
        assert_eq!(serve(&inner, &within).1, b"through both");
    });
}
