//! The draft, written.

use ipnet::IpNet;

use super::Options;
use super::draft::{DnsDraft, Draft, Exit, OutboundDraft, RuleDraft};
use super::notes::{Notes, shown, some};
use super::write::{Document, Value};
use crate::config::{LinkPattern, Mark};
use crate::policy::prefix::normalize;

/// Writes the configuration.
pub(super) fn finish(mut draft: Draft, options: &Options, notes: &mut Notes) -> String {
    settle(&mut draft, options, notes);
    let mut body = Document::default();
    stage(&draft, &mut body);
    links(&draft, &mut body);
    for outbound in &draft.outbounds {
        write_outbound(outbound, &mut body);
    }
    for group in &draft.groups {
        body.gap();
        body.comment(&group.from);
        body.section("[group]");
        body.key("name", &text(&group.name));
        body.key("kind", &text(group.kind));
        body.key("members", &Value::texts(&group.members));
    }
    if let (Some(url), often) = &draft.check {
        body.gap();
        body.section("check");
        body.key("url", &text(url));
        if let Some(often) = often {
            body.key("interval", &text(often));
        }
    }
    let default = draft.default.clone().unwrap_or_else(|| "proxy".to_owned());
    for (index, rule) in draft.rules.iter().enumerate() {
        write_rule(index, rule, &default, &mut body);
    }
    bypass(&draft, &mut body);
    if let Some(dns) = &draft.dns {
        write_dns(dns, &mut body);
    }
    if let Some((enabled, rewrite, from)) = &draft.sniff
        && (!enabled || *rewrite)
    {
        body.gap();
        body.comment(from);
        body.section("sniff");
        if *enabled {
            body.key("rewrite", &Value::Flag(true));
        } else {
            body.key("enabled", &Value::Flag(false));
        }
    }
    exempt(&draft, &mut body);
    let implied = draft
        .groups
        .first()
        .map(|group| &group.name)
        .or(draft.outbounds.first().map(|one| &one.name));
    if implied != Some(&default) {
        body.gap();
        body.comment("what no rule is about");
        body.section("proxy");
        body.key("outbound", &text(&default));
    }
    format!("{}{}", head(notes), body.finish())
}

/// Fills in what no file says, and leaves out what no configuration can have.
fn settle(draft: &mut Draft, options: &Options, notes: &mut Notes) {
    if !options.lan.is_empty() {
        draft.lan.clone_from(&options.lan);
    }
    let mut fit = |links: &mut Vec<String>| {
        links.sort();
        links.dedup();
        links.retain(|link| {
            let refusal = link.parse::<LinkPattern>().err();
            if let Some(refusal) = &refusal {
                notes.left_out(&refusal.message);
            }
            refusal.is_none()
        });
    };
    fit(&mut draft.lan);
    fit(&mut draft.wan);
    let devices = draft.own != Some(true)
        || !notes
            .understood
            .iter()
            .any(|note| note.starts_with("only the gateway's own"));
    if draft.lan.is_empty() && devices {
        notes.open("name the link with the devices: [lan] interfaces, or `import --lan IF`; the old rules are for all links");
    }
    if draft.default.is_none() {
        notes.open(
            "the rules do not say where the proxy sends: write the outbound's URL in the place of block:// (or give the config.json of \
             Xray or V2Ray, too)",
        );
        let taken = |name: &str| {
            let outbounds = draft.outbounds.iter().map(|one| &one.name);
            let mut names = outbounds.chain(draft.groups.iter().map(|one| &one.name));
            names.any(|other| other == name)
        };
        let mut name = "proxy".to_owned();
        while taken(&name) {
            name.insert_str(0, "new-");
        }
        draft.default = Some(name.clone());
        draft.outbounds.push(OutboundDraft {
            name,
            url: "block://".to_owned(),
            from: "the rules do not say where the proxy sends".to_owned(),
            placeholder: Some((
                "socks5://127.0.0.1:PORT".to_owned(),
                "a SOCKS5 inbound of the old program, or your server".to_owned(),
            )),
            ..OutboundDraft::default()
        });
    }
    draft.marks.retain(|((value, mask), from)| {
        let refusal = Mark::new(*value, *mask).err();
        if let Some(refusal) = &refusal {
            notes.left_out(format!("{from}: {}", refusal.message));
        }
        refusal.is_none()
    });
    for (name, from) in &draft.missing_sets {
        notes.open(format!(
            "{from} went direct: run `ipset save {0} > {0}.ipset`, put the file beside the configuration and take the # from its line in [bypass]",
            shown(name)
        ));
    }
    for (_, file) in &draft.bypass_files {
        list_needed(file, notes);
    }
    let of_rules = draft
        .rules
        .iter()
        .flat_map(|rule| rule.prefix_files.iter().chain(&rule.domain));
    let of_dns = draft.dns.iter().flat_map(|dns| &dns.direct_domains);
    for file in of_rules.chain(of_dns) {
        list_needed(file, notes);
    }
    notes.open(
        "before the first start, take the old rules away (they would lead packets to the old proxy) and stop the old program, if no outbound \
         needs it; then `tproxy-bpf check`, `tproxy-bpf doctor`, `tproxy-bpf run`",
    );
}

/// A file that has to be there.
fn list_needed(entry: &str, notes: &mut Notes) {
    let Some((file, _)) = entry.rsplit_once(':') else {
        return;
    };
    if file.ends_with(".dat") {
        notes.open(format!(
            "the file {} must be there (a path without a slash in front starts at the configuration's folder; `import --lists FOLDER` writes another)",
            shown(file)
        ));
    }
}

fn head(notes: &Notes) -> String {
    let mut head = Document::default();
    head.comment("Made by `tproxy-bpf import`. It may hold passwords: chmod 600.");
    for (heading, list) in notes.lists() {
        head.comment("");
        head.comment(&format!("{heading}:"));
        for note in list {
            head.comment_from("- ", note);
        }
    }
    head.gap();
    head.finish()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn stage(draft: &Draft, body: &mut Document) {
    let own = draft.own == Some(true);
    let private = draft.private.unwrap_or(true);
    let (stage, why) = match (own, &draft.dns, private) {
        (true, Some(_), _) => (
            4,
            "devices and the gateway's own traffic, and names by two sides",
        ),
        (true, None, _) => (3, "devices and the gateway's own traffic"),
        (false, _, true) => (2, "devices; private ranges go direct"),
        (false, _, false) => (1, "devices; private ranges are proxied like all others"),
    };
    body.comment(why);
    body.key("stage", &Value::Number(stage));
}

fn links(draft: &Draft, body: &mut Document) {
    body.gap();
    body.section("lan");
    if draft.lan.is_empty() {
        body.suggestion(
            "interfaces",
            &Value::texts(["eth0"]),
            "the link with the devices",
        );
    } else {
        body.key("interfaces", &Value::texts(&draft.lan));
    }
    if !draft.wan.is_empty() && draft.own == Some(true) {
        body.gap();
        body.comment("the old rules name the links that the gateway's own traffic leaves by");
        body.section("wan");
        body.key("interfaces", &Value::texts(&draft.wan));
    }
}

fn write_outbound(outbound: &OutboundDraft, body: &mut Document) {
    body.gap();
    body.comment(&outbound.from);
    body.section("[outbound]");
    body.key("name", &text(&outbound.name));
    body.key("url", &text(&outbound.url));
    if let Some((url, why)) = &outbound.placeholder {
        return body.suggestion("url", &text(url), why);
    }
    if let Some(via) = &outbound.via {
        body.key("via", &text(via));
    }
    if !outbound.source.is_empty() {
        body.key("source", &Value::texts(&outbound.source));
    }
    if let Some(link) = &outbound.interface {
        body.key("interface", &text(link));
    }
}

fn write_rule(index: usize, rule: &RuleDraft, default: &str, body: &mut Document) {
    body.gap();
    body.comment(&rule.from);
    if index > 0 && rule.exit == Exit::Direct && rule.is_about_addresses_alone() {
        body.comment(
            "faster in [bypass], where the kernel asks, if the rules before it need not come first",
        );
    }
    body.section("[rule]");
    body.key("name", &text(&format!("imported {}", index + 1)));
    if !rule.domain.is_empty() {
        body.key("domain", &Value::texts(&rule.domain));
    }
    let mut prefixes = rule.prefix.clone();
    normalize(&mut prefixes);
    if !prefixes.is_empty() {
        body.key("prefix", &Value::texts(&prefixes));
    }
    if !rule.prefix_files.is_empty() {
        body.key("prefix_files", &Value::texts(&rule.prefix_files));
    }
    if !rule.source.is_empty() {
        body.key("source", &Value::texts(&rule.source));
    }
    if !rule.port.is_empty() {
        body.key("port", &Value::texts(&rule.port));
    }
    if let Some(protocol) = rule.protocol {
        body.key("protocol", &text(protocol));
    }
    let exit = match &rule.exit {
        Exit::Direct => "direct",
        Exit::Block => "block",
        Exit::Default => default,
        Exit::Named(name) => name,
    };
    body.key("outbound", &text(exit));
}

fn bypass(draft: &Draft, body: &mut Document) {
    let own = draft.own == Some(true);
    // Stage 1 says it by itself.
    let private = (own && draft.private == Some(false)).then_some(false);
    if private.is_none()
        && draft.bypass.is_empty()
        && draft.bypass_files.is_empty()
        && draft.missing_sets.is_empty()
    {
        return;
    }
    body.gap();
    for (from, prefixes) in draft.bypass.iter().take(20) {
        body.comment(&format!("{from}: {}", some(prefixes)));
    }
    for (from, file) in &draft.bypass_files {
        body.comment(&format!("{from}: {}", shown(file)));
    }
    body.section("bypass");
    if let Some(private) = private {
        body.key("private", &Value::Flag(private));
    }
    let mut prefixes: Vec<IpNet> = draft
        .bypass
        .iter()
        .flat_map(|(_, prefixes)| prefixes.clone())
        .collect();
    normalize(&mut prefixes);
    if !prefixes.is_empty() {
        body.key("prefixes", &Value::texts(&prefixes));
    }
    let files: Vec<&String> = draft.bypass_files.iter().map(|(_, file)| file).collect();
    if !files.is_empty() {
        body.key("files", &Value::texts(files));
    }
    if !draft.missing_sets.is_empty() {
        let files = draft
            .missing_sets
            .iter()
            .map(|(name, _)| format!("{name}.ipset"));
        body.suggestion(
            "files",
            &Value::texts(files),
            "sets that went direct; with other files, in one list",
        );
    }
}

fn write_dns(dns: &DnsDraft, body: &mut Document) {
    body.gap();
    body.comment(&dns.from);
    body.section("dns");
    if !dns.direct.is_empty() {
        body.key("direct", &Value::texts(&dns.direct));
    }
    body.key("proxy", &Value::texts(&dns.proxy));
    if !dns.direct_domains.is_empty() {
        body.key("direct_domains", &Value::texts(&dns.direct_domains));
    }
    if let Some(cache) = dns.cache {
        body.key("cache", &Value::Number(cache));
    }
    if dns.no_ipv6 {
        body.key("ipv6", &Value::Flag(false));
    }
}

fn exempt(draft: &Draft, body: &mut Document) {
    let numbers = |list: &[(u32, String)]| {
        let mut numbers: Vec<u32> = list.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Value::List(
            numbers
                .into_iter()
                .map(|number| Value::Number(number.into()))
                .collect(),
        )
    };
    if draft.gids.is_empty() && draft.uids.is_empty() && draft.marks.is_empty() {
        return;
    }
    body.gap();
    let from = draft.gids.iter().chain(&draft.uids).map(|(_, from)| from);
    let from: Vec<&String> = from
        .chain(draft.marks.iter().map(|(_, from)| from))
        .collect();
    body.comment(&format!(
        "{}. What only the old proxy needed can go",
        some(&from)
    ));
    body.section("exempt");
    if !draft.gids.is_empty() {
        body.key("gids", &numbers(&draft.gids));
    }
    if !draft.uids.is_empty() {
        body.key("uids", &numbers(&draft.uids));
    }
    let mut marks: Vec<String> = Vec::new();
    for ((value, mask), _) in &draft.marks {
        let mark = match *mask {
            u32::MAX => format!("{value:#x}"),
            mask => format!("{value:#x}/{mask:#x}"),
        };
        if !marks.contains(&mark) {
            marks.push(mark);
        }
    }
    if !marks.is_empty() {
        body.key("marks", &Value::texts(marks));
    }
}
