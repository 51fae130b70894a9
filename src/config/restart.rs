//! Which settings wait for a restart: what of an edited file does not take effect while the gateway runs.
//!
//! Everything that decides who gets in and what nodes may do, and the agent with its channels, is applied at once and is not here.

use super::model::Config;

/// The keys whose values differ between `running` and `edited` and that only a restart applies, in the order of the
/// file's documentation.
pub fn waiting_for_restart(running: &Config, edited: &Config) -> Vec<&'static str> {
    let (one, two) = (&running.gateway, &edited.gateway);
    let differs = [
        ("gateway.mode", one.mode != two.mode),
        ("gateway.port", one.port != two.port),
        ("gateway.bind", one.bind != two.bind),
        ("gateway.customBindHost", one.custom_bind_host != two.custom_bind_host),
        ("gateway.tailscale.mode", one.tailscale != two.tailscale),
        ("gateway.tls", one.tls != two.tls),
        ("gateway.handshakeTimeoutMs", one.handshake_timeout != two.handshake_timeout),
        ("gateway.controlUi.enabled", one.control_ui.enabled != two.control_ui.enabled),
        ("gateway.controlUi.root", one.control_ui.root != two.control_ui.root),
        ("gateway.controlUi.basePath", one.control_ui.base_path != two.control_ui.base_path),
        ("gateway.http.endpoints", one.chat_completions != two.chat_completions),
        ("gateway.tools", one.deny_tools != two.deny_tools || one.allow_tools != two.allow_tools),
        ("logging", running.logging != edited.logging),
        ("plugins.entries.clawgate.config.limits", running.limits != edited.limits),
        ("plugins.entries.clawgate.config.tailscale", running.tailscale != edited.tailscale),
    ];
    differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::super::environment::Environment;
    use super::super::raw::Document;
    use super::*;

    fn config(text: &str) -> Config {
        decode(&Document::parse(text).unwrap(), &Environment::default()).unwrap().config
    }

    #[test]
    fn who_gets_in_waits_for_nothing_and_where_for_a_restart() {
        let running = config("{}");
        let edited = config(
            "{gateway: {auth: {token: 't', rateLimit: {maxAttempts: 3}}, trustedProxies: ['10.0.0.1'],
              controlUi: {allowedOrigins: ['https://ui.example']}, reload: {mode: 'off'},
              nodes: {commands: {deny: ['system.run']}, pluginTools: {enabled: false}, allowSkills: false},
              http: {securityHeaders: {strictTransportSecurity: 'max-age=1'}}}}",
        );
        assert!(waiting_for_restart(&running, &edited).is_empty());
        let edited = config("{gateway: {bind: 'lan', port: 1, tls: {enabled: true}}, logging: {level: 'debug'}}");
        assert_eq!(waiting_for_restart(&running, &edited), ["gateway.port", "gateway.bind", "gateway.tls", "logging"]);
    }
}
