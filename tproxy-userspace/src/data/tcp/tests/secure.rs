//! TLS with a certificate of the test's own.

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::data::stream::{Stream, Wrapped};
use crate::data::tls::{Roots, samples};

/// A server for 127.0.0.1 and `proxy.example`, and who trusts it.
pub fn certified() -> (TlsAcceptor, Roots) {
    samples::certified("proxy.example", &[b"http/1.1"])
}

/// The server's end of TLS.
pub async fn wrap(acceptor: &TlsAcceptor, stream: TcpStream) -> std::io::Result<Stream> {
    let Wrapped { duplex, socket, .. } = Stream::Plain(stream).into_wrapped();
    let duplex = Box::new(acceptor.accept(duplex).await?);
    Ok(Stream::Wrapped(Wrapped {
        duplex,
        socket,
        opens_with_payload: false,
    }))
}
