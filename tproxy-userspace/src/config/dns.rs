//! `[dns]`: the splitting resolver.

use std::path::Path;
use std::time::Duration;

use documented::DocumentedFields;
use serde::Serialize;

use super::domain::{DomainSource, domains};
use super::read::Table;
use super::value::{at_least, boolean, choice, integer, list, text};
use super::{Refusal, duration};
use crate::data::dns::{Prefer, Upstream, UpstreamError};

/// More is a slip of the keyboard, not a limit.
const LARGEST_CACHE: i128 = 10_000_000;
/// The splitting resolver: which DNS servers answer the devices' questions.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// `hijack`: the questions that devices send to port 53, wherever to, are answered by the resolver. False leaves
    /// DNS alone, as without `[dns]`. Default true.
    pub hijack: bool,
    /// `direct`: the DNS servers for the names in `direct_domains`, asked without the outbound, in the order of
    /// preference. Like "192.0.2.1", "192.0.2.1:5353", "tcp://…", "tls://…" (DoT) or "https://…" (DoH);
    /// `#NAME` at the end names the certificate. Default: none; required with `direct_domains`.
    pub direct: Vec<Upstream>,
    /// `proxy`: the DNS servers for all other names, asked through the outbound, by TCP where the server is
    /// given without a scheme or with udp://. Required.
    pub proxy: Vec<Upstream>,
    /// `direct_domains`: names that `direct` answers, written as in `domain` of a `[[rule]]`, and lists of such names;
    /// relative paths start at the folder of the configuration. Connections to them go direct, too, unless a
    /// `[[rule]]` says otherwise. Default: none.
    pub direct_domains: Vec<DomainSource>,
    /// `cache`: how many answers are kept; 0 keeps none. Default 10000.
    pub cache: u32,
    /// `stale`: for how long an answer is still given out after its time is over, when the DNS servers are slow or fail
    /// (RFC 8767); 0s for never. Default 1d.
    #[serde(serialize_with = "duration::serialize")]
    pub stale: Duration,
    /// `ipv6`: names have IPv6 addresses; false answers every question for them with none. Default true.
    pub ipv6: bool,
    /// `prefer`: of a name that has both, give out "both" kinds of addresses, or "v4" or "v6" alone. Default "both".
    pub prefer: Prefer,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            hijack: true,
            direct: Vec::new(),
            proxy: Vec::new(),
            direct_domains: Vec::new(),
            cache: 10_000,
            stale: Duration::from_hours(24),
            ipv6: true,
            prefer: Prefer::Both,
        }
    }
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        Self::new(error.message, error.help)
    }
}

/// Reads `[dns]`. None without it.
pub(super) fn read(root: &mut Table<'_>, folder: &Path) -> Option<Dns> {
    let mut found = None;
    root.table("dns", |table| {
        let mut dns = Dns::default();
        table.optional("hijack", &mut dns.hijack, boolean());
        let servers = || {
            let server = text("a DNS server", "tls://192.0.2.1", str::parse::<Upstream>);
            list("DNS servers", server)
        };
        let (what, source) = domains(folder);
        let direct = table.place("direct");
        table.optional("direct", &mut dns.direct, servers());
        let proxy = table.required("proxy", servers());
        let domains = table.place("direct_domains");
        table.optional(
            "direct_domains",
            &mut dns.direct_domains,
            list(what, source),
        );
        let capacity = integer("a number of answers", 0..=LARGEST_CACHE);
        table.optional("cache", &mut dns.cache, capacity);
        table.optional("stale", &mut dns.stale, at_least(Duration::ZERO));
        table.optional("ipv6", &mut dns.ipv6, boolean());
        let words = &[
            ("both", Prefer::Both),
            ("v4", Prefer::V4),
            ("v6", Prefer::V6),
        ];
        table.optional("prefer", &mut dns.prefer, choice(words));
        if let Some(proxy) = proxy {
            if proxy.get_ref().is_empty() {
                table.fault(
                    proxy.span(),
                    "no DNS server is named for the names that do not go direct".to_owned(),
                    Some(
                        "name one, like \"tls://1.1.1.1\"; to leave DNS alone write hijack = false"
                            .to_owned(),
                    ),
                );
            }
            dns.proxy = proxy.into_inner();
        }
        // A list that was refused has been told of.
        if let (Some(domains), None) = (domains, direct)
            && !dns.direct_domains.is_empty()
        {
            table.fault(
                domains,
                "no DNS server answers these names".to_owned(),
                Some("name one in `direct`, like direct = [\"223.5.5.5\"]".to_owned()),
            );
        }
        if dns.prefer == Prefer::V6
            && !dns.ipv6
            && let Some(place) = table.place("prefer")
        {
            table.fault(
                place,
                "prefer = \"v6\" needs IPv6 addresses, and ipv6 = false gives out none".to_owned(),
                Some("remove one of the two".to_owned()),
            );
        }
        found = table.exists().then_some(dns);
    });
    found
}
