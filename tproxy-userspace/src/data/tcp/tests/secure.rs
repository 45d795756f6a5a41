//! TLS with a certificate of the test's own.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::data::stream::{Stream, Wrapped};
use crate::data::tls::Roots;

/// A server for 127.0.0.1 and `proxy.example`, and who trusts it.
pub fn certified() -> (TlsAcceptor, Roots) {
    let names = vec!["proxy.example".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a pair");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let roots = Roots::only(certificate).expect("a certificate");
    (TlsAcceptor::from(Arc::new(config)), roots)
}

/// The server's end of TLS.
pub async fn wrap(acceptor: &TlsAcceptor, stream: TcpStream) -> std::io::Result<Stream> {
    let Wrapped { duplex, socket } = Stream::Plain(stream).into_wrapped();
    let duplex = Box::new(acceptor.accept(duplex).await?);
    Ok(Stream::Wrapped(Wrapped { duplex, socket }))
}
