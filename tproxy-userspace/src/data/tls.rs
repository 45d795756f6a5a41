//! Encryption to servers: whom to trust.

mod read_ahead;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Host;

pub use self::read_ahead::ReadAhead;

/// The certificates that are trusted.
#[derive(Clone, Debug)]
pub struct Roots(Arc<RootCertStore>);

/// Why encryption cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There are no certificates.
    #[error(
        "reading the certificates of this machine failed: {0}; install the package ca-certificates, or name no server with \
         tls:// or https://"
    )]
    NoRoots(String),
    /// The library refuses.
    #[error("setting up TLS failed: {0}")]
    Setup(#[from] rustls::Error),
    /// No certificate can have such a name.
    #[error("the server {server} has a name that no certificate can have; {help}")]
    Name {
        /// The server.
        server: String,
        /// What to do.
        help: &'static str,
    },
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

    /// How to speak to the server of this name or address. `protocols` are on offer (ALPN).
    ///
    /// # Errors
    /// When the library refuses, or no certificate can have such a name.
    pub fn connector(
        &self,
        host: &Host<String>,
        protocols: &[&[u8]],
        help: &'static str,
    ) -> Result<Connector, TlsError> {
        let name = server_name(host).ok_or_else(|| TlsError::Name {
            server: host.to_string(),
            help,
        })?;
        self.connector_to(name, protocols)
    }

    /// The same, to whoever has a certificate of this name.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn connector_to(
        &self,
        name: ServerName<'static>,
        protocols: &[&[u8]],
    ) -> Result<Connector, TlsError> {
        // Named, so that no other part of the program has a say in the matter.
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(Arc::clone(&self.0));
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Connector {
            name,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }
}

/// Speaks TLS to one server.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.name).finish()
    }
}

impl Connector {
    /// Shakes hands, and makes sure that it is the server.
    ///
    /// # Errors
    /// When the connection breaks, or the server cannot show that it is the one.
    pub async fn connect<S>(&self, stream: S) -> io::Result<TlsStream<ReadAhead<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = ReadAhead::new(stream);
        self.tls.connect(self.name.clone(), stream).await
    }
}

/// The host as certificates name it.
fn server_name(host: &Host<String>) -> Option<ServerName<'static>> {
    let name = match host {
        Host::Domain(name) => return name.trim_end_matches('.').to_owned().try_into().ok(),
        Host::Ipv4(ip) => IpAddr::from(*ip),
        Host::Ipv6(ip) => IpAddr::from(*ip),
    };
    Some(name.into())
}

/// Servers of tests.
#[cfg(test)]
pub mod samples {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server for this name and 127.0.0.1 that offers these protocols (ALPN), and who trusts it.
    pub fn certified(name: &str, protocols: &[&[u8]]) -> (TlsAcceptor, Roots) {
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("a pair");
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let roots = Roots::only(certificate).expect("a certificate");
        (TlsAcceptor::from(Arc::new(config)), roots)
    }
}
