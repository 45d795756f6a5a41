//! curl: downloads and uploads.

use std::{
    io::Read,
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    Namespace,
    addr::{host, url},
    process,
    servers::{Hasher, hash_file},
    wait::patient,
};

/// A download that is done.
#[derive(Clone, Debug)]
pub struct Download {
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// From the start of curl to the last byte.
    pub elapsed: Duration,
}

/// Fetches `url` with curl.
///
/// # Errors
/// When curl fails or takes over two minutes.
pub fn download(ns: &Namespace, url: &str) -> Result<Download> {
    HeldDownload::start(ns, url)?.finish()
}

/// A download whose pace the caller sets: nothing is read unless asked for, so the connection lives as long
/// as the caller likes. The file should be 64 MiB or more: up to some 10 MB fit into the buffers on the way.
#[derive(Debug)]
pub struct HeldDownload {
    child: Child,
    url: String,
    hasher: Hasher,
    bytes: u64,
    start: Instant,
}

impl HeldDownload {
    /// Starts it.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn start(ns: &Namespace, url: &str) -> Result<Self> {
        let mut command = ns.command("curl");
        command
            .args(["-sS", "--fail", "--noproxy", "*", "--no-buffer"])
            .args([
                "--connect-timeout",
                &seconds(5),
                "--max-time",
                &seconds(600),
                url,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .with_context(|| format!("starting curl {url}"))?;
        Ok(Self {
            child,
            url: url.to_owned(),
            hasher: Hasher::default(),
            bytes: 0,
            start: Instant::now(),
        })
    }

    /// The bytes read so far.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads `bytes` more: proves that the connection moves.
    ///
    /// # Errors
    /// When the download ends before; the message holds curl's.
    pub fn advance(&mut self, bytes: u64) -> Result<()> {
        let read = self.read(bytes)?;
        if read == bytes {
            return Ok(());
        }
        let (got, url) = (self.bytes, self.url.clone());
        let why = self.complaint();
        Err(anyhow!("{url} ended after {got} bytes: {why}"))
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// When curl reports that the transfer failed.
    pub fn finish(mut self) -> Result<Download> {
        self.read(u64::MAX)?;
        let status = self.child.wait()?;
        let elapsed = self.start.elapsed();
        if !status.success() {
            let why = self.complaint();
            bail!("{} failed after {} bytes: {why}", self.url, self.bytes);
        }
        Ok(Download {
            sha256: std::mem::take(&mut self.hasher).finish(),
            bytes: self.bytes,
            elapsed,
        })
    }

    fn read(&mut self, bytes: u64) -> Result<u64> {
        let pipe = self
            .child
            .stdout
            .as_mut()
            .context("curl has no standard output")?;
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        while done < bytes {
            let wanted =
                usize::try_from(bytes - done).map_or(buffer.len(), |n| n.min(buffer.len()));
            let read = pipe.read(&mut buffer[..wanted])?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            done += read as u64;
            self.bytes += read as u64;
        }
        Ok(done)
    }

    fn complaint(&mut self) -> String {
        // It has closed its output, so it is about to end.
        self.child.wait().ok();
        let mut text = String::new();
        if let Some(pipe) = &mut self.child.stderr {
            pipe.read_to_string(&mut text).ok();
        }
        text.trim().to_owned()
    }
}

impl Drop for HeldDownload {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Seconds for curl, as many as it takes here.
fn seconds(limit: u64) -> String {
    patient(Duration::from_secs(limit)).as_secs().to_string()
}

fn curl(ns: &Namespace) -> Command {
    let mut command = ns.command("curl");
    command.args([
        "-sS",
        "--fail",
        "--noproxy",
        "*",
        "--connect-timeout",
        &seconds(5),
    ]);
    command
}

/// Sends a file by PUT.
///
/// # Errors
/// When curl fails or takes over two minutes.
pub fn upload(ns: &Namespace, file: &Path, url: &str) -> Result<Duration> {
    let mut command = curl(ns);
    command
        .args(["-o", "/dev/null", "--expect100-timeout", "1", "-T"])
        .arg(file)
        .arg(url);
    let start = Instant::now();
    process::run(command, Duration::from_mins(2))?.ok()?;
    Ok(start.elapsed())
}

/// Asks nginx's `/whoami` at `server`: the client's address as the server saw it.
///
/// # Errors
/// When curl fails.
pub fn whoami(ns: &Namespace, server: IpAddr) -> Result<IpAddr> {
    let mut command = curl(ns);
    command.args(["--max-time", &seconds(10), &url(server, "whoami")]);
    first_address(command)
}

/// Asks `/whoami` as [`whoami`] does, through the proxy at `proxy`, a URL as outbounds have it.
///
/// # Errors
/// When curl fails, or the proxy does not let it through.
pub fn through_socks(ns: &Namespace, proxy: &str, server: IpAddr) -> Result<IpAddr> {
    let mut command = ns.command("curl");
    command.args([
        "-sS",
        "--fail",
        "--connect-timeout",
        &seconds(5),
        "--proxy",
        proxy,
    ]);
    command.args(["--max-time", &seconds(10), &url(server, "whoami")]);
    first_address(command)
}

fn first_address(command: Command) -> Result<IpAddr> {
    let output = process::run(command, Duration::from_secs(20))?.ok()?;
    let client = output.stdout.split_whitespace().next().unwrap_or_default();
    client
        .parse()
        .with_context(|| format!("reading the answer {:?}", output.stdout))
}

/// What a server said of one request for its `/site`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The site that it took the request to be for.
    pub site: String,
    /// Who asked, as the server saw it.
    pub client: IpAddr,
    /// Which of its addresses was asked.
    pub server: IpAddr,
}

/// Asks the site `name` at `server` who answers. No name is looked up. With an authority (PEM) by HTTPS, and then the
/// server's certificate must be for that name; without one by HTTP.
///
/// # Errors
/// When curl fails.
pub fn visit(
    ns: &Namespace,
    name: &str,
    server: IpAddr,
    authority: Option<&Path>,
) -> Result<Visit> {
    let (scheme, port) = match authority {
        Some(_) => ("https", 443),
        None => ("http", 80),
    };
    let mut command = curl(ns);
    if let Some(authority) = authority {
        command.arg("--cacert").arg(authority);
    }
    command.args(["--resolve", &format!("{name}:{port}:{}", host(server))]);
    command.args([
        "--max-time",
        &seconds(10),
        &format!("{scheme}://{name}/site"),
    ]);
    let output = process::run(command, Duration::from_secs(20))?.ok()?;
    let mut words = output.stdout.split_whitespace();
    let mut read = || {
        Some(Visit {
            site: words.next()?.to_owned(),
            client: words.next()?.parse().ok()?,
            server: words.next()?.parse().ok()?,
        })
    };
    read().with_context(|| format!("reading the answer {:?}", output.stdout))
}

/// Fetches `url` `count` times at once (up to 300), each on a connection of its own; gives the hashes. The
/// files go to `dir` and are removed.
///
/// # Errors
/// When one of them fails.
pub fn parallel_downloads(
    ns: &Namespace,
    url: &str,
    count: usize,
    dir: &Path,
) -> Result<Vec<String>> {
    let dir = tempfile::tempdir_in(dir)?;
    let file = |index: usize| dir.path().join(index.to_string());
    let mut command = curl(ns);
    command
        .args(["--parallel", "--parallel-immediate", "--parallel-max"])
        .arg(count.to_string())
        .args(["--fail-early", "-H", "Connection: close"])
        .args(["--write-out", "%{local_port}\\n"]);
    for index in 0..count {
        command.arg(url).arg("-o").arg(file(index));
    }
    let output = process::run(command, Duration::from_mins(2))?.ok()?;
    let mut ports: Vec<&str> = output.stdout.lines().collect();
    ports.sort_unstable();
    ports.dedup();
    ensure!(
        ports.len() == count,
        "{count} downloads shared {} connections",
        ports.len()
    );
    (0..count).map(|index| hash_file(&file(index))).collect()
}
