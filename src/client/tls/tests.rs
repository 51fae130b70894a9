//! Handshakes with a small server of rustls, whose certificates are made here.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// An authority that the tests trust.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key, as a server shows them.
struct Shown {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn trust(&self) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        Trust { authorities: Authorities::These(verifier), ..Trust::default() }
    }

    fn issue(&self, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        Shown { certificate: params.signed_by(&key, &self.issuer).unwrap().der().clone(), key }
    }
}

fn self_signed() -> Shown {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    Shown { certificate: params.self_signed(&key).unwrap().der().clone(), key }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// One handshake of a client with `trust` and a server that shows `shown`.
async fn meet(shown: &Shown, trust: &Trust, host: &str) -> Result<(), TlsFailure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    meet_on(&listener, shown, trust, &format!("wss://{host}:7443")).await
}

async fn meet_on(listener: &TcpListener, shown: &Shown, trust: &Trust, url: &str) -> Result<(), TlsFailure> {
    let key = PrivateKeyDer::try_from(shown.key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.certificate.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        // The client that refuses the certificate breaks off.
        let _ = acceptor.accept(stream).await;
    };
    let url = GatewayUrl::parse(url).unwrap();
    let client = async { handshake(TcpStream::connect(address).await.unwrap(), &url, trust).await.map(drop) };
    let (_, result) =
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(serve, client) }).await.unwrap();
    result
}

fn distrust(result: Result<(), TlsFailure>) -> Distrust {
    match result {
        Err(TlsFailure::Untrusted { why, .. }) => why,
        other => panic!("not that it is not trusted: {other:?}"),
    }
}

#[tokio::test]
async fn s_84_a_self_signed_certificate_needs_a_pin() {
    let (authority, shown) = (Authority::new(), self_signed());
    assert_eq!(distrust(meet(&shown, &authority.trust(), "localhost").await), Distrust::UnknownIssuer);
    let print = Fingerprint::of(&shown.certificate);
    let pinned = |pins: &[Pin]| Trust { pins: pins.to_vec(), pins_from: "x".into(), ..authority.trust() };
    // Neither its issuer nor the name counts then.
    meet(&shown, &pinned(&[Pin::Certificate(print)]), "other.example").await.unwrap();
    let public_key = Certificate::of(&shown.certificate).public_key.unwrap();
    let several = [Pin::Certificate(Fingerprint([1; 32])), Pin::PublicKey(public_key)];
    meet(&shown, &pinned(&several), "localhost").await.unwrap();
    let refused = meet(&shown, &pinned(&[Pin::Certificate(public_key)]), "localhost").await.unwrap_err();
    let TlsFailure::NotPinned { presented, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(presented.fingerprint, print);
    assert_eq!(refused.fingerprints(), [("pinned", public_key.with_colons()), ("presented", print.with_colons())]);
}

#[tokio::test]
async fn a_pin_is_asked_for_although_normal_trust_would_let_it_pass() {
    let authority = Authority::new();
    let shown = authority.issue(key(), |_| {});
    meet(&shown, &authority.trust(), "localhost").await.unwrap();
    let trust = Trust { pins: vec![Pin::Certificate(Fingerprint([1; 32]))], ..authority.trust() };
    assert!(matches!(meet(&shown, &trust, "localhost").await, Err(TlsFailure::NotPinned { .. })));
}

#[tokio::test]
async fn normal_trust_looks_at_name_and_time() {
    let authority = Authority::new();
    let shown = authority.issue(key(), |_| {});
    let trust = authority.trust();
    meet(&shown, &trust, "127.0.0.1").await.unwrap();
    assert_eq!(distrust(meet(&shown, &trust, "other.example").await), Distrust::WrongName("other.example".into()));
    let expired = authority.issue(key(), |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert_eq!(distrust(meet(&expired, &trust, "localhost").await), Distrust::Expired);
    let future = authority.issue(key(), |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    assert_eq!(distrust(meet(&future, &trust, "localhost").await), Distrust::NotYet);
}

#[tokio::test]
async fn the_first_certificate_is_remembered_and_a_change_refused() {
    let state = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let trust = Trust { known: Some(state.path().into()), ..authority.trust() };
    let url = GatewayUrl::parse("wss://localhost:7443").unwrap();
    let known = || KnownGateways::load(state.path()).unwrap().get(&url);

    // What normal trust does not let pass is not remembered.
    meet(&self_signed(), &trust, "localhost").await.unwrap_err();
    assert_eq!(known(), None);

    let first_key = key();
    let again = KeyPair::from_pem(&first_key.serialize_pem()).unwrap();
    let first = authority.issue(first_key, |_| {});
    meet(&first, &trust, "localhost").await.unwrap();
    assert_eq!(known().unwrap().certificate, Certificate::of(&first.certificate));
    meet(&first, &trust, "localhost").await.unwrap();

    // A new certificate for the same key is the same gateway; it is what is known from then on.
    let renewed = authority.issue(again, |params| params.not_after = rcgen::date_time_ymd(2999, 1, 1));
    meet(&renewed, &trust, "localhost").await.unwrap();
    assert_eq!(known().unwrap().certificate, Certificate::of(&renewed.certificate));

    let other = authority.issue(key(), |_| {});
    let refused = meet(&other, &trust, "localhost").await.unwrap_err();
    let prints = [Fingerprint::of(&renewed.certificate), Fingerprint::of(&other.certificate)];
    let shown = refused.fingerprints();
    assert_eq!(shown, [("known", prints[0].with_colons()), ("presented", prints[1].with_colons())]);
    assert_eq!(known().unwrap().certificate.fingerprint, prints[0], "a refused one is not remembered");

    KnownGateways::load(state.path()).unwrap().accept(&url, prints[1]).unwrap();
    meet(&other, &trust, "localhost").await.unwrap();
    assert!(matches!(meet(&renewed, &trust, "localhost").await, Err(TlsFailure::Changed { .. })));
}

#[tokio::test]
async fn what_does_not_speak_tls_is_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = GatewayUrl::parse("wss://localhost:7443").unwrap();
    let serve = async {
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let trust = Trust::default();
    let client = async { handshake(TcpStream::connect(address).await.unwrap(), &url, &trust).await.map(drop) };
    let (_stream, result) = tokio::join!(serve, client);
    assert_eq!(result, Err(TlsFailure::NotTls));
}
