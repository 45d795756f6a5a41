//! One rule: its conditions and its target.

use ipnet::IpNet;

use super::words;
use crate::import::notes::shown;
use crate::policy::port::PortRange;

/// A line `-A CHAIN …`.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// The line in the file, counted from 1.
    pub line: usize,
    /// All of these must hold.
    pub conditions: Vec<Condition>,
    /// What is done then.
    pub target: Target,
}

/// Something that is asked of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// It must not be so.
    pub negated: bool,
    /// What is asked for.
    pub what: Match,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The transport: TCP, UDP, or one that is no affair of a proxy.
    Protocol(Option<Transport>),
    /// The destination.
    Destination(IpNet),
    /// The source.
    Source(IpNet),
    /// The link that it comes by.
    Arrives(String),
    /// The link that it leaves by.
    Leaves(String),
    /// The destination's port.
    Ports(Vec<PortRange>),
    /// The destination is in a set (or, if not `destination`, the source).
    Set {
        /// Its name.
        name: String,
        /// Not the source.
        destination: bool,
    },
    /// The mark and its mask.
    Mark(u32, u32),
    /// The group of the process: the first and the last number.
    Gid(u32, u32),
    /// The user of the process.
    Uid(u32, u32),
    /// Addresses of the machine itself, broadcast, multicast.
    Near(String),
    /// It belongs to a connection that is there.
    Established,
    /// There is a socket for it on this machine.
    Socket,
    /// Anything else, as it stands there.
    Other(String),
}

/// A transport that is proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What is done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Back to the chain before.
    Return,
    /// It goes on as it is.
    Accept,
    /// It ends.
    Drop,
    /// To the proxy at this port.
    Proxy(String),
    /// It gets a mark other than 0, and the next rule.
    Mark,
    /// On in another chain.
    Jump(String),
    /// The same without coming back.
    Goto(String),
    /// Nothing: it is logged or counted, and the next rule comes.
    Nothing,
    /// Something else.
    Other(String),
}

/// Reads the words behind the chain's name.
pub(super) fn read(line: usize, rest: &str) -> Rule {
    let words = words::split(rest);
    let mut reader = Reader {
        words: &words,
        conditions: Vec::new(),
        target: Target::Nothing,
        port: None,
        mark_set: None,
    };
    reader.read();
    let Reader {
        conditions,
        mut target,
        port,
        mark_set,
        ..
    } = reader;
    match &mut target {
        Target::Proxy(at) => *at = port.unwrap_or_default(),
        Target::Mark if mark_set == Some(0) => target = Target::Nothing,
        _ => {}
    }
    Rule {
        line,
        conditions,
        target,
    }
}

struct Reader<'w> {
    words: &'w [String],
    conditions: Vec<Condition>,
    target: Target,
    port: Option<String>,
    mark_set: Option<u32>,
}

impl<'w> Reader<'w> {
    fn next(&mut self) -> Option<&'w str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn read(&mut self) {
        let mut negated = false;
        while let Some(word) = self.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            self.option(word, negated);
            negated = false;
        }
    }

    fn option(&mut self, word: &str, negated: bool) {
        // Which module a condition is of says nothing beyond the condition, but for those without any.
        if word == "-m" || word == "--match" {
            if self.next() == Some("socket") {
                self.add(negated, Match::Socket);
            }
            return;
        }
        if word == "-j" || word == "-g" || word == "--jump" || word == "--goto" {
            let name = self.next().unwrap_or_default().to_owned();
            let goto = word == "-g" || word == "--goto";
            self.target = match &*name {
                "RETURN" => Target::Return,
                "ACCEPT" => Target::Accept,
                "DROP" | "REJECT" => Target::Drop,
                "TPROXY" | "REDIRECT" => Target::Proxy(String::new()),
                "MARK" => Target::Mark,
                "LOG" | "NFLOG" | "TRACE" | "CONNMARK" | "CT" | "NOTRACK" | "TCPMSS" | "DSCP"
                | "TTL" | "CHECKSUM" | "CLASSIFY" | "AUDIT" => Target::Nothing,
                "MASQUERADE" | "SNAT" | "DNAT" | "NETMAP" | "QUEUE" | "NFQUEUE" | "SET" | "TEE" => {
                    Target::Other(name)
                }
                _ if goto => Target::Goto(name),
                _ => Target::Jump(name),
            };
            return;
        }
        if let Some(what) = self.condition(word) {
            self.add(negated, what);
        }
    }

    fn add(&mut self, negated: bool, what: Match) {
        self.conditions.push(Condition { negated, what });
    }

    /// None for what says nothing of the packet.
    fn condition(&mut self, word: &str) -> Option<Match> {
        let arguments = match word {
            "--nowildcard"
            | "--transparent"
            | "--restore-skmark"
            | "--socket-exists"
            | "-f"
            | "--return-nomatch"
            | "--save-mark"
            | "--restore-mark"
            | "--random"
            | "--clamp-mss-to-pmtu"
            | "--notrack" => 0,
            "--match-set" | "--tcp-flags" => 2,
            _ => 1,
        };
        let mut values = Vec::new();
        for _ in 0..arguments {
            // An option is no value, so that one without any is not read as more than it is.
            if self
                .words
                .first()
                .is_some_and(|next| next.starts_with("--"))
            {
                break;
            }
            values.extend(self.next());
        }
        let value = values.first().copied().unwrap_or_default();
        let other = || Match::Other(shown(format!("{word} {}", values.join(" ")).trim()));
        Some(match word {
            "-p" | "--protocol" => match value {
                "tcp" | "6" => Match::Protocol(Some(Transport::Tcp)),
                "udp" | "17" => Match::Protocol(Some(Transport::Udp)),
                "all" | "0" => return None,
                _ => Match::Protocol(None),
            },
            "-d" | "--destination" => net(value).map_or_else(other, Match::Destination),
            "-s" | "--source" => net(value).map_or_else(other, Match::Source),
            "-i" | "--in-interface" => Match::Arrives(link(value)),
            "-o" | "--out-interface" => Match::Leaves(link(value)),
            "--dport" | "--dports" | "--destination-port" | "--destination-ports" => {
                ports(value).map_or_else(other, Match::Ports)
            }
            "--match-set" => match values.get(1).copied() {
                Some(side @ ("dst" | "src")) => Match::Set {
                    name: value.to_owned(),
                    destination: side == "dst",
                },
                _ => other(),
            },
            "--mark" => mark(value).map_or_else(other, |(mark, mask)| Match::Mark(mark, mask)),
            "--gid-owner" => numbers(value).map_or_else(other, |(a, b)| Match::Gid(a, b)),
            "--uid-owner" => numbers(value).map_or_else(other, |(a, b)| Match::Uid(a, b)),
            "--dst-type" => Match::Near(value.to_owned()),
            "--ctstate" | "--state" if is_established(value) => Match::Established,
            "--ctdir" if value == "REPLY" => Match::Established,
            "--on-port" | "--to-ports" => {
                self.port = Some(shown(value));
                return None;
            }
            "--set-mark" | "--set-xmark" | "--or-mark" => {
                self.mark_set = mark(value).map(|(mark, _)| mark);
                return None;
            }
            // What a target is told, and what says nothing of the packet.
            "--comment"
            | "--on-ip"
            | "--tproxy-mark"
            | "--and-mark"
            | "--log-prefix"
            | "--log-level"
            | "--reject-with"
            | "--nfmask"
            | "--ctmask"
            | "--mask"
            | "--nowildcard"
            | "--transparent"
            | "--restore-skmark"
            | "--socket-exists"
            | "--return-nomatch"
            | "--nflog-group"
            | "--nflog-prefix"
            | "--set-class"
            | "--set-mss"
            | "--save-mark"
            | "--restore-mark"
            | "--random"
            | "--clamp-mss-to-pmtu"
            | "--notrack" => return None,
            _ => other(),
        })
    }
}

/// As iptables-save prints them, `ADDRESS/LENGTH` or `ADDRESS/MASK`.
fn net(text: &str) -> Option<IpNet> {
    crate::import::prefix(text)
}

/// `eth+` stands for all that begin so.
fn link(text: &str) -> String {
    match text.strip_suffix('+') {
        Some(start) => format!("{start}*"),
        None => text.to_owned(),
    }
}

/// `53`, `80,443`, `1000:2000`.
fn ports(text: &str) -> Option<Vec<PortRange>> {
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            PortRange::new(first.parse().ok()?, last.parse().ok()?)
        })
        .collect()
}

/// `0xff`, `255`, `0x1/0xff`.
fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text
        .split_once('/')
        .map_or((text, None), |(a, b)| (a, Some(b)));
    Some((number(value)?, mask.map_or(Some(u32::MAX), number)?))
}

/// `1000` or `1000-1010`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn is_established(states: &str) -> bool {
    states
        .split(',')
        .all(|state| matches!(state, "ESTABLISHED" | "RELATED"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        read(1, text)
    }

    fn condition(negated: bool, what: Match) -> Condition {
        Condition { negated, what }
    }

    #[test]
    fn reads_conditions_and_targets() {
        let read = rule("-d 10.0.0.0/8 ! -i eth+ -p udp -m udp ! --dport 53 -j RETURN");
        assert_eq!(read.target, Target::Return);
        assert_eq!(
            read.conditions,
            [
                condition(false, Match::Destination("10.0.0.0/8".parse().unwrap())),
                condition(true, Match::Arrives("eth*".to_owned())),
                condition(false, Match::Protocol(Some(Transport::Udp))),
                condition(true, Match::Ports(vec![53.into()])),
            ]
        );
        let read = rule(
            "-p tcp -m multiport --dports 80,443,8000:8080 -m mark --mark 0xff -m set --match-set cn dst -j X",
        );
        assert_eq!(read.target, Target::Jump("X".to_owned()));
        assert_eq!(
            read.conditions[1..],
            [
                condition(
                    false,
                    Match::Ports(vec![
                        80.into(),
                        443.into(),
                        PortRange::new(8000, 8080).unwrap()
                    ])
                ),
                condition(false, Match::Mark(0xff, u32::MAX)),
                condition(
                    false,
                    Match::Set {
                        name: "cn".to_owned(),
                        destination: true
                    }
                ),
            ]
        );
    }

    #[test]
    fn what_leads_to_the_proxy() {
        let tproxy =
            "-p tcp -j TPROXY --on-port 12345 --on-ip 127.0.0.1 --tproxy-mark 0x1/0xffffffff";
        assert_eq!(rule(tproxy).target, Target::Proxy("12345".to_owned()));
        assert_eq!(rule(tproxy).conditions.len(), 1);
        let redirect = rule("-p tcp -j REDIRECT --to-ports 7892");
        assert_eq!(redirect.target, Target::Proxy("7892".to_owned()));
        assert_eq!(
            rule("-j MARK --set-xmark 0x1/0xffffffff").target,
            Target::Mark
        );
        assert_eq!(
            rule("-j MARK --set-xmark 0x0/0xffffffff").target,
            Target::Nothing
        );
        assert_eq!(
            rule("-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff").conditions,
            []
        );
        assert_eq!(rule("-g OTHER").target, Target::Goto("OTHER".to_owned()));
    }

    #[test]
    fn what_is_not_known_is_kept_as_a_condition() {
        for text in [
            "-m mac --mac-source 02:00:00:00:00:01 -j RETURN",
            "-m length --length 0:100 -j RETURN",
            "-d example.com -j RETURN",
            "-m conntrack --ctstate NEW -j RETURN",
        ] {
            let read = rule(text);
            assert!(
                matches!(
                    &read.conditions[..],
                    [Condition {
                        what: Match::Other(_),
                        ..
                    }]
                ),
                "{text}: {read:?}"
            );
            assert_eq!(read.target, Target::Return);
        }
        assert_eq!(
            rule("-m comment --comment \"by -j DROP\" -m socket --nowildcard -j DIVERT").conditions,
            [condition(false, Match::Socket)]
        );
        assert_eq!(
            rule("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT").conditions,
            [condition(false, Match::Established)]
        );
    }
}
