//! Encryption to upstreams: whom to trust.

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// The certificates that are trusted.
#[derive(Clone, Debug)]
pub struct Roots(Arc<RootCertStore>);

/// Why encryption cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There are no certificates.
    #[error(
        "reading the certificates of this machine failed: {0}; install the package ca-certificates, or use DNS servers without \
         tls:// and https://"
    )]
    NoRoots(String),
    /// The library refuses.
    #[error("setting up TLS failed: {0}")]
    Setup(#[from] rustls::Error),
    /// No certificate can have such a name.
    #[error(
        "the DNS server {0} has a name that no certificate can have; name another one with #NAME at the end"
    )]
    Name(String),
}

impl Roots {
    /// Those of the system: /etc/ssl, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    ///
    /// # Errors
    /// When there is none.
    pub fn system() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        // One that is too old to be read keeps none of the others from being used.
        let (added, _) = store.add_parsable_certificates(found.certs);
        if added == 0 {
            let reasons = found.errors.iter().map(ToString::to_string);
            let reasons: Vec<String> = reasons.collect();
            return Err(TlsError::NoRoots(if reasons.is_empty() {
                "there are none".to_owned()
            } else {
                reasons.join(", ")
            }));
        }
        Ok(Self(Arc::new(store)))
    }

    /// This one alone.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn only(certificate: CertificateDer<'static>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        store.add(certificate)?;
        Ok(Self(Arc::new(store)))
    }

    /// Connects with these. `http`: the server must speak HTTP/2.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn connector(&self, http: bool) -> Result<TlsConnector, TlsError> {
        // Named, so that no other part of the program has a say in the matter.
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(Arc::clone(&self.0));
        let mut config = builder.with_no_client_auth();
        if http {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(TlsConnector::from(Arc::new(config)))
    }
}
