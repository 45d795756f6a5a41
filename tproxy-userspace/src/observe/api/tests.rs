use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use axum::http::HeaderMap;

use super::*;
use crate::observe::socket::ask;

struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
    server: Server,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::bind(&path, None, Log::silent()).unwrap();
    Bench {
        _folder: folder,
        path,
        server,
    }
}

/// What comes back for these bytes, to the end of the connection.
async fn say(path: &Path, bytes: impl Into<Vec<u8>>) -> String {
    let (path, bytes) = (path.to_owned(), bytes.into());
    let talk = move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // A refusal may come before all is sent.
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

async fn get(path: &Path, method: &str, target: &str, body: &str) -> (u16, Value) {
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = say(path, request).await;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    (status.expect("a status"), json)
}

#[tokio::test]
async fn a_request_is_answered_and_the_socket_is_for_its_owner() {
    let bench = bench();
    let mode = fs::metadata(&bench.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = bench.path.clone();
    let client = tokio::task::spawn_blocking(move || {
        ask(&path, &Request::Status, Duration::from_secs(5)).unwrap()
    });
    let asked = bench.server.next().await;
    assert_eq!(asked.request, Request::Status);
    asked.answer(&json!({ "well": true })).await;
    let answer = client.await.unwrap();
    assert_eq!(answer["well"], true);
    assert_eq!(answer["log"], "info,access=warn");
    let path = bench.path.clone();
    drop(bench.server);
    assert!(!path.exists());
}

/// Who waits for requests waits for other things as well, and those may come in the middle of one.
#[tokio::test]
async fn a_request_is_not_lost_with_the_future_that_waits_for_it() {
    let bench = bench();
    for _ in 0..10 {
        let waiting = timeout(Duration::ZERO, bench.server.next()).await;
        assert!(waiting.is_err());
    }
    let path = bench.path.clone();
    let client = tokio::spawn(async move { get(&path, "POST", "/v1/reload", "").await });
    let asked = bench.server.next().await;
    assert_eq!(asked.request, Request::Reload);
    asked.answer(&json!({ "error": "the file is bad" })).await;
    let (status, answer) = client.await.unwrap();
    assert_eq!((status, &answer["error"]), (422, &json!("the file is bad")));
}

#[tokio::test]
async fn nonsense_is_refused_in_json() {
    let bench = bench();
    let path = &bench.path;
    let long = format!("{{\"filter\":\"{}\"}}", "x".repeat(reply::LARGEST_BODY));
    for (method, target, body, status, word) in [
        ("GET", "/v1/dance", "", 404, "/v1/dance"),
        ("DELETE", "/v1/status", "", 405, "DELETE"),
        ("POST", "/metrics", "", 405, "POST"),
        ("GET", "/ui/", "", 404, "/ui/"),
        ("GET", "/v1/explain", "", 400, "query"),
        ("GET", "/v1/explain?protocol=tcp&source=x", "", 400, "query"),
        ("GET", "/v1/lookup?name=", "", 400, "name"),
        ("GET", "/v1/flows?devise=1", "", 400, "devise"),
        ("PUT", "/v1/log", "{", 400, "body"),
        ("PUT", "/v1/log", "{\"filter\":\"wran\"}", 400, "wran"),
        ("PUT", "/v1/log", "{\"filter\":\"info\",\"x\":1}", 400, "x"),
        ("PUT", "/v1/log", &long, 413, "larger"),
        (
            "POST",
            "/v1/detach",
            "{\"links\":[\"a\",\"b\"]}",
            400,
            "one link",
        ),
        ("PATCH", "/configs", "{\"mode\":\"global\"}", 400, "mode"),
        (
            "PATCH",
            "/configs",
            "{\"tun\":{\"enable\":true}}",
            400,
            "tun",
        ),
        ("GET", "/logs?level=loud", "", 400, "loud"),
    ] {
        let (got, answer) = get(path, method, target, body).await;
        assert_eq!(got, status, "{method} {target}: {answer}");
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains(word), "{method} {target}: {answer}");
    }
    // No HTTP at all, and a head without end.
    let answer = say(path, "{\"verb\":\"status\"}\n\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let head = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(1 << 20));
    let answer = say(path, head).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_log_is_changed_and_a_level_does_not_mean_connections() {
    let bench = bench();
    let path = &bench.path;
    let put = async |filter: &str| {
        let body = json!({ "filter": filter }).to_string();
        let (status, answer) = get(path, "PUT", "/v1/log", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["filter"].as_str().unwrap().to_owned()
    };
    assert_eq!(put("debug").await, "debug,access=warn");
    assert_eq!(put("info,access=info").await, "info,access=info");
    assert_eq!(put("warn").await, "warn,access=info");
    let (_, answer) = get(path, "GET", "/configs", "").await;
    assert_eq!(
        (&answer["log-level"], &answer["mode"]),
        (&json!("info"), &json!("rule"))
    );
    let request = "PATCH /configs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 22\r\n\r\n{\"log-level\":\"silent\"}";
    let answer = say(path, request).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(
        bench.server.hub.log.directives().to_string(),
        "off,access=info"
    );
}

#[tokio::test]
async fn connections_are_bounded_and_those_that_say_nothing_end() {
    let bench = bench();
    let path = bench.path.clone();
    let silent: Vec<UnixStream> = (0..CONNECTIONS)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    while bench.server.hub.unix.used() < CONNECTIONS {
        tokio::task::yield_now().await;
    }
    let answer = say(&path, "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(bench.server.hub.unix.refused.load(Relaxed), 1);
    drop(silent);
    while bench.server.hub.unix.used() > 0 {
        tokio::task::yield_now().await;
    }
    let (status, _) = get(&path, "GET", "/version", "").await;
    assert_eq!(status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_has_its_time() {
    let bench = bench();
    let silent = tokio::net::UnixStream::connect(&bench.path).await.unwrap();
    let mut byte = [0];
    silent.readable().await.unwrap();
    // The end, after the time for a head, which costs nobody else anything.
    assert_eq!(silent.try_read(&mut byte).unwrap_or(0), 0);
    drop(silent);
}

fn access() -> Access {
    Access {
        token: "correct horse".parse().unwrap(),
        origins: vec!["https://board.example".to_owned()],
        hosts: vec!["gateway.lan".to_owned()],
        dashboard: None,
    }
}

async fn tcp(address: SocketAddr, text: &str) -> (u16, HeaderMap, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut headers = HeaderMap::new();
    for line in head.lines().skip(1) {
        let (name, value) = line.split_once(": ").unwrap();
        let name: http::HeaderName = name.parse().unwrap();
        headers.append(name, value.parse().unwrap());
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, headers, body.to_owned())
}

fn request(method: &str, target: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    text + "\r\n"
}

const TOKEN: &str = "Authorization: Bearer correct horse";
const HOST: &str = "Host: 127.0.0.1";

/// Needs CAP_NET_ADMIN: the listener is marked.
#[tokio::test]
async fn by_tcp_only_those_are_let_in_who_may() {
    let bench = bench();
    let teller = bench.server.teller();
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let addresses = [loopback];
    let listen = |access: Option<Access>| {
        let wanted = access.map(|access| (&addresses[..], access));
        teller.listen(teller.prepare(wanted).unwrap());
    };
    listen(Some(access()));
    let at = bench.server.hub.listening().addresses()[0];
    let page = "Origin: https://board.example";
    let foreign = "Origin: https://evil.example";
    for (method, headers, status) in [
        ("GET", &[HOST, TOKEN][..], 200),
        ("GET", &["Host: gateway.lan:9090", TOKEN], 200),
        ("GET", &[HOST], 401),
        ("GET", &[HOST, "Authorization: Bearer correct horsf"], 401),
        ("GET", &["Host: evil.example", TOKEN], 403),
        ("GET", &[TOKEN], 403),
        ("GET", &[HOST, TOKEN, foreign], 403),
        ("GET", &[HOST, TOKEN, "Origin: null"], 403),
        ("GET", &[HOST, TOKEN, page], 200),
        ("GET", &[HOST, TOKEN, "Origin: http://127.0.0.1"], 200),
        (
            "OPTIONS",
            &[HOST, page, "Access-Control-Request-Method: PUT"],
            204,
        ),
        (
            "OPTIONS",
            &[HOST, foreign, "Access-Control-Request-Method: PUT"],
            403,
        ),
    ] {
        let (got, answered, body) = tcp(at, &request(method, "/version", headers)).await;
        assert_eq!(got, status, "{headers:?}: {body}");
        let allowed = answered.get("access-control-allow-origin");
        let is_page = headers.contains(&page);
        assert_eq!(allowed.is_some(), is_page, "{headers:?}: {answered:?}");
        if method == "OPTIONS" && is_page {
            let methods = answered["access-control-allow-methods"].to_str().unwrap();
            assert!(methods.contains("PUT"), "{methods}");
        }
        if status == 401 {
            assert_eq!(answered["www-authenticate"], "Bearer");
        }
    }
    assert_eq!(bench.server.hub.refused.token.load(Relaxed), 2);
    assert_eq!(bench.server.hub.refused.host.load(Relaxed), 2);
    assert_eq!(bench.server.hub.refused.origin.load(Relaxed), 3);

    // Another token: who is there has to come again. The listener stays.
    let mut old = tokio::net::TcpStream::connect(at).await.unwrap();
    while bench.server.hub.tcp.used() == 0 {
        tokio::task::yield_now().await;
    }
    let other = Access {
        token: "another token".parse().unwrap(),
        ..access()
    };
    listen(Some(other));
    let ended = tokio::io::AsyncReadExt::read(&mut old, &mut [0]).await;
    assert_eq!(ended.unwrap_or(0), 0);
    assert_eq!(bench.server.hub.listening().addresses(), [at]);
    assert_eq!(
        tcp(at, &request("GET", "/version", &[HOST, TOKEN])).await.0,
        401
    );
    // An address that is not to be had changes nothing.
    let foreign: [SocketAddr; 2] = [loopback, "192.0.2.1:9".parse().unwrap()];
    let error = teller.prepare(Some((&foreign, access()))).unwrap_err();
    assert!(error.to_string().contains("control API"), "{error}");
    assert_eq!(bench.server.hub.listening().addresses(), [at]);
    listen(None);
    assert!(bench.server.hub.listening().addresses().is_empty());
    tokio::net::TcpStream::connect(at).await.unwrap_err();
}

#[tokio::test]
async fn the_dashboard_is_open_and_nothing_beside_it() {
    let bench = bench();
    let folder = tempfile::tempdir().unwrap();
    let dashboard = folder.path().join("dashboard");
    fs::create_dir(&dashboard).unwrap();
    fs::write(dashboard.join("index.html"), "the page").unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    let teller = bench.server.teller();
    let access = Access {
        dashboard: Some(dashboard),
        ..access()
    };
    let addresses = ["127.0.0.1:0".parse().unwrap()];
    teller.listen(teller.prepare(Some((&addresses, access))).unwrap());
    let at = bench.server.hub.listening().addresses()[0];
    let ask = async |target: &str, headers: &[&str]| {
        tcp(at, &request("GET", target, &[&[HOST], headers].concat())).await
    };
    let (status, headers, body) = ask("/ui/", &[]).await;
    assert_eq!((status, &*body), (200, "the page"));
    assert_eq!(headers["content-type"], "text/html");
    assert_eq!(ask("/ui/index.html", &[]).await.0, 200);
    for from in ["/ui", "/"] {
        let (status, headers, _) = ask(from, &["Accept: text/html,*/*"]).await;
        assert!((300..400).contains(&status), "{from}: {status}");
        assert_eq!(headers["location"], "/ui/");
    }
    for target in [
        "/ui/../secret",
        "/ui/..%2fsecret",
        "/ui/%2e%2e/secret",
        "/ui/..%5csecret",
        "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd",
        "/ui/./../secret",
        "/ui/x%00",
    ] {
        let (status, _, body) = ask(target, &[]).await;
        assert!(status >= 400, "{target}: {status} {body}");
        assert!(
            !body.contains("secret") && !body.contains("root:"),
            "{target}: {body}"
        );
    }
    for target in ["/", "/version", "/uix", "/v1/status", "/metrics"] {
        assert_eq!(ask(target, &[]).await.0, 401, "{target}");
    }
}
