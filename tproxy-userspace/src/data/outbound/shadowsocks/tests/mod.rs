//! Tests, with a server's side that is made of the same ciphers and is as strict as the specification.

mod packets;
mod stream;
mod vectors;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::net::TcpStream;

use super::cipher::{Counting, TAG};
use super::*;
use crate::data::outbound::wire::{self, Address};

fn target() -> SocketAddr {
    "192.0.2.1:443".parse().expect("literal")
}

/// Keys for each method, and with two users for those that can have them.
fn all_keys() -> Vec<Arc<Keys>> {
    const LONG: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const SHORT: &str = "AAECAwQFBgcICQoLDA0ODw==";
    let mut all = Vec::new();
    for method in Method::ALL {
        let key = if method.key_length() == 16 {
            SHORT
        } else {
            LONG
        };
        all.push(Keys::new(method, key.as_bytes()));
        if method.takes_identities() {
            all.push(Keys::new(method, format!("{key}:{key}").as_bytes()));
        }
    }
    all.into_iter()
        .map(|keys| Arc::new(keys.expect("a key")))
        .collect()
}

/// All that a decoder makes of these bytes and their end.
fn read_all(keys: &Keys, salt: &[u8], bytes: &[u8], now: u64) -> Result<Vec<u8>, Fault> {
    let mut decoder = Decoder::new(keys.clone(), salt);
    let mut received = BytesMut::from(bytes);
    let mut text = Vec::new();
    loop {
        match decoder.decode(&mut received, now)? {
            Decoded::Plain(part) => text.extend_from_slice(&part),
            Decoded::Needs(needs) => {
                assert!(needs > received.len());
                decoder.end(&received)?;
                return Ok(text);
            }
        }
    }
}

/// What a client sent, chunk by chunk.
struct Chunks<'b> {
    cipher: Counting,
    rest: &'b [u8],
}

impl Chunks<'_> {
    fn take(&mut self, length: usize) -> Vec<u8> {
        let (chunk, rest) = self.rest.split_at(length + TAG);
        self.rest = rest;
        let mut chunk = chunk.to_vec();
        self.cipher.open(&mut chunk).expect("the client's chunk");
        chunk.truncate(length);
        chunk
    }
}

fn number(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// What a server makes of a whole connection: the target's bytes as they were sent, and the payload.
pub fn serve(keys: &Keys, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let method = keys.method();
    let (salt, mut rest) = bytes.split_at(method.key_length());
    for header in keys.identity_headers(salt) {
        rest = rest.strip_prefix(&header).expect("the identity header");
    }
    let cipher = Counting::new(method, keys.subkey(salt).as_slice());
    let mut chunks = Chunks { cipher, rest };
    let length = if method.is_2022() {
        let fixed = chunks.take(1 + 8 + 2);
        assert_eq!(fixed[0], FROM_CLIENT);
        let sent = u64::from_be_bytes(*fixed[1..].first_chunk().expect("11 bytes"));
        assert_eq!(clock_difference(sent, unix_seconds()), None);
        number(&fixed[9..])
    } else {
        number(&chunks.take(2))
    };
    let mut head = chunks.take(length);
    let Ok(Address::Whole(_, length)) = wire::parse_address(&head) else {
        panic!("no target in {head:?}");
    };
    let mut payload = head.split_off(length);
    if method.is_2022() {
        let padding = number(&payload);
        payload.drain(..2 + padding);
        assert!(padding > 0 || !payload.is_empty(), "servers must refuse it");
        assert!(padding <= 900);
    }
    while !chunks.rest.is_empty() {
        let length = number(&chunks.take(2));
        assert!((1..=method.longest_chunk()).contains(&length));
        payload.extend(chunks.take(length));
    }
    (head, payload)
}

/// What a server sends in answer to the connection that began with this salt, a chunk for each part.
pub fn answer(keys: &Keys, request_salt: &[u8], now: u64, parts: &[&[u8]]) -> Vec<u8> {
    let method = keys.method();
    let mut out = random_salt(method);
    let mut cipher = Counting::new(method, keys.subkey(&out).as_slice());
    for (index, part) in parts.iter().enumerate() {
        let start = out.len();
        if index == 0 && method.is_2022() {
            out.push(FROM_SERVER);
            out.extend(now.to_be_bytes());
            out.extend(request_salt);
        }
        out.extend((part.len() as u16).to_be_bytes());
        cipher.seal(&mut out, start);
        let start = out.len();
        out.extend_from_slice(part);
        cipher.seal(&mut out, start);
    }
    out
}

/// The destination's end of a connection by SIP004 to this server, and the target's bytes.
pub async fn play(keys: Keys, mut stream: TcpStream) -> (Vec<u8>, DuplexStream) {
    let method = keys.method();
    let mut salt = vec![0; method.key_length()];
    stream.read_exact(&mut salt).await.expect("a salt");
    let mut cipher = Counting::new(method, keys.subkey(&salt).as_slice());
    let (mut from_client, mut to_client) = stream.into_split();
    let mut take = async move || -> io::Result<Vec<u8>> {
        let mut length = vec![0; 2 + TAG];
        from_client.read_exact(&mut length).await?;
        cipher.open(&mut length).expect("a length");
        let mut chunk = vec![0; number(&length) + TAG];
        from_client.read_exact(&mut chunk).await?;
        cipher.open(&mut chunk).expect("a chunk");
        chunk.truncate(chunk.len() - TAG);
        Ok(chunk)
    };
    let mut head = take().await.expect("a target");
    let Ok(Address::Whole(_, length)) = wire::parse_address(&head) else {
        panic!("no target in {head:?}");
    };
    let payload = head.split_off(length);
    let (near, far) = duplex(1 << 16);
    let (mut answers, mut questions) = split(far);
    tokio::spawn(async move {
        let mut next = Ok(payload);
        while let Ok(payload) = next {
            if questions.write_all(&payload).await.is_err() {
                break;
            }
            next = take().await;
        }
        let _ = questions.shutdown().await;
    });
    tokio::spawn(async move {
        let mut out = random_salt(method);
        let mut cipher = Counting::new(method, keys.subkey(&out).as_slice());
        let mut bytes = vec![0; 4096];
        while let Ok(length @ 1..) = answers.read(&mut bytes).await {
            for part in [&(length as u16).to_be_bytes()[..], &bytes[..length]] {
                let start = out.len();
                out.extend_from_slice(part);
                cipher.seal(&mut out, start);
            }
            to_client.write_all(&out).await.expect("connected");
            out.clear();
        }
    });
    (head, near)
}
