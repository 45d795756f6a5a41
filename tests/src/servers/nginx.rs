//! nginx: downloads, uploads, and who asked.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Certificate, Content, files};
use crate::{
    Namespace, Process,
    wait::{SOON, Transport, listening, until},
};

/// A line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asked.
    pub client: IpAddr,
    /// Which of its addresses was asked.
    pub server: IpAddr,
    /// `GET` or `PUT`.
    pub method: String,
    /// The path.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
}

/// nginx on port 80 of every address of a namespace, both families.
///
/// `/whoami` answers with the client's address and the server's; `/site` with these and, before them, the site
/// that was asked for; `/upload/NAME` takes a PUT; everything else is a file that [`Nginx::offer`] put there.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    dir: PathBuf,
    certificate: Option<Certificate>,
}

impl Nginx {
    /// Starts it with its files under `dir`.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, dir: &Path) -> Result<Self> {
        Self::start_sites(ns, dir, &[])
    }

    /// Starts it for these sites, with TLS on port 443 too. There the site is what the client's hello names
    /// (SNI, RFC 6066), on port 80 what the request does.
    ///
    /// # Errors
    /// As [`Nginx::start`], and when no certificate can be made.
    pub fn start_sites(ns: &Namespace, dir: &Path, sites: &[&str]) -> Result<Self> {
        let dir = dir.join(format!("nginx-{}", ns.inode()));
        for folder in ["files", "upload", "temporary"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let certificate = if sites.is_empty() {
            None
        } else {
            Some(Certificate::make(&dir, sites)?)
        };
        let config = dir.join("nginx.conf");
        fs::write(&config, configuration(&dir, certificate.as_ref()))
            .with_context(|| format!("writing {}", config.display()))?;
        let mut command = ns.command("nginx");
        command.args(["-e", "stderr", "-p"]).arg(&dir);
        command.arg("-c").arg(&config);
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, 80)
            .with_context(|| format!("nginx said: {}", process.lines().join("\n")))?;
        Ok(Self {
            process,
            dir,
            certificate,
        })
    }

    /// What it shows to clients of its sites.
    ///
    /// # Errors
    /// When it was started without sites.
    pub fn certificate(&self) -> Result<&Certificate> {
        self.certificate.as_ref().context("it has no sites")
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Offers a file of `bytes` bytes; gives its path in URLs and its hash.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn offer(&self, bytes: u64) -> Result<(String, Content)> {
        let content = Content::of(bytes)?;
        let name = format!("{bytes}.bin");
        let link = self.dir.join("files").join(&name);
        if !link.exists() {
            std::os::unix::fs::symlink(fs::canonicalize(&content.path)?, &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
        Ok((name, content))
    }

    /// SHA-256 of what was uploaded to `/upload/NAME`.
    ///
    /// # Errors
    /// When nothing was.
    pub fn uploaded(&self, name: &str) -> Result<String> {
        files::hash_file(&self.dir.join("upload").join(name))
    }

    /// All requests so far, in the order of their ends.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let path = self.dir.join("access.log");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.lines().filter_map(request).collect())
    }

    /// Waits for the line of a request for `path`: it is written a moment after the client has its answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn request_for(&self, path: &str) -> Result<Request> {
        until(
            &format!("a request for {path} in nginx's log"),
            SOON,
            || {
                let requests = self.requests()?;
                Ok(requests
                    .into_iter()
                    .rev()
                    .find(|request| request.path == path))
            },
        )
    }
}

fn request(line: &str) -> Option<Request> {
    let mut words = line.split_whitespace();
    Some(Request {
        client: words.next()?.parse().ok()?,
        server: words.next()?.parse().ok()?,
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        status: words.next()?.parse().ok()?,
    })
}

fn configuration(dir: &Path, certificate: Option<&Certificate>) -> String {
    let dir = dir.display();
    let tls = certificate.map_or_else(String::new, |certificate| {
        format!(
            r#"
    server {{
        listen 443 ssl;
        listen [::]:443 ssl ipv6only=on;
        ssl_certificate {};
        ssl_certificate_key {};
        default_type text/plain;
        location = /site {{ return 200 "$ssl_server_name $remote_addr $server_addr\n"; }}
        location / {{ root {dir}/files; }}
    }}"#,
            certificate.chain.display(),
            certificate.key.display()
        )
    });
    format!(
        r#"
daemon off;
user root;
worker_processes 2;
worker_rlimit_nofile 20000;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 9000; }}
http {{
    log_format lab '$remote_addr $server_addr $request_method $uri $status';
    access_log {dir}/access.log lab;
    sendfile on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_temp_path {dir}/temporary/body;
    proxy_temp_path {dir}/temporary/proxy;
    fastcgi_temp_path {dir}/temporary/fastcgi;
    uwsgi_temp_path {dir}/temporary/uwsgi;
    scgi_temp_path {dir}/temporary/scgi;
    default_type application/octet-stream;
    server {{
        listen 80 backlog=4096;
        listen [::]:80 ipv6only=on backlog=4096;
        root {dir}/files;
        location = /whoami {{
            default_type text/plain;
            return 200 "$remote_addr $server_addr\n";
        }}
        location = /site {{
            default_type text/plain;
            return 200 "$host $remote_addr $server_addr\n";
        }}
        location /upload/ {{
            root {dir};
            dav_methods PUT;
        }}
    }}{tls}
}}
"#
    )
}
