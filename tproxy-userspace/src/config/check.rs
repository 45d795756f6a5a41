//! `[check]`: how the members of groups are checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use documented::DocumentedFields;
use serde::{Serialize, Serializer};
use url::Url;

use super::read::Table;
use super::value::{text, within};
use super::{Refusal, duration};
use crate::data::{CheckSettings, CheckUrl};
use crate::policy::prefix::excerpt;

const DNS_PORT: u16 = 53;

/// Each member of a group is asked for a page by TCP, and a DNS server is asked through it by UDP. One that does not
/// answer is not used while another does.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `url`: the page, by http:// or https://, whose server must answer with a status from 200 to 299. Default
    /// `http://cp.cloudflare.com/generate_204`.
    #[serde(serialize_with = "shown")]
    pub url: CheckUrl,
    /// `dns`: the address of the DNS server. Default "1.1.1.1:53".
    pub dns: SocketAddr,
    /// `interval`: the time between two checks of an outbound that is up, 1s to 1d. One that is down is checked after
    /// 5s, then after twice as long, up to this time. Default 1m.
    #[serde(serialize_with = "duration::serialize")]
    pub interval: Duration,
    /// `timeout`: how long the answer may take, 100ms to 1m. Default 5s.
    #[serde(serialize_with = "duration::serialize")]
    pub timeout: Duration,
}

impl Default for Check {
    fn default() -> Self {
        let CheckSettings {
            url,
            dns,
            interval,
            timeout,
        } = CheckSettings::default();
        Self {
            url,
            dns,
            interval,
            timeout,
        }
    }
}

impl Check {
    /// The same for the proxy.
    #[must_use]
    pub fn settings(&self) -> CheckSettings {
        CheckSettings {
            url: self.url.clone(),
            dns: self.dns,
            interval: self.interval,
            timeout: self.timeout,
        }
    }
}

fn shown<S: Serializer>(url: &CheckUrl, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(url)
}

/// Reads `[check]`.
pub(super) fn read(root: &mut Table<'_>, into: &mut Check) {
    root.table("check", |table| {
        let page = text("a URL", "http://192.0.2.1/", page);
        table.optional("url", &mut into.url, page);
        let server = text("an address", "192.0.2.1:53", server);
        table.optional("dns", &mut into.dns, server);
        let often = within(Duration::from_secs(1)..=Duration::from_hours(24));
        table.optional("interval", &mut into.interval, often);
        let limit = within(Duration::from_millis(100)..=Duration::from_mins(1));
        table.optional("timeout", &mut into.timeout, limit);
    });
}

fn page(text: &str) -> Result<CheckUrl, Refusal> {
    let help = "write one like http://192.0.2.1/ or https://www.example.com/generate_204";
    let refuse = |why: &str| Refusal::new(format!("`{}` {why}", excerpt(text)), help);
    let url = Url::parse(text).map_err(|error| refuse(&format!("is not a URL ({error})")))?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(refuse("does not begin with http:// or https://")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal::new(
            "the URL of a check takes no user and password",
            help,
        ));
    }
    let port = url.port_or_known_default().filter(|port| *port > 0);
    Ok(CheckUrl {
        tls,
        host: url
            .host()
            .ok_or_else(|| refuse("names no host"))?
            .to_owned(),
        port: port.ok_or_else(|| refuse("has no port that can be connected to"))?,
        path: match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        },
    })
}

fn server(text: &str) -> Result<SocketAddr, Refusal> {
    let address = text.parse::<SocketAddr>().ok();
    let ip = || Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, DNS_PORT));
    let found = address.or_else(ip).filter(|found| found.port() > 0);
    found.ok_or_else(|| {
        Refusal::new(
            format!("`{}` is not the address of a DNS server", excerpt(text)),
            "write one like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53",
        )
    })
}
