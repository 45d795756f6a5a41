//! A gateway whose control API is asked: by curl, as scripts do, and by WebSockets, as pages do.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tungstenite::{Message, WebSocket, client::IntoClientRequest};

use crate::{
    Family, Lab, Tproxy,
    addr::host,
    probe::at,
    servers::{Dnsmasq, Microsocks, Nginx, TcpEcho},
    wait::{SOON, until},
};

/// What has to be known to ask.
pub const TOKEN: &str = "a token of the lab";
/// The name by which the gateway may be asked, beside its addresses.
pub const NAME: &str = "gateway.lab";
/// The page of another site that may ask.
pub const PAGE: &str = "https://board.lab";
/// Where the echo is.
pub const ECHO: u16 = 7;
const PORT: u16 = 9090;

/// A lab with two servers that outbounds lead to, groups of them, and a proxy that may be asked by TCP.
///
/// The outbounds are "one", "two", and "secret", whose server is not there; the groups "mine" (a person chooses between
/// one, two and direct) and "auto" (the first that is up). The rule "echoes" sends the echo's port by "mine", all else
/// goes by "auto".
#[derive(Debug)]
pub struct Panel {
    /// The proxy.
    pub tproxy: Tproxy,
    /// At [`ECHO`].
    pub echo: TcpEcho,
    /// Pages and downloads.
    pub nginx: Nginx,
    _dns: Dnsmasq,
    _servers: [Microsocks; 2],
    /// The lab.
    pub lab: Lab,
}

/// What came back for a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its number.
    pub status: u16,
    /// Its headers, as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {self:?}"))
    }
}

impl Panel {
    /// Starts all of it, with a dashboard if a folder is given.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(dashboard: Option<&Path>) -> Result<Self> {
        Self::start_with(dashboard, "")
    }

    /// The same with more tables of the configuration.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_with(dashboard: Option<&Path>, more: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let server = |n| Microsocks::start_at(&lab.internet, at(Family::V4.upstream(n), 1080));
        let servers = [server(2)?, server(3)?];
        let nginx = Nginx::start(&lab.internet, lab.dir())?;
        let dns = Dnsmasq::start(&lab.internet)?;
        let echo = TcpEcho::start(&lab.internet, ECHO)?;
        let text = configuration(&servers, dashboard) + more;
        let tproxy = lab.tproxy_configured(&text)?;
        let panel = Self {
            tproxy,
            echo,
            nginx,
            _dns: dns,
            _servers: servers,
            lab,
        };
        panel.is_up("one")?;
        panel.is_up("two")?;
        Ok(panel)
    }

    /// Where the control API listens for the device.
    #[must_use]
    pub fn address() -> SocketAddr {
        at(Family::V4.gateway_lan(), PORT)
    }

    fn is_up(&self, outbound: &str) -> Result<()> {
        until(&format!("{outbound} to be up"), SOON, || {
            let proxy = self.get(&format!("/proxies/{outbound}"))?.json()?;
            Ok(proxy["history"][0]["delay"]
                .as_u64()
                .filter(|delay| *delay > 0))
        })
        .map(drop)
    }

    /// Asks as the device, with the token.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, None)
    }

    /// The same with another method and a body.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let token = format!("Authorization: Bearer {TOKEN}");
        self.curl(method, path, &[&token], body)
    }

    /// The same with these headers, and with the token only if it is among them.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn curl(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let url = format!("http://{}{path}", Self::address());
        let body = body.map(ToString::to_string);
        let mut argv = arguments(method, &url);
        for header in headers {
            argv.extend(["-H", header]);
        }
        if let Some(body) = &body {
            argv.extend(["--data-binary", body]);
        }
        answer(&self.lab.device.run(&argv)?.stdout)
    }

    /// Asks by the Unix socket.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn unix(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let socket = self.lab.state().join("control.sock");
        let socket = socket.to_str().context("the path is not UTF-8")?;
        let url = format!("http://localhost{path}");
        let body = body.map(ToString::to_string);
        let mut argv = arguments(method, &url);
        argv.extend(["--unix-socket", socket]);
        if let Some(body) = &body {
            argv.extend(["--data-binary", body]);
        }
        answer(&self.lab.gateway.run(&argv)?.stdout)
    }

    /// A WebSocket, as a page of the dashboard opens it.
    ///
    /// # Errors
    /// When it is refused.
    pub fn listen(&self, path: &str) -> Result<Stream> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let token = TOKEN.replace(' ', "%20");
        Stream::open(self, &format!("{path}{separator}token={token}"), None)
    }

    /// Whom the echo saw last.
    ///
    /// # Errors
    /// When it saw nobody.
    pub fn echo_client(&self) -> Result<IpAddr> {
        let clients = self.echo.clients();
        let last = clients.last().context("nobody came")?;
        Ok(last.ip().to_canonical())
    }

    /// A connection of the device to the echo, of which something has come back.
    ///
    /// # Errors
    /// When nothing does.
    pub fn open(&self) -> Result<TcpStream> {
        use std::io::{Read, Write};
        let mut stream = crate::traffic::connect(&self.lab.device, at(Family::V4.far(1), ECHO))?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])?;
        Ok(stream)
    }
}

fn arguments<'a>(method: &'a str, url: &'a str) -> Vec<&'a str> {
    let quiet = [
        "curl",
        "-sS",
        "-i",
        "--path-as-is",
        "--max-time",
        "30",
        "--globoff",
    ];
    let mut argv = quiet.to_vec();
    argv.extend(["-X", method, url]);
    argv
}

/// What curl printed with `-i`.
fn answer(text: &str) -> Result<Answer> {
    let text = text
        .strip_prefix("HTTP/1.1 100 Continue\r\n\r\n")
        .unwrap_or(text);
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("no status in {head}"))?,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

/// The configuration, from `[lan]` on.
#[must_use]
pub fn configuration(servers: &[Microsocks; 2], dashboard: Option<&Path>) -> String {
    let far = host(Family::V4.far(1));
    let dashboard =
        dashboard.map(|folder| format!("dashboard = {:?}\n", folder.display().to_string()));
    format!(
        "[[outbound]]\nname = \"one\"\nurl = \"{}\"\n[[outbound]]\nname = \"two\"\nurl = \"{}\"\n\
         [[outbound]]\nname = \"secret\"\nurl = \"trojan://hunter2@{}:1\"\n\
         [[group]]\nname = \"auto\"\nkind = \"fallback\"\nmembers = [\"one\", \"two\"]\n\
         [[group]]\nname = \"mine\"\nkind = \"select\"\nmembers = [\"one\", \"two\", \"direct\"]\n\
         [[rule]]\nname = \"echoes\"\nport = [{ECHO}]\noutbound = \"mine\"\n\
         [check]\nurl = \"http://{far}/whoami\"\ndns = \"{far}:53\"\n\
         [api]\nlisten = [\"{}\", \"127.0.0.1:{PORT}\"]\ntoken = \"{TOKEN}\"\n\
         origins = [\"{PAGE}\"]\nhosts = [\"{NAME}\"]\n{}",
        servers[0].url(),
        servers[1].url(),
        Family::V4.upstream(4),
        Panel::address(),
        dashboard.unwrap_or_default(),
    )
}

/// An open WebSocket.
#[derive(Debug)]
pub struct Stream(WebSocket<TcpStream>);

impl Stream {
    /// Opens one, as the page of this origin does.
    ///
    /// # Errors
    /// When it is refused: the message has the status.
    pub fn open(panel: &Panel, path: &str, origin: Option<&str>) -> Result<Self> {
        let url = format!("ws://{}{path}", Panel::address());
        let stream = crate::traffic::connect(&panel.lab.device, Panel::address())?;
        Self::over(stream, &url, origin)
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// When it is refused: the message has the status.
    pub fn over(stream: TcpStream, url: &str, origin: Option<&str>) -> Result<Self> {
        let mut request = url.into_client_request()?;
        if let Some(origin) = origin {
            request.headers_mut().insert("Origin", origin.parse()?);
        }
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(error) => bail!("the WebSocket {url} was refused: {error}"),
        }
    }

    /// Sends a text.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn say(&mut self, text: String) -> Result<()> {
        Ok(self.0.send(Message::Text(text.into()))?)
    }

    /// The next message, as JSON.
    ///
    /// # Errors
    /// When none comes in time, or it is none.
    pub fn receive(&mut self) -> Result<Value> {
        loop {
            match self.0.read()? {
                Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                Message::Close(_) => bail!("it was closed"),
                _ => {}
            }
        }
    }

    /// The first message that is wanted.
    ///
    /// # Errors
    /// When none is, of those that come within 10 s.
    pub fn find(&mut self, what: &str, is_meant: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = std::time::Instant::now();
        let mut last = Value::Null;
        while start.elapsed() < Duration::from_secs(10) {
            last = self.receive()?;
            if is_meant(&last) {
                return Ok(last);
            }
        }
        bail!("no message with {what} came, the last was {last}")
    }
}

/// What Prometheus reads: each sample with its value.
///
/// # Errors
/// When a line is none.
pub fn samples(text: &str) -> Result<Vec<(String, f64)>> {
    ensure!(text.ends_with("# EOF\n"), "the text is cut off");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (sample, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((sample.to_owned(), value.parse()?))
        })
        .collect()
}

/// A file of the project.
///
/// # Errors
/// When it is not there.
pub fn of_project(path: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&root).with_context(|| format!("reading {}", root.display()))
}
