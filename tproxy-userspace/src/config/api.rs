//! `[api]`: the control API by TCP; and `[log]`.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use documented::DocumentedFields;
use serde::{Serialize, Serializer};
use subtle::ConstantTimeEq;
use url::Url;

use super::read::Table;
use super::value::{boolean, choice, list, number_or_text, text};
use super::{IdOrName, Refusal};
use crate::observe::log::{Directives, Format};
use crate::policy::prefix::excerpt;

/// A shorter token is soon guessed.
const SHORTEST_TOKEN: usize = 8;
const LONGEST_TOKEN: usize = 256;
/// Larger files (in bytes) hold something else than a token.
const LARGEST_FILE: u64 = 4096;

/// The control API by TCP, for dashboards and Prometheus. On the Unix socket it is always there.
#[derive(Clone, Debug, Default, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Api {
    /// `listen`: addresses with ports, like "127.0.0.1:9090". Needs a token. Default: none, so there is only the Unix
    /// socket.
    pub listen: Vec<SocketAddr>,
    /// `token`: what has to be known to ask, 8 to 256 characters. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// `token_file`: a file with the token, in the place of `token`; relative paths start at the folder of the
    /// configuration. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// `group`: whose members may use the Unix socket beside root, by name or number. It is full power over the gateway's
    /// proxy. Default: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<IdOrName>,
    /// `origins`: pages of other sites that may ask, like `https://board.example`. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
    /// `hosts`: names by which browsers find the gateway, like "gateway.lan"; by an address and "localhost" they
    /// always may. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// `dashboard`: the folder of a dashboard that is shown at `/ui/`; relative paths start at the folder of the
    /// configuration. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dashboard: Option<PathBuf>,
}

/// Why the control API by TCP cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The file of the token could not be read.
    #[error("reading the token of the control API from {} failed: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds no token.
    #[error("the file {} holds no token for the control API: {refusal}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// The folder of the dashboard is none.
    #[error("there is no dashboard in {}: it has no index.html; name the folder of a built dashboard, or leave `[api] dashboard` out", .0.display())]
    Dashboard(PathBuf),
}

impl Api {
    /// The token, if there is one. A file is read anew each time.
    ///
    /// # Errors
    /// [`ApiError::Read`], [`ApiError::Token`].
    pub fn token(&self) -> Result<Option<Token>, ApiError> {
        let Some(path) = &self.token_file else {
            return Ok(self.token.clone());
        };
        let refuse = |source| ApiError::Read {
            path: path.clone(),
            source,
        };
        if fs::metadata(path).map_err(refuse)?.len() > LARGEST_FILE {
            let source = io::Error::other("it is too large for a token");
            return Err(refuse(source));
        }
        let text = fs::read_to_string(path).map_err(refuse)?;
        let token = text.trim_end_matches(['\r', '\n']).parse();
        token.map(Some).map_err(|refusal| ApiError::Token {
            path: path.clone(),
            refusal,
        })
    }

    /// Looks for the files that it names.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn check(&self) -> Result<(), ApiError> {
        self.token()?;
        match &self.dashboard {
            Some(folder) if !folder.join("index.html").is_file() => {
                Err(ApiError::Dashboard(folder.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// What has to be known to ask. It is never shown.
#[derive(Clone, Eq)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Is it this one? The time that it takes tells nothing of it but its length.
    #[must_use]
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl FromStr for Token {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let help = "write a long word that nobody guesses, such as `openssl rand -hex 16` prints";
        if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || text.trim() != text {
            let message = "the token has characters that cannot be in a header";
            return Err(Refusal::new(message, help));
        }
        if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&text.len()) {
            let message = format!(
                "the token has {} characters, and needs {SHORTEST_TOKEN} to {LONGEST_TOKEN}",
                text.len()
            );
            return Err(Refusal::new(message, help));
        }
        Ok(Self(text.as_bytes().into()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// What the log tells, and how.
#[derive(Clone, Debug, Default, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Log {
    /// `format`: "human", "json", or "auto", which is "human" at a terminal and "json" elsewhere. Default "auto".
    pub format: Format,
    /// `level`: "off", "error", "warn", "info", "debug" or "trace"; or directives like "info,TARGET=debug". `RUST_LOG`
    /// in the environment comes before it. Default "info".
    #[serde(serialize_with = "shown")]
    pub level: Level,
    /// `access`: a line for each connection and association when it has ended. Default false.
    pub access: bool,
}

/// How much is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(Directives, String);

impl Default for Level {
    fn default() -> Self {
        "info".parse().expect("a level")
    }
}

impl FromStr for Level {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match Directives::parse(text) {
            Ok(directives) => Ok(Self(directives, text.to_owned())),
            Err(error) => Err(Refusal::new(
                format!(
                    "`{}` says not how much is told: {}",
                    excerpt(text),
                    error.why
                ),
                "write off, error, warn, info, debug or trace",
            )),
        }
    }
}

fn shown<S: Serializer>(level: &Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.1)
}

impl Log {
    /// Which events are told.
    #[must_use]
    pub fn directives(&self) -> Directives {
        self.level.0.clone().with_access(self.access)
    }
}

/// Reads `[log]`.
pub(super) fn read_log(root: &mut Table<'_>, log: &mut Log) {
    root.table("log", |table| {
        let formats = &[
            ("auto", Format::Auto),
            ("human", Format::Human),
            ("json", Format::Json),
        ];
        table.optional("format", &mut log.format, choice(formats));
        let level = text("a level", "info", str::parse::<Level>);
        table.optional("level", &mut log.level, level);
        table.optional("access", &mut log.access, boolean());
    });
}

/// Reads `[api]`.
pub(super) fn read(root: &mut Table<'_>, api: &mut Api, folder: &Path) {
    root.table("api", |table| {
        let address = text("an address with a port", "127.0.0.1:9090", address);
        table.optional("listen", &mut api.listen, list("addresses", address));
        let token = text("a token", "…", str::parse::<Token>);
        table.optional("token", &mut api.token, token.some());
        let path = |what| text(what, "/etc/tproxy-bpf/token", |text| path(folder, text));
        let file = path("the path of a file");
        table.optional("token_file", &mut api.token_file, file.some());
        let group = number_or_text("a number or a name", "adm", str::parse::<IdOrName>);
        table.optional("group", &mut api.group, group.some());
        let origin = text("the origin of a page", "https://board.example", origin);
        table.optional("origins", &mut api.origins, list("origins", origin));
        let host = text("a name", "gateway.lan", host);
        table.optional("hosts", &mut api.hosts, list("names", host));
        let dashboard = path("the path of a folder");
        table.optional("dashboard", &mut api.dashboard, dashboard.some());
        let tokens = (table.place("token"), table.place("token_file"));
        match (table.place("listen"), tokens) {
            (_, (Some(_), Some(file))) => table.fault(
                file,
                "`token_file` is of no use with `token`".to_owned(),
                Some("leave one of them out".to_owned()),
            ),
            (Some(listen), (None, None)) if !api.listen.is_empty() => table.fault(
                listen,
                "without a token everybody who can connect could change what the gateway does".to_owned(),
                Some("add token = \"…\" or token_file = \"…\" to [api]; `openssl rand -hex 16` prints a good one".to_owned()),
            ),
            _ => {}
        }
    });
}

fn address(text: &str) -> Result<SocketAddr, Refusal> {
    let help = "write an address with a port, like \"127.0.0.1:9090\" or \"[::1]:9090\"";
    let shown = excerpt(text);
    let address: SocketAddr = text
        .parse()
        .map_err(|_| Refusal::new(format!("`{shown}` is not an address with a port"), help))?;
    if address.port() == 0 {
        return Err(Refusal::new(format!("the port of `{shown}` is 0"), help));
    }
    Ok(address)
}

fn path(folder: &Path, text: &str) -> Result<PathBuf, Refusal> {
    if text.is_empty() || text.contains('\0') {
        return Err(Refusal::new("there is no path", "name one"));
    }
    Ok(folder.join(text))
}

/// An origin as browsers write it: without a path, and in lower case.
fn origin(text: &str) -> Result<String, Refusal> {
    let refuse = || {
        let message = format!("`{}` is not the origin of a page", excerpt(text));
        Refusal::new(
            message,
            "write scheme and host, like \"https://board.example\"",
        )
    };
    let url = Url::parse(text).map_err(|_| refuse())?;
    let is_page = matches!(url.scheme(), "http" | "https");
    let origin = url.origin().ascii_serialization();
    let is_bare = text.trim_end_matches('/').eq_ignore_ascii_case(&origin);
    if is_page && is_bare {
        Ok(origin)
    } else {
        Err(refuse())
    }
}

fn host(text: &str) -> Result<String, Refusal> {
    let is_name = (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name && text.parse::<IpAddr>().is_err() {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Refusal::new(
        format!("`{}` is not a name of the gateway", excerpt(text)),
        "write one without scheme and port, like \"gateway.lan\"; addresses need not be named",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Api, String> {
        let config = super::super::Config::parse(text, Path::new("/etc/x/config.toml"));
        config
            .map(|config| config.api)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_needed_to_listen_and_is_never_shown() {
        let api = parse(
            "[api]\nlisten = [\"127.0.0.1:9090\", \"[::1]:9090\"]\ntoken = \"correct horse\"\n",
        )
        .unwrap();
        assert_eq!(api.listen.len(), 2);
        let token = api.token().unwrap().unwrap();
        assert!(token.is(b"correct horse") && !token.is(b"correct horsf") && !token.is(b""));
        let shown = format!("{api:?}{}", serde_json::to_string(&api).unwrap());
        assert!(!shown.contains("correct"), "{shown}");

        for (text, words) in [
            ("listen = [\"127.0.0.1:9090\"]", "everybody who can connect"),
            (
                "listen = [\"127.0.0.1\"]\ntoken = \"12345678\"",
                "not an address with a port",
            ),
            ("listen = [\"127.0.0.1:0\"]\ntoken = \"12345678\"", "is 0"),
            ("token = \"short\"", "5 characters"),
            ("token = \"with\\nline ends\"", "cannot be in a header"),
            ("token = \"12345678\"\ntoken_file = \"t\"", "no use"),
            ("origins = [\"https://a.example/page\"]", "not the origin"),
            ("origins = [\"file:///x\"]", "not the origin"),
            ("hosts = [\"http://gw\"]", "not a name"),
            ("hosts = [\"192.0.2.1\"]", "not a name"),
            ("dashboard = \"\"", "no path"),
        ] {
            let error = parse(&format!("[api]\n{text}\n")).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn no_error_shows_the_token() {
        for line in [
            "token = \"hunter2hunter2\"; # x",
            "token = 'hunter2hunter2",
            "token=\"hunter2\"",
            "  token  = \"hunter2\\u0001hunter2\"",
            "\"token\" = \"hunter2\"",
        ] {
            let error = parse(&format!("[api]\n{line}\n")).unwrap_err();
            assert!(!error.contains("hunter2"), "{line}: {error}");
        }
        let inline = "api = { token = \"hunter2hunter2\", colour = 1 }\n";
        let error = parse(inline).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_token_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let api = Api {
            token_file: Some(path.clone()),
            ..Api::default()
        };
        let missing = api.token().unwrap_err().to_string();
        assert!(missing.contains("token"), "{missing}");
        fs::write(&path, "from a file\n").unwrap();
        assert!(api.token().unwrap().unwrap().is(b"from a file"));
        fs::write(&path, "x\n").unwrap();
        let error = api.token().unwrap_err().to_string();
        assert!(error.contains("1 characters"), "{error}");
        fs::write(&path, "x".repeat(5000)).unwrap();
        api.token().unwrap_err();
    }

    #[test]
    fn a_dashboard_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let api = Api {
            dashboard: Some(folder.path().to_owned()),
            ..Api::default()
        };
        let error = api.check().unwrap_err().to_string();
        assert!(error.contains("index.html"), "{error}");
        fs::write(folder.path().join("index.html"), "").unwrap();
        api.check().unwrap();
    }
}
