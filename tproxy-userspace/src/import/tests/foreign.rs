//! Bytes of strangers.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Whatever is printed is a configuration, and no note holds what a terminal obeys.
fn sound(inputs: &[Input]) -> Option<Config> {
    match import(inputs, &Options::default()) {
        Ok(imported) => {
            let notes = imported.notes.to_string();
            assert!(
                !notes.chars().any(|c| c.is_control() && c != '\n'),
                "{notes:?}"
            );
            Some(Config::parse(&imported.toml, Path::new("x")).unwrap())
        }
        Err(error) => {
            assert!(!matches!(error, ImportError::Unfit { .. }), "{error}");
            assert!(
                !error.to_string().chars().any(char::is_control),
                "{error:?}"
            );
            None
        }
    }
}

fn input(text: impl Into<Vec<u8>>) -> Input {
    Input {
        name: "x\n[lan]".to_owned(),
        bytes: text.into(),
    }
}

/// Texts that try to be more than a text.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,12}",
        "[\"'\\\\\n\r\t\u{0}#=\\[\\]{}@:/?%\u{202e}a]{0,12}",
        Just("\"\n[[outbound]]\nname = \"x".to_owned()),
        Just("'''".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn names_and_passwords_stay_what_they_are(
        tag in hostile(), user in hostile(), password in hostile(), address in hostile(), domain in hostile(), file in hostile(),
    ) {
        let value = json!({
            "inbounds": [{ "tag": tag.clone(), "protocol": "dokodemo-door", "settings": { "followRedirect": true } }],
            "outbounds": [
                { "tag": tag.clone(), "protocol": "socks", "settings": { "servers": [{ "address": "192.0.2.1", "port": 1080,
                    "users": [{ "user": user.clone(), "pass": password.clone() }] }] } },
                { "tag": "b", "protocol": "shadowsocks", "settings": { "servers": [{ "address": address, "port": 1, "method": "aes-128-gcm", "password": password.clone() }] } },
                { "tag": "c", "protocol": "trojan", "settings": { "servers": [{ "address": "192.0.2.2", "port": 443, "password": password.clone() }] },
                    "streamSettings": { "security": "tls" } },
                { "tag": "direct", "protocol": "freedom", "sendThrough": domain.clone(), "streamSettings": { "sockopt": { "interface": tag.clone() } } },
                { "tag": "d", "protocol": tag.clone() },
            ],
            "dns": { "servers": [{ "address": domain.clone(), "domains": [domain.clone(), format!("geosite:{file}")] }, tag.clone()] },
            "routing": {
                "balancers": [{ "tag": tag.clone(), "selector": [""], "fallbackTag": "direct" }],
                "rules": [
                    { "port": 53, "outboundTag": tag.clone() },
                    { "domain": [domain.clone(), format!("domain:{domain}"), format!("regexp:{domain}"), format!("ext:{file}")], "outboundTag": "b" },
                    { "ip": [format!("geoip:{file}"), domain.clone()], "source": [file.clone(), "10.0.0.1/8"], "outboundTag": "direct" },
                    { "port": file.clone(), "network": domain.clone(), "balancerTag": tag.clone() },
                    { tag.clone(): 1, "outboundTag": "c" },
                ],
            },
            tag: file,
        });
        if let Some(config) = sound(&[input(value.to_string())]) {
            // What was taken over is just what stood there.
            if let data::Outbound::Socks5(server) = &config.outbounds[0].url
                && let Some(credentials) = &server.credentials
            {
                prop_assert_eq!(&credentials.user, user.as_bytes());
                prop_assert_eq!(&credentials.password, password.as_bytes());
            }
        }
    }

    #[test]
    fn rules_of_strangers(words in proptest::collection::vec(prop_oneof![
        prop::sample::select(vec![
            "-d", "-s", "10.0.0.0/8", "2001:db8::/32", "192.0.2.1/255.255.255.0", "-i", "-o", "lo", "eth+", "!", "-p", "tcp", "udp", "--dport", "--dports",
            "53", "80,443", "1:65535", "-m", "socket", "set", "--match-set", "near", "dst", "src", "--mark", "0xff", "0x1/0x1", "--gid-owner", "0-5", "7",
            "--dst-type", "LOCAL", "-j", "RETURN", "TPROXY", "--on-port", "1", "MARK", "--set-xmark", "0x1", "X", "Y", "DROP", "\n-A PREROUTING",
            "\n-A OUTPUT", "\n-A X", "\n-A Y", "\nCOMMIT\n*nat", "-g",
        ]).prop_map(str::to_owned),
        hostile(),
    ], 0..60)) {
        let text = format!("*mangle\n-A PREROUTING {}\n-A PREROUTING -p tcp -j TPROXY --on-port 1\n", words.join(" "));
        sound(&[input(text), inputs(&["near.ipset"]).remove(0)]);
    }

    #[test]
    fn samples_that_were_damaged(sample in 0..SAMPLES.len(), at in 0..4096_usize, length in 0..64_usize, put in hostile()) {
        let mut bytes = SAMPLES[sample].1.as_bytes().to_vec();
        let at = at.min(bytes.len());
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, put.into_bytes());
        sound(&[input(bytes), inputs(&["near.ipset"]).remove(0)]);
    }

    #[test]
    fn any_bytes(bytes: Vec<u8>) {
        sound(&[input(bytes.clone())]);
        sound(&[input([b"{", &bytes[..]].concat())]);
        sound(&[input([b"*mangle\n-A PREROUTING ", &bytes[..]].concat())]);
        sound(&[input([b"create a hash:net\nadd a ", &bytes[..]].concat())]);
    }
}
