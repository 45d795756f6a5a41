//! Answers to clients.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use super::Prefer;
use super::lookup::{Coming, Course, Instantly, Lookup, Outcome};
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

/// Clients that wait, and for how many answers.
pub type Clients = Arc<Mutex<HashMap<IpAddr, usize>>>;

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
    pub clients: Clients,
}

/// What is known of an answer without waiting.
#[derive(Debug)]
pub enum Now {
    /// The answer is there.
    Answered,
    /// There is no answer to this message.
    Silence,
    /// Upstreams are being asked.
    Later(Box<Later>),
}

/// A question whose upstreams are being asked.
#[derive(Debug)]
pub struct Later {
    query: Query,
    over: Over,
    asked: Half,
    /// The same about addresses of the preferred family.
    twin: Option<Half>,
}

/// What became of a question so far.
#[derive(Debug)]
enum Half {
    Done(Outcome),
    /// Its upstreams are being asked.
    Coming {
        course: Course,
        coming: Coming,
        /// What there is if that takes long.
        stale: Outcome,
        _turn: Turn,
    },
}

impl Server {
    /// The answer to a message. None: it gets none.
    pub async fn answer(&self, message: &[u8], over: Over, client: SocketAddr) -> Option<Vec<u8>> {
        let mut answer = Vec::new();
        match self.answer_now(message, over, client, &mut answer) {
            Now::Answered => Some(answer),
            Now::Silence => None,
            Now::Later(later) => Some(self.answer_later(*later).await),
        }
    }

    /// Puts the answer to a message at the end of `output` if it is known. If not, its upstreams are asked.
    pub fn answer_now(
        &self,
        message: &[u8],
        over: Over,
        client: SocketAddr,
        output: &mut Vec<u8>,
    ) -> Now {
        let counters = &self.lookup.counters;
        Counters::add(&counters.queries);
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Unfit::Silence) => {
                Counters::add(&counters.malformed);
                return Now::Silence;
            }
            Err(Unfit::Answer(answer)) => {
                Counters::add(&counters.malformed);
                output.extend(answer);
                return Now::Answered;
            }
        };
        let is_address = |kind| query.question.kind == kind && query.question.class == 1;
        if !self.ipv6 && is_address(kind::AAAA) {
            output.extend(query.empty(code::NO_ERROR));
            return Now::Answered;
        }
        let other = match self.prefer {
            Prefer::V4 if is_address(kind::AAAA) => Some(kind::A),
            Prefer::V6 if is_address(kind::A) && self.ipv6 => Some(kind::AAAA),
            _ => None,
        };
        let twin = other.map(|preferred| {
            let mut twin = query.clone();
            twin.question.kind = preferred;
            self.look(&twin, client.ip())
        });
        match (self.look(&query, client.ip()), twin) {
            (Half::Done(outcome), None) => self.put(&query, over, outcome, None, output),
            (Half::Done(outcome), Some(Half::Done(twin))) => {
                self.put(&query, over, outcome, twin, output);
            }
            (asked, twin) => {
                let later = Later {
                    query,
                    over,
                    asked,
                    twin,
                };
                return Now::Later(Box::new(later));
            }
        }
        Now::Answered
    }

    /// The answer, when it has come.
    pub async fn answer_later(&self, later: Later) -> Vec<u8> {
        let Later {
            query,
            over,
            asked,
            twin,
        } = later;
        let twin = async { self.end(twin?).await };
        // Both at once: it costs no more time than one.
        let (outcome, twin) = tokio::join!(self.end(asked), twin);
        let mut answer = Vec::new();
        self.put(&query, over, outcome, twin, &mut answer);
        answer
    }

    fn look(&self, query: &Query, client: IpAddr) -> Half {
        let course = self.lookup.course(query);
        let stale = match self.lookup.instantly(&course) {
            Instantly::Done(outcome) => return Half::Done(outcome),
            Instantly::Ask(stale) => stale,
        };
        let asked = Turn::take(&self.clients, client)
            .and_then(|turn| Some((turn, self.lookup.ask(query, &course)?)));
        match asked {
            Some((turn, coming)) => Half::Coming {
                course,
                coming,
                stale,
                _turn: turn,
            },
            None => Half::Done(self.lookup.refuse(&course, stale)),
        }
    }

    async fn end(&self, half: Half) -> Outcome {
        match half {
            Half::Done(outcome) => outcome,
            Half::Coming {
                course,
                coming,
                stale,
                _turn,
            } => self.lookup.wait(&course, coming, stale).await,
        }
    }

    /// The answer in a form that the client takes. `twin` is what there is of the preferred family.
    fn put(
        &self,
        query: &Query,
        over: Over,
        outcome: Outcome,
        twin: Outcome,
        output: &mut Vec<u8>,
    ) {
        if twin.is_some_and(|kept| !kept.response.addresses.is_empty()) {
            output.extend(query.empty(code::NO_ERROR));
            return;
        }
        let Some(kept) = outcome else {
            output.extend(query.empty(code::SERV_FAIL));
            return;
        };
        let most = match (over, query.edns) {
            (Over::Tcp, _) => LARGEST,
            (Over::Udp, None) => LEAST_SIZE.into(),
            (Over::Udp, Some(edns)) => edns.size.clamp(LEAST_SIZE, OWN_SIZE).into(),
        };
        let start = output.len();
        query.answer(&kept.response, |ttl| kept.ttl(ttl), output);
        if output.len() - start <= most {
            return;
        }
        let code = u16::from(output[start + 3] & 0x0f);
        output.truncate(start);
        if over == Over::Tcp {
            // An answer that fills a message leaves no room for the EDNS part.
            output.extend(query.empty(code::SERV_FAIL));
        } else {
            Counters::add(&self.lookup.counters.truncated);
            output.extend(query.truncated(code));
        }
    }
}

/// One of the questions that a client may have under way.
#[derive(Debug)]
struct Turn {
    clients: Clients,
    client: IpAddr,
}

impl Turn {
    fn take(clients: &Clients, client: IpAddr) -> Option<Self> {
        let mut waiting = clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(client).or_insert(0);
        if *count >= MOST_OF_CLIENT {
            return None;
        }
        *count += 1;
        let clients = Arc::clone(clients);
        Some(Self { clients, client })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}
