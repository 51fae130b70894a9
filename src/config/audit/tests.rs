use super::*;
use crate::config::Environment;
use crate::config::decode::decode;
use crate::config::raw::Document;
use crate::config::resolve::CredentialSource;

fn config(gateway: &str) -> Config {
    let document = Document::parse(format!("{{gateway: {{{gateway}}}}}")).unwrap();
    decode(&document, &Environment::default()).unwrap().config
}

fn findings(gateway: &str, mode: AuthMode) -> Vec<(Severity, String)> {
    found_in(&config(gateway), mode)
}

/// What is found, where the secret is the one that the file writes out.
fn found_in(config: &Config, mode: AuthMode) -> Vec<(Severity, String)> {
    let secret = config.gateway.auth.token.as_ref().and_then(|token| match token {
        SecretInput::Literal(secret) => {
            let source = CredentialSource::Key("gateway.auth.token");
            Some(Credential { secret: secret.clone(), source })
        }
        _ => None,
    });
    let facts = Facts { config, mode: Some(mode), refusal: None, secret: secret.as_ref(), entries: &[], misspelt: &[] };
    let found = audit(&facts);
    assert!(found.iter().all(|finding| !finding.what.is_empty() && !finding.fix.is_empty()));
    found.into_iter().map(|finding| (finding.severity, finding.key)).collect()
}

#[test]
fn a_plain_installation_has_nothing_to_say() {
    assert_eq!(findings("", AuthMode::Token), []);
    let token = "auth: {token: {source: 'env', provider: 'default', id: 'GATEWAY_TOKEN'}}";
    assert_eq!(findings(token, AuthMode::Token), []);
}

#[test]
fn every_rule_names_its_key() {
    use AuthMode::{None as Open, Token, TrustedProxy};
    use Severity::{Critical, Info, Warn};
    let proxy = |rest: &str| {
        format!(
            "trustedProxies: ['10.0.0.1'], auth: {{mode: 'trusted-proxy', trustedProxy: {{userHeader: 'x-user', requiredHeaders: ['x-p'], allowUsers: ['a'], {rest}}}}}"
        )
    };
    for (gateway, mode, severity, key) in [
        ("auth: {mode: 'none'}", Open, Critical, "gateway.auth.mode"),
        ("auth: {token: 'short'}", Token, Warn, "gateway.auth.token"),
        ("bind: 'lan', auth: {token: 'short'}", Token, Critical, "gateway.auth.token"),
        ("trustedProxies: ['10.0.0.1'], auth: {token: 'short'}", Token, Critical, "gateway.auth.token"),
        ("auth: {token: 'abababababababababababab'}", Token, Warn, "gateway.auth.token"),
        ("tools: {allow: ['nodes']}", Token, Warn, "gateway.tools.allow"),
        (
            "http: {endpoints: {chatCompletions: {enabled: true}}}",
            Open,
            Critical,
            "gateway.http.endpoints.chatCompletions.enabled",
        ),
        ("auth: {token: 'long-enough-not-to-be-guessed'}", Token, Info, "gateway.auth.token"),
        ("bind: 'lan'", Token, Warn, "gateway.tls.enabled"),
        ("auth: {rateLimit: {maxAttempts: 1000}}", Token, Warn, "gateway.auth.rateLimit.maxAttempts"),
        ("tailscale: {mode: 'funnel'}", Token, Warn, "gateway.tailscale.mode"),
        ("auth: {allowTailscale: true}", Token, Warn, "gateway.auth.allowTailscale"),
        ("trustedProxies: ['10.0.0.0/8']", Token, Warn, "gateway.trustedProxies"),
        ("trustedProxies: ['2001:db8::/32']", Token, Warn, "gateway.trustedProxies"),
        ("trustedProxies: ['10.0.0.1'], allowRealIpFallback: true", Token, Warn, "gateway.allowRealIpFallback"),
        (&proxy("allowLoopback: true"), TrustedProxy, Warn, "gateway.auth.trustedProxy.allowLoopback"),
        (
            &proxy("deviceAutoApprove: {enabled: true}"),
            TrustedProxy,
            Info,
            "gateway.auth.trustedProxy.deviceAutoApprove.enabled",
        ),
        (
            &proxy("deviceAutoApprove: {enabled: true, scopes: ['operator.admin']}"),
            TrustedProxy,
            Critical,
            "gateway.auth.trustedProxy.deviceAutoApprove.scopes",
        ),
        ("controlUi: {allowedOrigins: ['*']}", Token, Critical, "gateway.controlUi.allowedOrigins"),
        (
            "controlUi: {dangerouslyAllowHostHeaderOriginFallback: true}",
            Token,
            Critical,
            "gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback",
        ),
        ("controlUi: {allowInsecureAuth: true}", Token, Warn, "gateway.controlUi.allowInsecureAuth"),
        (
            "nodes: {pairing: {autoApproveCidrs: ['10.0.0.0/24']}}",
            Token,
            Warn,
            "gateway.nodes.pairing.autoApproveCidrs",
        ),
        ("nodes: {commands: {allow: ['camera.snap']}}", Token, Info, "gateway.nodes.commands.allow"),
        ("bind: 'lan'", Token, Warn, "plugins.entries.clawgate.config.deviceTokens"),
    ] {
        assert!(
            findings(gateway, mode).contains(&(severity, key.to_owned())),
            "{gateway}: {:?}",
            findings(gateway, mode)
        );
    }
    let open = findings("trustedProxies: ['10.0.0.1'], auth: {trustedProxy: {userHeader: 'x-user'}}", TrustedProxy);
    let keys: Vec<_> = open.iter().map(|(_, key)| key.as_str()).collect();
    let proxy = "gateway.auth.trustedProxy";
    let tokens = "plugins.entries.clawgate.config.deviceTokens";
    assert_eq!(keys, [&format!("{proxy}.allowUsers"), tokens, &format!("{proxy}.requiredHeaders")]);
}

#[test]
fn files_are_for_their_owner_alone() {
    let entry = |mode, is_secret, is_folder| Entry { path: "/x".into(), mode, is_own: true, is_secret, is_folder };
    let worst = |entry: Entry| {
        let config = Config::default();
        let found = audit(&Facts {
            config: &config,
            mode: Some(AuthMode::Token),
            refusal: None,
            secret: None,
            entries: &[entry],
            misspelt: &[],
        });
        found.first().map(|finding| (finding.severity, finding.fix.clone()))
    };
    assert_eq!(worst(entry(0o100_600, true, false)), None);
    assert_eq!(worst(entry(0o040_700, true, true)), None);
    assert_eq!(worst(entry(0o100_644, false, false)), None);
    assert_eq!(worst(entry(0o100_640, true, false)), Some((Severity::Critical, "chmod 600 /x".to_owned())));
    assert_eq!(worst(entry(0o100_622, false, false)), Some((Severity::Critical, "chmod 600 /x".to_owned())));
    assert_eq!(worst(entry(0o040_755, false, true)), Some((Severity::Warn, "chmod 700 /x".to_owned())));
    assert_eq!(worst(Entry { is_own: false, ..entry(0o600, true, false) }).unwrap().0, Severity::Critical);
}

#[test]
fn the_agents_keys_and_who_talks_to_it_are_looked_at() {
    use Severity::{Critical, Info, Warn};
    let found = |text: &str| {
        let document = Document::parse(text.to_owned()).unwrap();
        found_in(&decode(&document, &Environment::default()).unwrap().config, AuthMode::Token)
    };
    let provider = |url: &str, key: &str| {
        format!("{{models: {{providers: {{far: {{baseUrl: '{url}', {key} models: [{{id: 'm'}}]}}}}}}}}")
    };
    let base_url = "models.providers.far.baseUrl".to_owned();
    let key = "apiKey: {source: 'env', provider: 'default', id: 'KEY'},";
    assert_eq!(found(&provider("http://api.example.com/v1", key)), [(Critical, base_url.clone())]);
    assert_eq!(found(&provider("http://api.example.com/v1", "")), [(Warn, base_url)]);
    assert_eq!(found(&provider("https://api.example.com/v1", key)), []);
    assert_eq!(found(&provider("http://127.0.0.1:8080/v1", "apiKey: 'none',")), []);
    let written_out = provider("https://api.example.com/v1", "apiKey: 'sk-0123456789abcdef',");
    assert_eq!(found(&written_out), [(Info, "models.providers.far.apiKey".to_owned())]);
    let telegram = |more: &str| found(&format!("{{channels: {{telegram: {{botToken: '1:a', {more}}}}}}}"));
    let token = (Info, "channels.telegram.botToken".to_owned());
    assert_eq!(telegram(""), vec![token.clone()]);
    let everybody = telegram("dmPolicy: 'open', allowFrom: ['*']");
    assert_eq!(everybody, [(Critical, "channels.telegram.dmPolicy".to_owned()), token.clone()]);
    assert_eq!(telegram("groupPolicy: 'open'"), [(Warn, "channels.telegram.groupPolicy".to_owned()), token.clone()]);
    let root = telegram("apiRoot: 'http://bots.example.com'");
    assert_eq!(root, [(Critical, "channels.telegram.apiRoot".to_owned()), token]);
}

#[test]
fn why_a_gateway_does_not_start_is_said_with_what_to_set() {
    let config = config("bind: 'lan'");
    let refusal = "0.0.0.0 can be reached by other hosts and there is no token. Set gateway.auth.token, or so";
    let facts = Facts {
        config: &config,
        mode: Some(AuthMode::Token),
        refusal: Some(refusal),
        secret: None,
        entries: &[],
        misspelt: &[],
    };
    let first = audit(&facts).swap_remove(0);
    assert_eq!((first.severity, first.key.as_str()), (Severity::Critical, "gateway"));
    assert!(first.what.contains("there is no token") && first.fix.starts_with("Set gateway.auth.token"), "{first:?}");
}
