//! What a request to the control API brings that is read here: HTTP, JSON and WebSockets are read by libraries.

use std::net::IpAddr;

use tproxy_userspace::observe::api::is_own_name;
use tproxy_userspace::observe::log::Directives;

/// The first line as the name that the gateway is asked by, the rest as what its log is to tell.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (host, filter) = text.split_once('\n').unwrap_or((&text, ""));
    let named = ["gateway.lan".to_owned()];
    if is_own_name(host, &named) {
        // No name of another site, whatever stands around it.
        let known = host.to_ascii_lowercase();
        let begins = ["gateway.lan", "localhost"]
            .iter()
            .any(|name| known.starts_with(name));
        let address = host
            .trim_start_matches('[')
            .split(']')
            .next()
            .unwrap_or_default();
        let address = address.parse::<IpAddr>().is_ok()
            || address
                .split(':')
                .next()
                .is_some_and(|address| address.parse::<IpAddr>().is_ok());
        assert!(
            begins || address,
            "{host:?} passes for a name of the gateway"
        );
    }
    if let Ok(directives) = Directives::parse(filter) {
        let again = Directives::parse(&directives.to_string());
        assert_eq!(
            again.map(|again| again.to_string()).ok(),
            Some(directives.to_string())
        );
    }
}
