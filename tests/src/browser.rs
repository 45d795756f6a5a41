//! A real browser on a machine of the lab, which opens pages and clicks: Chromium without a screen, by its DevTools
//! protocol.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    Namespace, Process,
    api::Stream,
    traffic::connect,
    wait::{Transport, listening, until},
};

/// The name of the program.
pub const PROGRAM: &str = "chromium";
const PORT: u16 = 9222;
/// What keeps it quiet: it runs as root, where there is no sandbox, no screen and no way out.
const ARGUMENTS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
];
/// How long a page may take to show something.
const PATIENCE: Duration = Duration::from_secs(20);

/// Is there such a browser on this machine?
#[must_use]
pub fn is_installed() -> bool {
    let mut command = std::process::Command::new(PROGRAM);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    devtools: Stream,
    number: u64,
    /// Requests of the page that were refused, and what it complains of.
    complaints: Vec<String>,
    _process: Process,
}

impl Browser {
    /// Starts it in this namespace. `dir` is for its files.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(ns: &Namespace, dir: &Path) -> Result<Self> {
        let profile = dir.join("chromium");
        fs::create_dir_all(&profile)?;
        let mut command = ns.command(PROGRAM);
        command
            .args(ARGUMENTS)
            .arg(format!("--remote-debugging-port={PORT}"))
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank");
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, PORT)?;
        let page = until("a page of the browser", PATIENCE, || {
            let url = format!("http://127.0.0.1:{PORT}/json/list");
            let pages: Value = ns.run(&["curl", "-sS", &url])?.json()?;
            let pages = pages.as_array().cloned().unwrap_or_default();
            let page = pages.iter().find(|one| one["type"] == "page");
            Ok(page.and_then(|page| Some(page["webSocketDebuggerUrl"].as_str()?.to_owned())))
        })?;
        let stream: TcpStream = connect(ns, (Ipv4Addr::LOCALHOST, PORT).into())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut browser = Self {
            devtools: Stream::over(stream, &page, None)?,
            number: 0,
            complaints: Vec::new(),
            _process: process,
        };
        for domain in ["Page", "Runtime", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(browser)
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.number += 1;
        let call = json!({ "id": self.number, "method": method, "params": params });
        self.devtools.say(call.to_string())?;
        loop {
            let message = self
                .devtools
                .receive()
                .with_context(|| format!("waiting for {method}"))?;
            if message["id"] == self.number {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                let text = params["exceptionDetails"]["exception"]["description"].to_string();
                self.complaints.push(text);
            }
            Some("Network.responseReceived")
                if params["response"]["status"].as_u64() >= Some(400) =>
            {
                let response = &params["response"];
                self.complaints
                    .push(format!("{} {}", response["status"], response["url"]));
            }
            Some("Network.webSocketFrameError") => {
                self.complaints.push(params["errorMessage"].to_string());
            }
            _ => {}
        }
    }

    /// What went wrong in the page so far.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Goes to a page.
    ///
    /// # Errors
    /// When it is not to be had.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let result = self.call("Page.navigate", &json!({ "url": url }))?;
        ensure!(
            result["errorText"].is_null(),
            "{url}: {}",
            result["errorText"]
        );
        Ok(())
    }

    /// The value of an expression in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", &params)?;
        if !result["exceptionDetails"].is_null() {
            bail!("{expression}: {}", result["exceptionDetails"]);
        }
        Ok(result["result"]["value"].clone())
    }

    /// What a person can read there.
    ///
    /// # Errors
    /// When there is no page.
    pub fn text(&mut self) -> Result<String> {
        let text = self.value("document.body ? document.body.innerText : ''")?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until all of these can be read.
    ///
    /// # Errors
    /// When they cannot after 20 s: the message has what can.
    pub fn shows(&mut self, words: &[&str]) -> Result<String> {
        let mut last = String::new();
        until(&format!("the page to show {words:?}"), PATIENCE, || {
            last = self.text()?;
            Ok(words.iter().all(|word| last.contains(word)).then_some(()))
        })
        .with_context(|| format!("it shows\n{last}"))?;
        Ok(last)
    }

    /// Clicks where the element is that this expression gives. False: there is none.
    ///
    /// # Errors
    /// When it throws.
    pub fn click(&mut self, element: &str) -> Result<bool> {
        let place = self.value(&format!(
            "(() => {{ const one = {element}; if (!one) return null; one.scrollIntoView({{ block: 'center' }}); \
             const at = one.getBoundingClientRect(); \
             return [at.x + at.width / 2, at.y + at.height / 2]; }})()"
        ))?;
        let (Some(x), Some(y)) = (place[0].as_f64(), place[1].as_f64()) else {
            return Ok(false);
        };
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let params = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", &params)?;
        }
        Ok(true)
    }

    /// A picture of the page, in Base64.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn picture(&mut self) -> Result<String> {
        let picture = self.call("Page.captureScreenshot", &json!({ "format": "png" }))?;
        Ok(picture["data"].as_str().context("no picture")?.to_owned())
    }
}
