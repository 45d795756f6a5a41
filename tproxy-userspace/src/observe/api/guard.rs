//! Who may ask by TCP: those who know the token, from pages that the configuration names, by a name of the gateway.
//!
//! A browser sends requests for any page that it shows. The token keeps those out that do not know it. `Origin` tells
//! which page it is. `Host` tells by which name the gateway was found: a page may have its own name lead here (DNS
//! rebinding), and is then of the same origin.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};
use percent_encoding::percent_decode_str;
use tower_http::services::ServeDir;

use super::Hub;
use super::reply::{Failure, json_only, plain};
use crate::config::Token;

/// How long a wrong token waits for its answer.
const REGRET: Duration = Duration::from_millis(250);
/// Where the dashboard is.
const DASHBOARD: &str = "/ui";
const METHODS: &str = "GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS";
const PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// Who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What they have to know.
    pub token: Token,
    /// Pages of others that may ask, as browsers name them: `https://board.example`.
    pub origins: Vec<String>,
    /// Names by which the gateway is found, beside its addresses and "localhost".
    pub hosts: Vec<String>,
    /// The folder of a dashboard.
    pub dashboard: Option<PathBuf>,
}

/// These routes for those who may.
pub fn guarded(routes: Router<Arc<Hub>>, hub: Arc<Hub>, access: Arc<Access>) -> Router {
    let mut router = json_only(routes).with_state(Arc::clone(&hub));
    if let Some(folder) = &access.dashboard {
        let to_folder = axum::routing::get(async || Redirect::permanent("/ui/"));
        router = router
            .route(DASHBOARD, to_folder)
            .nest_service("/ui/", ServeDir::new(folder));
    }
    router.layer(from_fn(move |request, next| {
        let (hub, access) = (Arc::clone(&hub), Arc::clone(&access));
        async move { pass(&hub, &access, request, next).await }
    }))
}

async fn pass(hub: &Hub, access: &Access, request: Request, next: Next) -> Response {
    let origin = match admitted(hub, access, &request) {
        Ok(origin) => origin,
        Err(failure) => return failure.into_response(),
    };
    let is_preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_preflight {
        preflight(request.headers(), origin.is_some())
    } else if is_open(access, &request) {
        match request.uri().path() {
            "/" => Redirect::temporary("/ui/").into_response(),
            _ => next.run(request).await,
        }
    } else if knows(&access.token, &request) {
        next.run(request).await
    } else {
        hub.refused.token.fetch_add(1, Relaxed);
        tokio::time::sleep(REGRET).await;
        let text = "the token is missing or wrong; send `Authorization: Bearer TOKEN`";
        let mut response = Failure::new(StatusCode::UNAUTHORIZED, text).into_response();
        let how = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        response
    };
    plain(&mut response);
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

/// Is it a page and a name that may ask? Gives the origin that is to be told so: of another page than our own.
fn admitted(hub: &Hub, access: &Access, request: &Request) -> Result<Option<HeaderValue>, Failure> {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let Some(host) = host.filter(|host| is_own_name(host, &access.hosts)) else {
        hub.refused.host.fetch_add(1, Relaxed);
        let text = "the gateway is asked by its address here, by \"localhost\" or by a name in `[api] hosts`";
        return Err(Failure::new(StatusCode::FORBIDDEN, text));
    };
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(None);
    };
    let text = origin.to_str().unwrap_or_default();
    if access
        .origins
        .iter()
        .any(|one| one.eq_ignore_ascii_case(text))
    {
        return Ok(Some(origin.clone()));
    }
    if text
        .split_once("://")
        .is_some_and(|(_, of)| of.eq_ignore_ascii_case(host))
    {
        return Ok(None);
    }
    hub.refused.origin.fetch_add(1, Relaxed);
    let text = "this page may not ask; `[api] origins` names those that may";
    Err(Failure::new(StatusCode::FORBIDDEN, text))
}

/// Is this what a browser asks that was told an address of the gateway, or one of its names?
#[must_use]
pub fn is_own_name(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if is_port(port) => address,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((_, port)) if !port.bytes().all(|byte| byte.is_ascii_digit()) => return false,
            Some((name, _)) => name,
            None => host,
        },
    };
    let is_named = |other: &str| name.eq_ignore_ascii_case(other);
    name.parse::<IpAddr>().is_ok() || is_named("localhost") || names.iter().any(|one| is_named(one))
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || text
            .strip_prefix(':')
            .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Is it for everybody? The dashboard is: a browser cannot send a token before it has the page that asks for it.
fn is_open(access: &Access, request: &Request) -> bool {
    if access.dashboard.is_none() || !matches!(*request.method(), Method::GET | Method::HEAD) {
        return false;
    }
    let path = request.uri().path();
    let accepts = request.headers().get(header::ACCEPT);
    let is_browser = accepts.is_some_and(|accept| accept.as_bytes().starts_with(b"text/html"));
    path == DASHBOARD || path.starts_with("/ui/") || path == "/" && is_browser
}

fn knows(token: &Token, request: &Request) -> bool {
    let headers = request.headers();
    let bearer = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    if let Some(given) = bearer {
        let given = given.split_at_checked(7);
        return given.is_some_and(|(scheme, given)| {
            scheme.eq_ignore_ascii_case(b"bearer ") && token.is(given.trim_ascii())
        });
    }
    // A page cannot give a WebSocket headers. Nowhere else: addresses are noted in many places.
    let upgrade = headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    let is_websocket = upgrade.is_some_and(|what| what.eq_ignore_ascii_case(b"websocket"));
    let query = request.uri().query().filter(|_| is_websocket);
    let mut parts = query.unwrap_or_default().split('&');
    parts.any(|part| {
        let given = part.strip_prefix("token=");
        given.is_some_and(|given| {
            let is = |given: &str| token.is(&percent_decode_str(given).collect::<Vec<u8>>());
            // Some pages write a blank as forms do.
            is(given) | is(&given.replace('+', " "))
        })
    })
}

/// What a browser asks before it asks, for a page of another site.
fn preflight(asked: &HeaderMap, is_allowed: bool) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if !is_allowed {
        return response;
    }
    let headers = response.headers_mut();
    let mut allow = |name, value| headers.insert(name, HeaderValue::from_static(value));
    allow(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    allow(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "Authorization, Content-Type",
    );
    allow(header::ACCESS_CONTROL_MAX_AGE, "600");
    if asked.contains_key(PRIVATE_NETWORK) {
        allow(ALLOW_PRIVATE_NETWORK, "true");
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_gateway_is_asked_by_its_own_names() {
        let names = ["gateway.lan".to_owned()];
        for host in [
            "192.0.2.1",
            "192.0.2.1:9090",
            "[2001:db8::1]:9090",
            "[::1]",
            "localhost:9090",
            "Gateway.LAN:9090",
        ] {
            assert!(is_own_name(host, &names), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9090",
            "192.0.2.1.evil.example",
            "gateway.lan.evil.example",
            "[2001:db8::1",
            "[::1]x",
            "localhost:x",
            "user@localhost",
        ] {
            assert!(!is_own_name(host, &names), "{host}");
        }
    }

    #[test]
    fn a_token_comes_in_a_header_or_with_a_websocket() {
        let token: Token = "correct horse+1".parse().unwrap();
        let asked = |uri: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            knows(&token, &request.body(Body::empty()).unwrap())
        };
        let (right, wrong) = ("Bearer correct horse+1", "Bearer correct horse+2");
        assert!(asked("/", &[("authorization", right)]));
        assert!(asked("/", &[("authorization", "bearer  correct horse+1")]));
        assert!(!asked("/", &[("authorization", wrong)]));
        assert!(!asked("/", &[("authorization", "Basic correct horse+1")]));
        assert!(!asked("/", &[("authorization", "x")]));
        let in_query = "/logs?level=info&token=correct%20horse%2B1";
        assert!(!asked(in_query, &[]));
        let as_form = "/logs?token=correct+horse%2B1&level=info";
        assert!(asked(as_form, &[("upgrade", "websocket")]));
        assert!(asked(in_query, &[("upgrade", "websocket")]));
        // One that is wrong is not made good by another.
        assert!(!asked(
            in_query,
            &[("upgrade", "websocket"), ("authorization", wrong)]
        ));
        assert!(!asked("/logs?token=", &[("upgrade", "websocket")]));
    }

    proptest! {
        #[test]
        fn no_host_makes_it_panic_and_no_other_name_is_ours(host in "[ -~]{0,30}") {
            if is_own_name(&host, &[]) {
                let bare = host.trim_start_matches('[');
                prop_assert!(bare.to_ascii_lowercase().starts_with("localhost") || bare.starts_with(|c: char| c.is_ascii_hexdigit() || c == ':'));
            }
        }
    }
}
