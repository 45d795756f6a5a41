//! Outbounds.

use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::{Context, list, name, text};
use crate::data;
use crate::import::draft::{Exit, OutboundDraft};
use crate::import::notes::shown;

/// What may stand in a URL as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// The marks that the guides give a proxy's own packets.
const CUSTOMARY: [u64; 2] = [255, 2];
/// The longest name of an outbound.
pub(super) const LONGEST_NAME: usize = 64;
/// More outbounds than this are a subscription, not a configuration.
pub(super) const MOST: usize = 1_000;

/// What a tag stands for.
#[derive(Clone, Debug)]
pub(super) enum Tagged {
    /// A way out.
    Exit(Exit),
    /// The program's own DNS.
    Dns,
    /// Nothing that a rule can name here.
    Nothing(String),
}

impl Context<'_> {
    pub(super) fn outbounds(&mut self, root: &Map<String, Value>) {
        let mut all: Vec<&Value> = root.get("outbound").into_iter().collect();
        all.extend(list(root, "outbounds"));
        if all.len() > MOST {
            self.left_out(&format!("outbounds behind the first {MOST}"));
            all.truncate(MOST);
        }
        for (index, outbound) in all.iter().enumerate() {
            self.outbound(index, outbound);
        }
        self.resolve_via(&all);
        if let Some((_, Tagged::Exit(exit))) = self.exits.first() {
            let name = match exit {
                Exit::Direct | Exit::Default => "direct".to_owned(),
                Exit::Block => "block".to_owned(),
                Exit::Named(name) => name.clone(),
            };
            self.understood(&format!(
                "what no rule is about takes the first outbound, here \"{name}\""
            ));
            self.draft.default = Some(name);
        }
        self.balancers(root);
    }

    fn outbound(&mut self, index: usize, outbound: &Value) {
        let tag = text(outbound, "tag").to_owned();
        let protocol = text(outbound, "protocol");
        let what = format!("outbounds[{index}] ({})", name(&tag, outbound));
        self.mark(&what, outbound);
        let mut draft = OutboundDraft {
            tag: tag.clone(),
            from: format!("{}: {what}, {}", self.file, shown(protocol)),
            ..OutboundDraft::default()
        };
        self.binding(&what, outbound, &mut draft);
        let bound = !draft.source.is_empty() || draft.interface.is_some();
        let tagged = match protocol {
            "freedom" => {
                if outbound["settings"].get("redirect").is_some() {
                    self.left_out(&format!("{what}: redirect: no destination is changed here"));
                }
                if bound {
                    draft.url = "direct://".to_owned();
                    Tagged::Exit(Exit::Named(self.add(draft)))
                } else {
                    self.needless(&format!("{what}: \"direct\" is there without being named"));
                    Tagged::Exit(Exit::Direct)
                }
            }
            "blackhole" => {
                self.needless(&format!("{what}: \"block\" is there without being named"));
                Tagged::Exit(Exit::Block)
            }
            "dns" => {
                self.needless(&format!(
                    "{what}: with [dns], questions to port 53 are answered by the program"
                ));
                Tagged::Dns
            }
            "loopback" => Tagged::Nothing("it leads to another inbound".to_owned()),
            _ => {
                match self.url(&what, protocol, outbound) {
                    Ok(url) => {
                        self.understood(&format!("{what}: an outbound"));
                        draft.url = url;
                    }
                    Err(why) => self.placeholder(&what, &why, &mut draft),
                }
                Tagged::Exit(Exit::Named(self.add(draft)))
            }
        };
        self.exits.push((tag, tagged));
    }

    /// An outbound that is not taken over: nothing goes by it until somebody says where to.
    fn placeholder(&mut self, what: &str, why: &str, draft: &mut OutboundDraft) {
        self.left_out(&format!("{what}: {why}"));
        self.notes.open(format!(
            "{}: {what} is \"block://\" for now, so nothing leaves by a way that was not meant. Give the old program a SOCKS5 inbound on \
             127.0.0.1, let it run on, and write its address there",
            self.file
        ));
        draft.url = "block://".to_owned();
        draft.placeholder = Some((
            "socks5://127.0.0.1:PORT".to_owned(),
            "a SOCKS5 inbound of the old program, which stays for this server".to_owned(),
        ));
        for mark in self.found.marks.clone() {
            let from = format!(
                "{}: {what}: the old program stays, and its packets go direct",
                self.file
            );
            self.draft.marks.push(((mark, u32::MAX), from));
        }
    }

    /// Adds it under a name that no other has.
    fn add(&mut self, mut draft: OutboundDraft) -> String {
        let wanted: String = draft
            .tag
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
                    c
                } else {
                    '-'
                }
            })
            .take(LONGEST_NAME - 8)
            .collect();
        let stem = match wanted.trim_matches('-') {
            "" => format!("outbound-{}", self.draft.outbounds.len() + 1),
            "direct" | "block" => format!("old-{wanted}"),
            _ => wanted.clone(),
        };
        let name = self.free(&stem);
        if name != draft.tag && !draft.tag.is_empty() {
            self.understood(&format!(
                "the outbound \"{}\" is called \"{name}\" here",
                shown(&draft.tag)
            ));
        }
        draft.name.clone_from(&name);
        self.draft.outbounds.push(draft);
        name
    }

    /// A name that nothing has yet.
    pub(super) fn free(&self, stem: &str) -> String {
        let taken = |name: &str| {
            self.draft.outbounds.iter().any(|one| one.name == name)
                || self.draft.groups.iter().any(|one| one.name == name)
        };
        let mut name = stem.to_owned();
        let mut number = 2;
        while taken(&name) {
            name = format!("{stem}-{number}");
            number += 1;
        }
        name
    }

    /// The mark of the program's own packets, or one for policy routing.
    fn mark(&mut self, what: &str, outbound: &Value) {
        let Some(mark) = outbound["streamSettings"]["sockopt"]["mark"]
            .as_u64()
            .filter(|mark| *mark > 0)
        else {
            return;
        };
        self.needless(&format!(
            "{what}: mark {mark}: tproxy-bpf marks its own packets, so they never come back to it"
        ));
        if let Ok(mark) = u32::try_from(mark)
            && !self.found.marks.contains(&mark)
        {
            self.found.marks.push(mark);
        }
        if !CUSTOMARY.contains(&mark) {
            self.left_out(&format!(
                "{what}: if the mark {mark} also chooses a route (ip rule), write `mark` at this outbound; bits of 0xf0 are tproxy-bpf's"
            ));
        }
    }

    fn binding(&mut self, what: &str, outbound: &Value, draft: &mut OutboundDraft) {
        match text(outbound, "sendThrough") {
            "" | "0.0.0.0" | "::" => {}
            address => match address.parse::<IpAddr>() {
                Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => {
                    draft.source.push(address.to_owned());
                }
                _ => self.left_out(&format!(
                    "{what}: sendThrough {}: it is no address",
                    shown(address)
                )),
            },
        }
        let link = text(&outbound["streamSettings"]["sockopt"], "interface");
        if !link.is_empty() {
            match link.parse::<crate::config::LinkPattern>() {
                Ok(pattern) if !pattern.is_glob() => draft.interface = Some(link.to_owned()),
                _ => self.left_out(&format!("{what}: interface {}: it is no link", shown(link))),
            }
        }
        if outbound["mux"]["enabled"] == true {
            self.left_out(&format!(
                "{what}: mux: each connection has one of its own here"
            ));
        }
    }

    /// The URL of a server, or why there is none. The reason holds no password.
    fn url(&mut self, what: &str, protocol: &str, outbound: &Value) -> Result<String, String> {
        let settings = &outbound["settings"];
        let servers = list(settings, "servers");
        let server = servers.first().unwrap_or(settings);
        if servers.len() > 1 {
            self.left_out(&format!(
                "{what}: the servers behind the first; write an [[outbound]] for each and a [[group]] of them"
            ));
        }
        if !matches!(protocol, "socks" | "http" | "shadowsocks" | "trojan") {
            return Err(format!(
                "the protocol {} is not spoken here",
                shown(protocol)
            ));
        }
        let address = text(server, "address");
        let port = server["port"]
            .as_u64()
            .or_else(|| text(server, "port").parse().ok());
        let (Some(port), false) = (port, address.is_empty()) else {
            return Err("it names no server with address and port".to_owned());
        };
        let host = match address.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
            Ok(IpAddr::V4(ip)) => ip.to_string(),
            Err(_) => utf8_percent_encode(address, PLAIN).to_string(),
        };
        self.found.servers.push(address.to_owned());
        let stream = &outbound["streamSettings"];
        match text(stream, "network") {
            "" | "tcp" | "raw" => {}
            other => return Err(format!("the transport {} is not spoken here", shown(other))),
        }
        if !matches!(text(&stream["tcpSettings"]["header"], "type"), "" | "none") {
            return Err("the transport hides in HTTP, which is not done here".to_owned());
        }
        let tls = match text(stream, "security") {
            "" | "none" => false,
            "tls" => true,
            other => return Err(format!("the security {} is not known here", shown(other))),
        };
        let asked = text(&stream["tlsSettings"], "serverName");
        if tls {
            self.tls(what, &stream["tlsSettings"])?;
        }
        let escaped = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
        let user = list(server, "users").first().unwrap_or(server);
        let credentials = match (text(user, "user"), text(user, "pass")) {
            ("", "") => String::new(),
            (user, password) => format!("{}:{}@", escaped(user), escaped(password)),
        };
        let url = match (protocol, tls) {
            ("socks", false) => format!("socks5://{credentials}{host}:{port}"),
            ("http", false) => format!("http://{credentials}{host}:{port}"),
            ("http", true) if asked.is_empty() || asked == address => format!("https://{credentials}{host}:{port}"),
            ("http", true) => return Err("the server's certificate is for another name than its address; https:// takes none".to_owned()),
            ("shadowsocks", false) => {
                let method = match text(server, "method") {
                    "chacha20-poly1305" => "chacha20-ietf-poly1305",
                    other => other,
                };
                if server["uot"] == true {
                    self.left_out(&format!("{what}: uot: datagrams go as datagrams here"));
                }
                format!("ss://{}:{}@{host}:{port}", escaped(method), escaped(text(server, "password")))
            }
            ("trojan", _) => {
                if !tls {
                    return Err("Trojan without TLS is not spoken here".to_owned());
                }
                if !text(server, "flow").is_empty() {
                    return Err(format!("the flow {} is not spoken here", shown(text(server, "flow"))));
                }
                let sni = match asked {
                    "" => String::new(),
                    name => format!("?sni={}", escaped(name)),
                };
                format!("trojan://{}@{host}:{port}{sni}", escaped(text(server, "password")))
            }
            _ => return Err(format!("{protocol} inside of TLS is not spoken here")),
        };
        match url.parse::<data::Outbound>() {
            Ok(_) => Ok(url),
            Err(error) => Err(error.message),
        }
    }

    fn tls(&mut self, what: &str, settings: &Value) -> Result<(), String> {
        if settings["allowInsecure"] == true {
            return Err("allowInsecure: a certificate that nobody looks at protects nothing, so it is refused here; put the server's \
                        authority among the trusted ones (SSL_CERT_FILE)"
                .to_owned());
        }
        if !list(settings, "certificates").is_empty() {
            return Err("it brings certificates of its own; put the authority among the trusted ones (SSL_CERT_FILE)".to_owned());
        }
        for key in [
            "fingerprint",
            "alpn",
            "minVersion",
            "maxVersion",
            "cipherSuites",
        ] {
            if settings.get(key).is_some() {
                self.left_out(&format!(
                    "{what}: tlsSettings.{key}: the handshake is the program's own"
                ));
            }
        }
        Ok(())
    }

    /// What an outbound is reached through.
    fn resolve_via(&mut self, all: &[&Value]) {
        for (index, outbound) in all.iter().enumerate() {
            let through = [
                text(&outbound["proxySettings"], "tag"),
                text(&outbound["streamSettings"]["sockopt"], "dialerProxy"),
            ];
            let Some(through) = through.into_iter().find(|tag| !tag.is_empty()) else {
                continue;
            };
            let what = format!("outbounds[{index}]");
            let own = self.exits.get(index).map(|(_, tagged)| tagged.clone());
            let Some(Tagged::Exit(Exit::Named(own))) = own else {
                continue;
            };
            let other = self.exit(through);
            let Some(Tagged::Exit(Exit::Named(other))) = other else {
                self.left_out(&format!(
                    "{what}: it goes through \"{}\", which is no server here",
                    shown(through)
                ));
                continue;
            };
            let circle = self.leads_to(&other, &own);
            if let Some(draft) = self.draft.outbounds.iter_mut().find(|one| one.name == own)
                && draft.placeholder.is_none()
                && !circle
            {
                if !draft.source.is_empty() || draft.interface.is_some() {
                    draft.source.clear();
                    draft.interface = None;
                }
                draft.via = Some(other);
            }
        }
        // Nothing is reached through what lets nothing pass.
        let closed: Vec<String> = self
            .draft
            .outbounds
            .iter()
            .filter(|one| one.placeholder.is_some())
            .map(|one| one.name.clone())
            .collect();
        for outbound in &mut self.draft.outbounds {
            if outbound
                .via
                .as_ref()
                .is_some_and(|via| closed.contains(via))
            {
                outbound.url = "block://".to_owned();
                outbound.via = None;
                outbound.placeholder = Some((
                    "socks5://127.0.0.1:PORT".to_owned(),
                    "its server is reached through one that was not taken over".to_owned(),
                ));
            }
        }
    }

    fn leads_to(&self, from: &str, to: &str) -> bool {
        let mut at = Some(from.to_owned());
        for _ in 0..=self.draft.outbounds.len() {
            let Some(name) = at else { return false };
            if name == to {
                return true;
            }
            let of = self.draft.outbounds.iter().find(|one| one.name == name);
            at = of.and_then(|one| one.via.clone());
        }
        true
    }

    /// What a tag stands for.
    pub(super) fn exit(&self, tag: &str) -> Option<Tagged> {
        let found = self.exits.iter().find(|(other, _)| other == tag);
        found.map(|(_, tagged)| tagged.clone())
    }
}
