//! Answers to clients.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use super::Prefer;
use super::cache::Kept;
use super::lookup::{Course, Instantly, Lookup};
use super::stats::Counters;
use super::wire::{LARGEST, OWN_SIZE, Query, Unfit, code, kind};

/// The least that every client takes by UDP (RFC 1035 section 2.3.4).
const LEAST_SIZE: u16 = 512;
/// Questions of one client that may wait for upstreams at once.
const MOST_OF_CLIENT: usize = 256;

/// How a question came, and its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// As a datagram: the answer may be cut off.
    Udp,
    /// On a connection, framing left out.
    Tcp,
}

/// Answers questions, and knows what clients may have.
#[derive(Debug)]
pub struct Server {
    /// Finds answers.
    pub lookup: Arc<Lookup>,
    /// IPv6 addresses are given out.
    pub ipv6: bool,
    /// Which addresses are given out if there are both.
    pub prefer: Prefer,
    /// How many questions of each client wait.
    pub clients: Mutex<HashMap<IpAddr, usize>>,
}

impl Server {
    /// The answer to a message. None: it gets none.
    pub async fn answer(&self, message: &[u8], over: Over, client: SocketAddr) -> Option<Vec<u8>> {
        let counters = &self.lookup.counters;
        Counters::add(&counters.queries);
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Unfit::Silence) => {
                Counters::add(&counters.malformed);
                return None;
            }
            Err(Unfit::Answer(answer)) => {
                Counters::add(&counters.malformed);
                return Some(answer);
            }
        };
        let answer = self.find(&query, client).await;
        let most = match (over, query.edns) {
            (Over::Tcp, _) => LARGEST,
            (Over::Udp, None) => LEAST_SIZE.into(),
            (Over::Udp, Some(edns)) => edns.size.clamp(LEAST_SIZE, OWN_SIZE).into(),
        };
        if answer.len() <= most {
            return Some(answer);
        }
        if over == Over::Tcp {
            // An answer that fills a message leaves no room for the EDNS part.
            return Some(query.empty(code::SERV_FAIL));
        }
        Counters::add(&counters.truncated);
        Some(query.truncated(u16::from(answer[3] & 0x0f)))
    }

    async fn find(&self, query: &Query, client: SocketAddr) -> Vec<u8> {
        let is_address = |kind| query.question.kind == kind && query.question.class == 1;
        if !self.ipv6 && is_address(kind::AAAA) {
            return query.empty(code::NO_ERROR);
        }
        let other = match self.prefer {
            Prefer::V4 if is_address(kind::AAAA) => Some(kind::A),
            Prefer::V6 if is_address(kind::A) && self.ipv6 => Some(kind::AAAA),
            _ => None,
        };
        let Some(preferred) = other else {
            return self.find_one(query, client).await;
        };
        let mut twin = query.clone();
        twin.question.kind = preferred;
        // Both at once: it costs no more time than one.
        let (answer, twin) =
            tokio::join!(self.find_one(query, client), self.resolve(&twin, client));
        if twin.is_some_and(|kept| !kept.response.addresses.is_empty()) {
            return query.empty(code::NO_ERROR);
        }
        answer
    }

    async fn find_one(&self, query: &Query, client: SocketAddr) -> Vec<u8> {
        match self.resolve(query, client).await {
            Some(kept) => query.answer(&kept.response, |ttl| kept.ttl(ttl)),
            None => query.empty(code::SERV_FAIL),
        }
    }

    async fn resolve(&self, query: &Query, client: SocketAddr) -> Option<Kept> {
        let course = self.lookup.course(query);
        match self.lookup.instantly(&course) {
            Instantly::Done(outcome) => outcome,
            Instantly::Ask(stale) => self.ask(&course, stale, client.ip()).await,
        }
    }

    async fn ask(&self, course: &Course, stale: Option<Kept>, client: IpAddr) -> Option<Kept> {
        let Some(_turn) = Turn::take(self, client) else {
            return self.lookup.refuse(course, stale);
        };
        self.lookup.ask(course, stale).await
    }
}

/// One of the questions that a client may have under way.
struct Turn<'s> {
    server: &'s Server,
    client: IpAddr,
}

impl<'s> Turn<'s> {
    fn take(server: &'s Server, client: IpAddr) -> Option<Self> {
        let mut clients = server
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_insert(0);
        if *count >= MOST_OF_CLIENT {
            return None;
        }
        *count += 1;
        Some(Self { server, client })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut clients = self
            .server
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}
