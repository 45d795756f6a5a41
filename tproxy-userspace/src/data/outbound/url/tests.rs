use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Outbound {
    text.parse().expect(text)
}

fn refused(text: &str) -> String {
    text.parse::<Outbound>().expect_err(text).to_string()
}

#[test]
fn urls_are_read_and_shown_without_their_password() {
    for (text, shown) in [
        ("direct://", "direct://"),
        ("BLOCK://", "block://"),
        ("socks5://192.0.2.1:1080", "socks5://192.0.2.1:1080"),
        ("SOCKS5://[2001:db8::1]:1080", "socks5://[2001:db8::1]:1080"),
        ("socks5://Proxy.example:1/", "socks5://proxy.example:1"),
        ("socks5://me:s3cret@h:1080", "socks5://me:***@h:1080"),
        ("socks5://m%40e:p@h:1080", "socks5://m%40e:***@h:1080"),
        ("http://192.0.2.1:80", "http://192.0.2.1:80"),
        ("http://me:@h:8080", "http://me:***@h:8080"),
        (
            "http://me@[2001:db8::1]:3128",
            "http://me:***@[2001:db8::1]:3128",
        ),
        (
            "https://me:s3cret@Proxy.example",
            "https://me:***@proxy.example:443",
        ),
        ("https://192.0.2.1:8443", "https://192.0.2.1:8443"),
        // s3cret in base64, method and all.
        (
            "ss://YWVzLTI1Ni1nY206czNjcmV0@h:8388#tag",
            "ss://aes-256-gcm:***@h:8388",
        ),
        (
            "ss://YWVzLTI1Ni1nY206czNjcmV0QDE5Mi4wLjIuMTo4Mzg4",
            "ss://aes-256-gcm:***@192.0.2.1:8388",
        ),
        ("trojan://s3cret@h", "trojan://***@h:443"),
    ] {
        let outbound = parse(text);
        assert_eq!(outbound.to_string(), shown);
        assert_eq!(serde_json::to_value(&outbound).expect("a text"), shown);
        assert!(!format!("{outbound:?}").contains("s3cret"));
    }
}

#[test]
fn the_parts_of_a_server_are_what_is_written() {
    let Outbound::Socks5(server) = parse("socks5://me:p%40ss@192.0.2.1:1081") else {
        panic!("a SOCKS5 server");
    };
    assert!(matches!(server.host, Host::Ipv4(_)));
    assert_eq!(server.port, 1081);
    let credentials = server.credentials.expect("given");
    assert_eq!(
        (&*credentials.user, &*credentials.password),
        (&b"me"[..], &b"p@ss"[..])
    );
    let Outbound::Socks5(server) = parse("socks5://proxy.example:1080") else {
        panic!("a SOCKS5 server");
    };
    assert_eq!(server.host, Host::Domain("proxy.example".to_owned()));
    assert_eq!(server.credentials, None);
}

#[test]
fn what_is_no_outbound_is_told_with_a_remedy() {
    let form = "write socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT";
    for (text, error) in [
        (
            "192.0.2.1:1080",
            "it is not a URL: it does not begin with a scheme and `://`; write direct:// or socks5://HOST:PORT".to_owned(),
        ),
        (
            "ss://abc@h:1",
            "the URL ss:// has no `:` between method and password; write ss://METHOD:PASSWORD@HOST:PORT".to_owned(),
        ),
        (
            "trojan://h:1",
            "the URL trojan:// has no password before the host; write trojan://PASSWORD@HOST:PORT?sni=NAME".to_owned(),
        ),
        (
            "socks://h:1",
            "`socks` is not a known scheme; did you mean socks5://? supported are direct://, block://, socks5://, http://, https://, ss:// and trojan://".to_owned(),
        ),
        (
            "gopher://h:1",
            "`gopher` is not a known scheme; supported are direct://, block://, socks5://, http://, https://, ss:// and trojan://".to_owned(),
        ),
        (
            "direct://h",
            "nothing may follow direct://, since the gateway connects itself; write direct://".to_owned(),
        ),
        ("socks5://:1080", format!("it is not a valid URL: empty host; {form}")),
        ("socks5://", format!("the host is missing; {form}")),
        (
            "socks5://h",
            "the port is missing; write it behind the host: the usual one is socks5://HOST:1080".to_owned(),
        ),
        (
            "socks5://192.0.2.256:1080",
            format!("`192.0.2.256` is not an IPv4 address; {form}"),
        ),
        ("socks5://127.1:1080", format!("`127.1` is not an IPv4 address; {form}")),
        (
            "socks5://h:70000",
            format!("it is not a valid URL: invalid port number; {form}"),
        ),
        (
            "socks5://me@h:1080",
            format!("the password is missing: SOCKS5 knows both or none (RFC 1929); {form}"),
        ),
    ] {
        assert_eq!(refused(text), error, "{text}");
    }
    for text in [
        "socks5://h:0",
        "socks5://h:1/x",
        "socks5://h:1?x",
        "socks5://h:1#x",
        "socks5://:p@h:1",
        "direct:///",
        "block://h",
        "http://h",
        "http://:p@h:1",
        "http://a%3Ab:p@h:1",
        "http://a:p%0d%0aX@h:1",
        "https://h:0",
        "https://h/path",
    ] {
        refused(text);
    }
}

#[test]
fn secrets_have_the_length_that_the_protocol_can_carry() {
    parse(&format!("socks5://{}:p@h:1", "%41".repeat(255)));
    let long = format!("socks5://u:{}@h:1", "p".repeat(256));
    assert!(refused(&long).contains("255 bytes"));
    let long = format!("socks5://{}:1", "a.".repeat(127));
    assert!(refused(&long).contains("longer than any name"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_or_leaks(
        scheme in prop::sample::select(SCHEMES.map(|scheme| scheme.name).to_vec()),
        text in "\\PC*",
        secret in "[A-Z]{9,20}",
    ) {
        let text = format!("{scheme}://u:{secret}@{text}");
        let shown = match text.parse::<Outbound>() {
            Ok(outbound) => format!("{outbound} {outbound:?}"),
            Err(error) => error.to_string(),
        };
        prop_assert!(!shown.contains(&secret), "{}", shown);
    }
}
