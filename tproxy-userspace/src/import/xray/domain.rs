//! Names and addresses as Xray and V2Ray write them, in the forms of a configuration here.

use ipnet::IpNet;

use crate::config::DomainSource;
use crate::import::notes::shown;
use crate::policy::source::STANDARD_INPUT;

/// What entries come to.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// For `domain` or `direct_domains`.
    pub entries: Vec<String>,
    /// Those that cannot be said, each with why.
    pub odd: Vec<String>,
}

/// Names of a rule or of a DNS server.
pub(super) fn names(entries: &[String], lists: &str) -> Names {
    let mut names = Names::default();
    for entry in entries {
        let (form, rest) = entry.split_once(':').unwrap_or(("", entry));
        let (written, is_list) = match form {
            "" => (format!("keyword:{entry}"), false),
            "domain" => (rest.to_owned(), false),
            "full" | "keyword" | "regexp" => (entry.clone(), false),
            "geosite" => (format!("{lists}geosite.dat:{rest}"), true),
            "ext" | "ext-domain" => (format!("{lists}{rest}"), true),
            _ => {
                names
                    .odd
                    .push(format!("{} (not a form that is known here)", shown(entry)));
                continue;
            }
        };
        match DomainSource::parse(&written, std::path::Path::new("")) {
            Ok(found) if matches!(found, DomainSource::List(_)) == is_list => {
                names.entries.push(written);
            }
            Ok(_) => names.odd.push(format!(
                "{} (it would be read as a file here)",
                shown(entry)
            )),
            Err(refusal) => names.odd.push(refusal.message),
        }
    }
    names
}

/// What addresses come to.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// For `prefix`.
    pub prefixes: Vec<IpNet>,
    /// For `prefix_files`.
    pub files: Vec<String>,
    /// `geoip:private` was among them.
    pub private: bool,
    /// Those that cannot be said.
    pub odd: Vec<String>,
}

/// Addresses of a rule.
pub(super) fn addresses(entries: &[String], lists: &str) -> Addresses {
    let mut addresses = Addresses::default();
    for entry in entries {
        if let Some(prefix) = crate::import::prefix(entry) {
            addresses.prefixes.push(prefix);
            continue;
        }
        let file = match entry.split_once(':') {
            Some(("geoip", "private")) => {
                addresses.private = true;
                continue;
            }
            Some(("geoip", code)) if !code.is_empty() => format!("{lists}geoip.dat:{code}"),
            Some(("ext" | "ext-ip", rest)) if !rest.is_empty() => format!("{lists}{rest}"),
            _ => {
                addresses.odd.push(shown(entry));
                continue;
            }
        };
        if file.contains('\0') || file == STANDARD_INPUT {
            addresses.odd.push(shown(entry));
        } else {
            addresses.files.push(file);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_our_forms() {
        let entries = [
            "geosite:cn",
            "domain:x.example",
            "full:www.x.example",
            "plain",
            "keyword:ads",
            "regexp:^ad[0-9]+\\.",
            "ext:own.dat:mine",
            "geosite:google@cn",
            "domain:odd.list",
            "dotless:x",
            "keyword:a b",
            "regexp:(?=x)",
        ]
        .map(str::to_owned);
        let names = names(&entries, "/lists/");
        assert_eq!(
            names.entries,
            [
                "/lists/geosite.dat:cn",
                "x.example",
                "full:www.x.example",
                "keyword:plain",
                "keyword:ads",
                "regexp:^ad[0-9]+\\.",
                "/lists/own.dat:mine",
                "/lists/geosite.dat:google@cn",
            ]
        );
        assert_eq!(names.odd.len(), 4, "{:?}", names.odd);
    }

    #[test]
    fn addresses_in_our_forms() {
        let entries = [
            "192.0.2.9/24",
            "2001:db8::1",
            "geoip:cn",
            "geoip:!cn",
            "geoip:private",
            "ext:a.dat:b",
            "ext:-",
            "x",
            "geoip:",
        ]
        .map(str::to_owned);
        let found = addresses(&entries, "");
        let prefixes: Vec<String> = found.prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(prefixes, ["192.0.2.0/24", "2001:db8::1/128"]);
        assert_eq!(found.files, ["geoip.dat:cn", "geoip.dat:!cn", "a.dat:b"]);
        assert!(found.private);
        assert_eq!(found.odd, ["ext:-", "x", "geoip:"]);
    }
}
