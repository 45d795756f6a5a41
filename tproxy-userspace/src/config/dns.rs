//! `[dns]`: the splitting resolver.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};
use url::Host;

use super::read::Table;
use super::value::{at_least, boolean, choice, integer, list, text};
use super::{Refusal, duration};
use crate::data::dns::{Prefer, Upstream, UpstreamError};
use crate::policy::list as lists;
use crate::policy::prefix::excerpt;

/// More is a slip of the keyboard, not a limit.
const LARGEST_CACHE: i128 = 10_000_000;
/// The ends of names that are files, not domains: none is a top-level domain.
const EXTENSIONS: [&str; 10] = [
    "conf", "dat", "db", "gz", "json", "list", "lst", "txt", "yaml", "yml",
];

/// The splitting resolver: which DNS servers answer the devices' questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// `direct_domains`: names that `direct` answers, each with all names below it, and lists of such names; relative
    /// paths start at the folder of the configuration. Default: none.
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

/// Where names come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainSource {
    /// The name itself, in small letters and ASCII, without a dot at the end.
    Domain(String),
    /// A list.
    List {
        /// Its file.
        file: PathBuf,
        /// The part of it that is meant, like the `cn` of `geosite.dat:cn`.
        part: Option<String>,
    },
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

impl DomainSource {
    /// Reads one. A text with a `/` or a `:`, or that ends like a file (`.txt`, `.dat`, `.list` and the like), is a
    /// list; any other is a name. `folder` is where relative paths start.
    fn parse(text: &str, folder: &Path) -> Result<Self, Refusal> {
        let help = "write a name like example.com, a list like names.txt, or a part of one like geosite.dat:cn";
        let refuse = |message: String| Err(Refusal::new(message, help));
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_file = text.contains('.')
            && EXTENSIONS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(last));
        if !is_file && !text.contains(['/', ':']) {
            return match domain(text) {
                Some(name) => Ok(Self::Domain(name)),
                None => refuse(format!("`{}` is not the name of a domain", excerpt(text))),
            };
        }
        // The colon of a part stands behind the last slash.
        let name_at = text.rfind('/').map_or(0, |slash| slash + 1);
        let (file, part) = match text[name_at..].find(':') {
            None => (text, None),
            Some(at) => {
                let (file, part) = text.split_at(name_at + at);
                (file, Some(&part[1..]))
            }
        };
        if file.is_empty() || file.ends_with('/') || part == Some("") {
            return refuse(format!("`{}` names no list", excerpt(text)));
        }
        if file == lists::STANDARD_INPUT || text.contains('\0') {
            return refuse(format!("`{}` is not a path", excerpt(text)));
        }
        Ok(Self::List {
            file: folder.join(file),
            part: part.map(str::to_owned),
        })
    }
}

/// The name as questions have it.
fn domain(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let Ok(Host::Domain(name)) = Host::parse(text) else {
        return None;
    };
    let sound = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    (name.len() <= 253 && name.split('.').all(sound)).then_some(name)
}

impl fmt::Display for DomainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => f.write_str(name),
            Self::List { file, part } => {
                write!(f, "{}", file.display())?;
                match part {
                    None => Ok(()),
                    Some(part) => write!(f, ":{part}"),
                }
            }
        }
    }
}

impl Serialize for DomainSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
        table.optional("hijack", &mut dns.hijack, boolean);
        let servers = || {
            let server = text("a DNS server", "tls://192.0.2.1", str::parse::<Upstream>);
            list("DNS servers", server)
        };
        let sources = list(
            "names and lists",
            text("a name or a list", "example.com", |text| {
                DomainSource::parse(text, folder)
            }),
        );
        let direct = table.place("direct");
        table.optional("direct", &mut dns.direct, servers());
        let proxy = table.required("proxy", servers());
        let domains = table.place("direct_domains");
        table.optional("direct_domains", &mut dns.direct_domains, sources);
        let capacity = integer("a number of answers", 0..=LARGEST_CACHE);
        table.optional("cache", &mut dns.cache, capacity);
        table.optional("stale", &mut dns.stale, at_least(Duration::ZERO));
        table.optional("ipv6", &mut dns.ipv6, boolean);
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
