//! A way to a gateway that speaks TLS, for clients that do not: [`Tunnel`].

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, ProtocolVersion, SignatureScheme};
use tokio_rustls::TlsConnector;

/// How the last connection was made.
#[derive(Clone, Debug, Default)]
pub struct Shaken {
    pub leaf: Vec<u8>,
    pub version: Option<ProtocolVersion>,
    pub kind: Option<HandshakeKind>,
    pub protocol: Vec<u8>,
}

/// A port of loopback from which every connection goes on through TLS to the gateway.
pub struct Tunnel {
    pub port: u16,
    pub last: Arc<Mutex<Shaken>>,
    _runtime: tokio::runtime::Runtime,
}

impl Tunnel {
    /// With everything that both sides can.
    pub fn to(port: u16) -> Self {
        Self::with(port, rustls::ALL_VERSIONS, &[b"http/1.1"])
    }

    pub fn with(
        port: u16,
        versions: &[&'static rustls::SupportedProtocolVersion],
        protocols: &[&'static [u8]],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trusting = Arc::new(Trusting(provider.signature_verification_algorithms));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions of rustls")
            .dangerous()
            .with_custom_certificate_verifier(trusting)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("an option of a socket");
        let own = listener.local_addr().expect("it is bound").port();
        let last = Arc::new(Mutex::new(Shaken::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
        let shared = Arc::clone(&last);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((mut plain, _)) = listener.accept().await {
                let (connector, last) = (connector.clone(), Arc::clone(&shared));
                clawgate::task::spawn("tunnel", async move {
                    let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                    let stream = tokio::net::TcpStream::connect(gateway).await;
                    let Ok(stream) = stream else { return };
                    let name = ServerName::from(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST));
                    let Ok(mut secure) = connector.connect(name, stream).await else { return };
                    let session = secure.get_ref().1;
                    *last.lock().expect("whole") = Shaken {
                        leaf: session.peer_certificates().map(|chain| chain[0].to_vec()).unwrap_or_default(),
                        version: session.protocol_version(),
                        kind: session.handshake_kind(),
                        protocol: session.alpn_protocol().unwrap_or_default().to_vec(),
                    };
                    let _ = tokio::io::copy_bidirectional(&mut plain, &mut secure).await;
                });
            }
        });
        Self { port: own, last, _runtime: runtime }
    }

    pub fn last(&self) -> Shaken {
        self.last.lock().expect("whole").clone()
    }
}

/// Takes every certificate: the tests look at it themselves.
#[derive(Debug)]
struct Trusting(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
