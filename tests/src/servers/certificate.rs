//! Certificates for servers with TLS.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// A server's certificate, and the authority that gave it: made for one lab and trusted by nobody else. Files in
/// PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The authority's own certificate: what clients must trust, by `SSL_CERT_FILE` for example.
    pub authority: PathBuf,
    /// The server's.
    pub chain: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for these names and addresses, with its files in `dir`.
    ///
    /// # Errors
    /// When a name is none, or the files cannot be written.
    pub fn make(dir: &Path, names: &[&str]) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        // A certificate whose own name is that of its issuer counts as its own issuer.
        authority
            .distinguished_name
            .push(DnType::CommonName, "authority of the lab");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate()?;
        let own = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            authority: write("authority.pem", authority.pem())?,
            chain: write("server.pem", own.pem())?,
            key: write("server.key", key.serialize_pem())?,
        })
    }
}
