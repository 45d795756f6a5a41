//! Answers and errors as JSON, and reading what was sent.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

/// The largest body that is read, in bytes.
pub const LARGEST_BODY: usize = 96 * 1024;
/// How long a client may take for its body.
const BODY_TIME: Duration = Duration::from_secs(5);

/// A request that is refused.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind of failure it is.
    pub status: StatusCode,
    /// What is wrong, for people.
    pub text: String,
}

impl Failure {
    /// One.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status, text }
    }

    /// The request makes no sense.
    pub fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// There is no such thing.
    pub fn missing(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = axum::Json(json!({ "error": self.text }));
        (self.status, body).into_response()
    }
}

/// A JSON body of bounded size that came in time.
pub struct Sent<T>(pub T);

/// What stands behind the `?`.
pub struct Asking<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request.into_body()).await?;
        let value = serde_json::from_slice(&bytes);
        value
            .map(Self)
            .map_err(|error| Failure::bad(format!("the body is not what was expected: {error}")))
    }
}

async fn read(body: Body) -> Result<axum::body::Bytes, Failure> {
    match timeout(BODY_TIME, axum::body::to_bytes(body, LARGEST_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let text = format!("the body is larger than {LARGEST_BODY} bytes, or was cut off");
            Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Err(_) => {
            let text = format!("the body took longer than {} s", BODY_TIME.as_secs());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asking<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let query = Query::try_from_uri(&parts.uri);
        let refuse = |error| Failure::bad(format!("the query is not what was expected: {error}"));
        query.map(|Query(query)| Self(query)).map_err(refuse)
    }
}

/// Answers with JSON what no route is there for.
pub fn json_only<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .fallback(async |request: Request| {
            let path: String = request.uri().path().chars().take(100).collect();
            Failure::missing(format!("there is nothing at {path}"))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let text = format!(
                "{} is not done to {}",
                request.method(),
                request.uri().path()
            );
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, text)
        })
}

/// Says that nobody is to guess what an answer is, or to keep it.
pub fn plain(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache"));
}
