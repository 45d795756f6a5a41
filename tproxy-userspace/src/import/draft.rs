//! A configuration that is being put together.

use ipnet::IpNet;

use crate::policy::port::PortRange;

/// All that is known of the configuration.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Is the gateway's own traffic proxied? None if no file says so.
    pub own: Option<bool>,
    /// Do private ranges go direct? None if no file says so.
    pub private: Option<bool>,
    /// `[lan] interfaces`.
    pub lan: Vec<String>,
    /// `[wan] interfaces`, if not those with a default route.
    pub wan: Vec<String>,
    /// `[[outbound]]`.
    pub outbounds: Vec<OutboundDraft>,
    /// `[[group]]`.
    pub groups: Vec<GroupDraft>,
    /// `[check] url` and `interval`.
    pub check: (Option<String>, Option<String>),
    /// What takes all that no rule is about: the name of an outbound or group.
    pub default: Option<String>,
    /// `[[rule]]`, in their order.
    pub rules: Vec<RuleDraft>,
    /// `[bypass] prefixes`, each with where it comes from.
    pub bypass: Vec<(String, Vec<IpNet>)>,
    /// `[bypass] files`, each with where it comes from.
    pub bypass_files: Vec<(String, String)>,
    /// Sets whose contents are not known, with where they are named.
    pub missing_sets: Vec<(String, String)>,
    /// `[dns]`.
    pub dns: Option<DnsDraft>,
    /// `[sniff]`: enabled, rewrite; and where it comes from.
    pub sniff: Option<(bool, bool, String)>,
    /// `[exempt] gids`, each with where it comes from.
    pub gids: Vec<(u32, String)>,
    /// `[exempt] uids`.
    pub uids: Vec<(u32, String)>,
    /// `[exempt] marks`: value and mask.
    pub marks: Vec<((u32, u32), String)>,
}

/// An outbound.
#[derive(Debug, Default)]
pub(super) struct OutboundDraft {
    /// Its name here.
    pub name: String,
    /// Its name in the file.
    pub tag: String,
    /// Its URL, which may hold a password.
    pub url: String,
    /// Where it comes from.
    pub from: String,
    /// It stands for one that was not taken over: what to write in the place of its URL, and why.
    pub placeholder: Option<(String, String)>,
    /// `via`.
    pub via: Option<String>,
    /// `source`.
    pub source: Vec<String>,
    /// `interface`.
    pub interface: Option<String>,
}

/// A group.
#[derive(Debug)]
pub(super) struct GroupDraft {
    /// Its name here.
    pub name: String,
    /// Where it comes from.
    pub from: String,
    /// `kind`.
    pub kind: &'static str,
    /// `members`.
    pub members: Vec<String>,
}

/// Where a rule sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By no proxy.
    Direct,
    /// Nowhere.
    Block,
    /// As what no rule is about.
    Default,
    /// By an outbound or group.
    Named(String),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuleDraft {
    /// Where it comes from.
    pub from: String,
    /// `domain`.
    pub domain: Vec<String>,
    /// `prefix`.
    pub prefix: Vec<IpNet>,
    /// `prefix_files`.
    pub prefix_files: Vec<String>,
    /// `source`.
    pub source: Vec<IpNet>,
    /// `port`.
    pub port: Vec<PortRange>,
    /// `protocol`.
    pub protocol: Option<&'static str>,
    /// `outbound`.
    pub exit: Exit,
}

impl RuleDraft {
    /// One without conditions.
    pub fn new(from: impl Into<String>, exit: Exit) -> Self {
        Self {
            from: from.into(),
            domain: Vec::new(),
            prefix: Vec::new(),
            prefix_files: Vec::new(),
            source: Vec::new(),
            port: Vec::new(),
            protocol: None,
            exit,
        }
    }

    /// Does it ask for nothing but the destination's address?
    pub fn is_about_addresses_alone(&self) -> bool {
        let others = self.domain.is_empty()
            && self.source.is_empty()
            && self.port.is_empty()
            && self.protocol.is_none();
        others && !(self.prefix.is_empty() && self.prefix_files.is_empty())
    }
}

/// `[dns]`.
#[derive(Debug, Default)]
pub(super) struct DnsDraft {
    /// Where it comes from.
    pub from: String,
    /// `direct`.
    pub direct: Vec<String>,
    /// `proxy`.
    pub proxy: Vec<String>,
    /// `direct_domains`.
    pub direct_domains: Vec<String>,
    /// `cache`.
    pub cache: Option<u64>,
    /// `ipv6 = false`.
    pub no_ipv6: bool,
}
