//! What stands in front of a gateway: TLS, and a proxy that wants to see a header.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate with its key.
pub(crate) struct Shown {
    pub(crate) certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Shown {
    pub(crate) fn self_signed() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        Self { certificate: params.self_signed(&key).unwrap().der().clone(), key }
    }

    /// As `openssl x509 -noout -fingerprint -sha256` prints it.
    pub(crate) fn openssl_fingerprint(&self) -> String {
        let print = clawgate::config::fingerprint::Fingerprint::of(&self.certificate);
        format!("sha256 Fingerprint={}", print.with_colons())
    }

    pub(crate) fn colons(&self) -> String {
        clawgate::config::fingerprint::Fingerprint::of(&self.certificate).with_colons()
    }

    fn config(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key);
        Arc::new(config.unwrap())
    }
}

/// An authority whose file a command can be told to trust (`SSL_CERT_FILE`).
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) file: PathBuf,
}

impl Authority {
    pub(crate) fn in_folder(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let file = folder.join("authority.pem");
        std::fs::write(&file, certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), file }
    }

    pub(crate) fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        Shown { certificate: params.signed_by(&key, &self.issuer).unwrap().der().clone(), key }
    }
}

/// The front of a gateway, on a port of its own. It lives until the end of the test program.
pub(crate) struct Front {
    pub(crate) port: u16,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
    /// The heads of the requests that came.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Front {
    /// Before the gateway on `gateway_port`. With `wanted`, a request without that header is sent to a login page.
    pub(crate) fn start(gateway_port: u16, shown: &Shown, wanted: Option<&'static str>) -> Self {
        let tls = Arc::new(Mutex::new(shown.config()));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let (config, seen) = (Arc::clone(&tls), Arc::clone(&heads));
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap().port()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let acceptor = TlsAcceptor::from(Arc::clone(&*config.lock().unwrap()));
                    let seen = Arc::clone(&seen);
                    // One connection after the other is enough for commands.
                    drop(pass(stream, acceptor, gateway_port, wanted, &seen).await);
                }
            });
        });
        Self { port: told.recv().unwrap(), tls, heads }
    }

    /// Shows another certificate from now on.
    pub(crate) fn show(&self, shown: &Shown) {
        *self.tls.lock().unwrap() = shown.config();
    }

    pub(crate) fn url(&self) -> String {
        format!("wss://localhost:{}", self.port)
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn pass(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    gateway_port: u16,
    wanted: Option<&str>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let passes = wanted.is_none_or(|wanted| text.contains(wanted));
    seen.lock().unwrap().push(text);
    if !passes {
        let login =
            "HTTP/1.1 302 Found\r\nlocation: https://login.example/start?state=s3cret\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(login.as_bytes()).await?;
        return stream.shutdown().await;
    }
    let mut gateway = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], gateway_port))).await?;
    gateway.write_all(&head).await?;
    copy_bidirectional(&mut stream, &mut gateway).await.map(drop)
}
