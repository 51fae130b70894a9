//! The environment that a command gets. Pure: names and values in, names and values out.
//!
//! A command inherits this process's variables but those that make programs load or run something else, or that are
//! the gateway's own secrets. What a caller sets beside them is checked against a longer list, and one name of that
//! list refuses the whole command: a variable that is quietly left out would be a command that does something else. No
//! list knows all that programs understand, so a command that no person has approved is set nothing but how it talks
//! ([`not_of_display`]).

use std::collections::BTreeMap;

/// Neither inherited nor set: what these name is loaded or run by programs that have nothing to do with it.
#[rustfmt::skip]
const NEVER: &[&str] = &[
    // Shells.
    "BASHOPTS", "BASH_ENV", "CONFIG_SHELL", "CONFIG_SITE", "ENV", "FPATH", "IFS", "KSH_ENV", "PROMPT_COMMAND", "PS4",
    "SHELLOPTS", "RUBYSHELL",
    // Programs that others call by themselves.
    "APT_CONFIG", "GIT_TRACE", "GIT_TRACE2", "GIT_TRACE2_EVENT", "MANOPT", "MANROFFOPT", "MANROFFSEQ", "PSQLRC",
    "PSQL_EDITOR", "RIPGREP_CONFIG_PATH", "RSYNC_CONNECT_PROG", "RSYNC_RSH", "SYSTEMD_EDITOR", "SYSTEMD_PAGER",
    "TAR_OPTIONS", "TEXINPUTS", "UNZIP", "UNZIPOPT", "ZIPOPT",
    // Interpreters and virtual machines.
    "CATALINA_OPTS", "CORECLR_PROFILER", "DOTNET_ADDITIONAL_DEPS", "DOTNET_STARTUP_HOOKS", "ELIXIR_ERL_OPTIONS",
    "EMACSLOADPATH", "ERL_AFLAGS", "ERL_FLAGS", "ERL_ZFLAGS", "JAVA_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS",
    "_JAVA_OPTIONS", "LUA_INIT", "LUA_INIT_5_1", "LUA_INIT_5_2", "LUA_INIT_5_3", "LUA_INIT_5_4", "NODE_OPTIONS",
    "NODE_PATH", "NODE_REDIRECT_WARNINGS", "NODE_REPL_EXTERNAL_MODULE", "NODE_REPL_HISTORY", "NODE_V8_COVERAGE",
    "PERL5LIB", "PERL5OPT", "PERLLIB", "PYTHONBREAKPOINT", "PYTHONHOME", "PYTHONPATH", "RUBYLIB", "RUBYOPT",
    "R_ENVIRON", "R_ENVIRON_USER", "R_PROFILE", "R_PROFILE_USER", "TCLLIBPATH",
    // Compilers and what builds.
    "ANT_OPTS", "CARGO_BUILD_RUSTC", "CARGO_BUILD_RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTDOC", "CC", "CMAKE_CXX_COMPILER", "CMAKE_C_COMPILER", "CMAKE_TOOLCHAIN_FILE", "CXX", "GRADLE_OPTS",
    "GNUMAKEFLAGS", "MAKE", "MAKEFILES", "MAKEFLAGS", "MAVEN_OPTS", "MFLAGS", "RUSTC", "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER", "RUSTDOC", "SBT_OPTS",
    // Version control and editors.
    "BROWSER", "BZR_EDITOR", "BZR_PLUGIN_PATH", "BZR_SSH", "EXINIT", "GIT_ALLOW_PROTOCOL",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_DIR", "GIT_EDITOR", "GIT_EXEC_PATH", "GIT_EXTERNAL_DIFF",
    "GIT_HOOK_PATH", "GIT_INDEX_FILE", "GIT_NAMESPACE", "GIT_OBJECT_DIRECTORY", "GIT_PROTOCOL_FROM_USER",
    "GIT_SEQUENCE_EDITOR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_NO_VERIFY", "GIT_TEMPLATE_DIR", "GIT_WORK_TREE",
    "GVIMINIT", "HGEDITOR", "HGMERGE", "HGRCPATH", "JULIA_EDITOR", "MYVIMRC", "SVN_EDITOR", "SVN_SSH", "VIMINIT",
    // The C library, and others.
    "GCONV_PATH", "GDK_PIXBUF_MODULE_FILE", "GIO_EXTRA_MODULES", "GIO_MODULE_DIR", "GLIBC_TUNABLES", "GST_PLUGIN_PATH",
    "GTK_MODULES", "GTK_PATH", "HELM_PLUGINS", "OPENSSL_MODULES", "HOSTALIASES", "PACKER_PLUGIN_PATH",
    "QML2_IMPORT_PATH", "QT_PLUGIN_PATH", "SSLKEYLOGFILE", "SUDO_ASKPASS", "VAGRANT_VAGRANTFILE",
];

/// Beginnings of names that are neither inherited nor set. `OPENCLAW_` holds the gateway's token and password.
const NEVER_PREFIXES: &[&str] = &["BASH_FUNC_", "DYLD_", "LD_", "OPENCLAW_"];

/// Inherited, but not for a caller to set: they lead programs to other files, hosts, keys or helpers.
#[rustfmt::skip]
const NOT_SET: &[&str] = &[
    // The person, and where things are.
    "HISTFILE", "HOME", "PATH", "SHELL", "XDG_CACHE_HOME", "XDG_CONFIG_DIRS", "XDG_CONFIG_HOME", "XDG_DATA_DIRS",
    "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "ZDOTDIR",
    // Helpers that programs start.
    "EDITOR", "FCEDIT", "GIT_ASKPASS", "GIT_PAGER", "GIT_PROXY_COMMAND", "GIT_SSH", "GIT_SSH_COMMAND", "LESSCLOSE",
    "LESSOPEN", "MANPAGER", "PAGER", "PERL5DB", "PERL5DBCMD", "PYTHONSTARTUP", "SSH_ASKPASS", "SSH_AUTH_SOCK",
    "SUDO_EDITOR", "VISUAL",
    // Proxies and trust.
    "ALL_PROXY", "CURL_CA_BUNDLE", "CURL_HOME", "HTTPS_PROXY", "HTTP_PROXY", "NODE_EXTRA_CA_CERTS",
    "NODE_TLS_REJECT_UNAUTHORIZED", "NO_PROXY", "OPENSSL_CONF", "OPENSSL_ENGINES", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR",
    "SSL_CERT_FILE", "WGETRC",
    // What builds, and where packages come from.
    "BUNDLE_GEMFILE", "BUN_CONFIG_REGISTRY", "CARGO_HOME", "CFLAGS", "CGO_CFLAGS", "CGO_LDFLAGS", "CLASSPATH",
    "COMPOSER_HOME", "CORECLR_PROFILER_PATH", "CPATH", "CPLUS_INCLUDE_PATH", "C_INCLUDE_PATH", "DENO_DIR", "GEM_HOME",
    "GEM_PATH", "GOENV", "GOFLAGS", "GONOPROXY", "GONOSUMCHECK", "GONOSUMDB", "GOPATH", "GOPRIVATE", "GOPROXY",
    "GRADLE_USER_HOME", "LDFLAGS", "LIBRARY_PATH", "LUA_CPATH", "LUA_PATH", "OBJC_INCLUDE_PATH", "PHPRC",
    "PHP_INI_SCAN_DIR", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_PYPI_URL", "PIP_TRUSTED_HOST",
    "PYTHONUSERBASE", "RUSTFLAGS", "RUSTUP_DIST_ROOT", "RUSTUP_DIST_SERVER", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN",
    "RUSTUP_UPDATE_ROOT", "R_LIBS_USER", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_INDEX_URL",
    "UV_PYTHON", "VIRTUAL_ENV", "YARN_RC_FILENAME",
    // Other people's clouds, and their keys.
    "AMQP_URL", "ANSIBLE_CONFIG", "AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_AUTH_LOCATION", "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET", "DATABASE_URL", "DOCKER_CERT_PATH", "DOCKER_CONTEXT", "DOCKER_HOST", "DOCKER_TLS_VERIFY",
    "GH_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "HELM_HOME", "KUBECONFIG",
    "MONGODB_URI", "NODE_AUTH_TOKEN", "NPM_TOKEN", "REDIS_URL", "TF_CLI_CONFIG_FILE", "TF_PLUGIN_CACHE_DIR",
];

/// Beginnings of names that a caller may not set.
const NOT_SET_PREFIXES: &[&str] =
    &["ANSIBLE_", "CARGO_REGISTRIES_", "CARGO_TARGET_", "GIT_CONFIG_", "NPM_CONFIG_", "TF_VAR_"];

/// How a command talks, which is all that a caller may set for a shell, and for what no person has approved: a shell gives
/// a meaning to nearly every other name, and so does some program.
const FOR_SHELLS: &[&str] = &["COLORTERM", "FORCE_COLOR", "LANG", "NO_COLOR", "TERM"];

/// Where programs are when nothing says so.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn is_in(name: &str, names: &[&str], prefixes: &[&str]) -> bool {
    names.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a command inherits a variable of this process.
fn is_inherited(name: &str) -> bool {
    !is_in(&name.to_ascii_uppercase(), NEVER, NEVER_PREFIXES)
}

/// Why a variable cannot be set.
fn fault(name: &str) -> Option<&'static str> {
    let mut letters = name.chars();
    let starts = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !(starts && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')) {
        return Some("invalid");
    }
    let name = name.to_ascii_uppercase();
    (is_in(&name, NEVER, NEVER_PREFIXES) || is_in(&name, NOT_SET, NOT_SET_PREFIXES)).then_some("blocked")
}

/// What a command gets: what it inherits, and what the caller sets. `for_shell`: the command is a shell.
///
/// # Errors
/// `SYSTEM_RUN_DENIED: ...`, with the names that cannot be set.
pub fn of_command(
    inherited: impl IntoIterator<Item = (String, String)>,
    set: &BTreeMap<String, String>,
    for_shell: bool,
) -> Result<BTreeMap<String, String>, String> {
    let faults: Vec<String> =
        set.keys().filter_map(|name| fault(name).map(|why| format!("{} ({why})", shown(name)))).collect();
    if !faults.is_empty() {
        return Err(format!("SYSTEM_RUN_DENIED: environment override rejected: {}", faults.join(", ")));
    }
    let mut environment: BTreeMap<String, String> =
        inherited.into_iter().filter(|(name, _)| is_inherited(name)).collect();
    environment.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    let taken = set.iter().filter(|(name, value)| (!for_shell || is_of_display(name)) && !value.contains('\0'));
    environment.extend(taken.map(|(name, value)| (name.clone(), value.clone())));
    Ok(environment)
}

fn is_of_display(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    FOR_SHELLS.contains(&name.as_str()) || name.starts_with("LC_")
}

/// The names among these that say more than how a command talks (`LANG`, `LC_*`, `TERM`, `COLORTERM`, `NO_COLOR`,
/// `FORCE_COLOR`).
pub fn not_of_display(set: &BTreeMap<String, String>) -> Vec<String> {
    set.keys().filter(|name| !is_of_display(name)).map(|name| shown(name)).collect()
}

/// A name that anybody may have made up, short and on one line.
fn shown(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_command_inherits_no_secret_of_the_gateway_and_nothing_that_loads_code() {
        let inherited = pairs(&[
            ("HOME", "/h"),
            ("GITHUB_TOKEN", "mine"),
            ("OPENCLAW_GATEWAY_TOKEN", "secret"),
            ("LD_PRELOAD", "/evil.so"),
            ("BASH_FUNC_x%%", "() { evil; }"),
            ("NODE_OPTIONS", "--require /evil"),
            ("ld_preload", "/evil.so"),
        ]);
        let environment = of_command(inherited, &BTreeMap::new(), false).unwrap();
        assert_eq!(environment, pairs(&[("HOME", "/h"), ("GITHUB_TOKEN", "mine"), ("PATH", DEFAULT_PATH)]));
    }

    #[test]
    fn one_name_that_cannot_be_set_refuses_the_command() {
        for name in
            ["PATH", "path", "HOME", "LD_AUDIT", "GIT_CONFIG_COUNT", "OPENCLAW_STATE_DIR", "A=B", "", "1A", "a b"]
        {
            let error = of_command(BTreeMap::new(), &pairs(&[("LANG", "C"), (name, "x")]), false).unwrap_err();
            assert!(error.starts_with("SYSTEM_RUN_DENIED: ") && !error.contains("LANG"), "{name}: {error}");
        }
    }

    #[test]
    fn what_leads_well_known_programs_to_other_code_cannot_be_set() {
        for name in [
            "TAR_OPTIONS",
            "RSYNC_RSH",
            "APT_CONFIG",
            "MAKEFILES",
            "GNUMAKEFLAGS",
            "PERLLIB",
            "OPENSSL_MODULES",
            "GIO_EXTRA_MODULES",
            "GTK_MODULES",
            "QT_PLUGIN_PATH",
            "PSQLRC",
            "SYSTEMD_PAGER",
            "MANROFFOPT",
            "GIT_TRACE",
        ] {
            assert!(of_command(BTreeMap::new(), &pairs(&[(name, "x")]), false).is_err(), "{name}");
        }
    }

    #[test]
    fn a_caller_sets_what_is_left_and_for_a_shell_little_of_that() {
        let set = pairs(&[("LANG", "C"), ("MY_SETTING", "1"), ("LC_ALL", "C.UTF-8"), ("NUL", "a\0b")]);
        let get = |for_shell| of_command(pairs(&[("PATH", "/bin"), ("LANG", "de")]), &set, for_shell).unwrap();
        assert_eq!(get(false), pairs(&[("PATH", "/bin"), ("LANG", "C"), ("LC_ALL", "C.UTF-8"), ("MY_SETTING", "1")]));
        assert_eq!(get(true), pairs(&[("PATH", "/bin"), ("LANG", "C"), ("LC_ALL", "C.UTF-8")]));
    }
}
