//! What the lists of a configuration hold.

use std::sync::Arc;

use anyhow::{Context, Result};
use ipnet::IpNet;
use tproxy_userspace::config::{self, Config, DomainSource, Outbound};
use tproxy_userspace::policy::domain::Domain;
use tproxy_userspace::policy::list::{Loaded, load_domains, load_prefixes};
use tproxy_userspace::policy::prefix;
use tproxy_userspace::policy::rule::{Rule, Rules};

/// What the rule is called that `dns.direct_domains` comes to, behind all others.
pub const DIRECT_DOMAINS: &str = "dns.direct_domains";

/// The prefixes and rules of a configuration, with all that its files hold.
#[derive(Clone, Debug)]
pub struct Lists {
    /// What is bypassed.
    pub bypass: Vec<IpNet>,
    /// The rules.
    pub rules: Arc<Rules>,
    /// The place of the rule [`DIRECT_DOMAINS`].
    pub direct_names: Option<usize>,
    /// What the files hold beside that, a sentence for each.
    pub notes: Vec<String>,
}

impl Lists {
    /// Reads all of them.
    ///
    /// # Errors
    /// When one of them is wrong. There is no half set.
    pub fn load(config: &Config) -> Result<Self> {
        let Loaded {
            entries: bypass,
            mut notes,
        } = bypass(config)?;
        let mut rules = Vec::new();
        for one in &config.rules {
            rules
                .push(rule(one, &mut notes).with_context(|| format!("the rule \"{}\"", one.name))?);
        }
        let mut direct_names = None;
        if let Some(dns) = &config.dns
            && !dns.direct_domains.is_empty()
        {
            direct_names = Some(rules.len());
            rules.push(Rule {
                name: DIRECT_DOMAINS.to_owned(),
                domain: domains(&dns.direct_domains, &mut notes).context(DIRECT_DOMAINS)?,
                prefix: None,
                source: None,
                port: None,
                protocol: None,
                outbound: Outbound::DIRECT.to_owned(),
            });
        }
        let rules = Rules::new(rules, config.default_exit())?;
        Ok(Self {
            bypass,
            rules: Arc::new(rules),
            direct_names,
            notes,
        })
    }

    /// The same, with the notes in the log.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_and_tell(config: &Config) -> Result<Self> {
        let lists = Self::load(config)?;
        for note in &lists.notes {
            tracing::info!("{note}");
        }
        Ok(lists)
    }
}

/// The prefixes that the configuration bypasses.
///
/// # Errors
/// When a list is wrong.
pub fn bypass(config: &Config) -> Result<Loaded<IpNet>> {
    let mut lists = load_prefixes(&config.bypass.files, &mut |_| {})?;
    lists.entries.extend(&config.bypass.prefixes);
    prefix::normalize(&mut lists.entries);
    Ok(lists)
}

fn rule(rule: &config::Rule, notes: &mut Vec<String>) -> Result<Rule> {
    let mut prefixes = rule.prefix.clone();
    if !rule.prefix_files.is_empty() {
        let mut lists = load_prefixes(&rule.prefix_files, &mut |_| {})?;
        notes.append(&mut lists.notes);
        prefixes.append(&mut lists.entries);
    }
    Ok(Rule {
        name: rule.name.clone(),
        domain: domains(&rule.domain, notes)?,
        prefix: given(prefixes),
        source: given(rule.source.clone()),
        port: given(rule.port.clone()),
        protocol: rule.protocol,
        outbound: rule.outbound.clone(),
    })
}

fn domains(sources: &[DomainSource], notes: &mut Vec<String>) -> Result<Option<Vec<Domain>>> {
    let mut all = Vec::new();
    let mut lists = Vec::new();
    for source in sources {
        match source {
            DomainSource::Domain(domain) => all.push(domain.clone()),
            DomainSource::List(source) => lists.push(source.clone()),
        }
    }
    if !lists.is_empty() {
        let mut loaded = load_domains(&lists, &mut |_| {})?;
        notes.append(&mut loaded.notes);
        all.append(&mut loaded.entries);
    }
    Ok(given(all))
}

/// A configuration has no empty condition.
fn given<T>(entries: Vec<T>) -> Option<Vec<T>> {
    (!entries.is_empty()).then_some(entries)
}
