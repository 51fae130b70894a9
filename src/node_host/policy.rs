//! May this machine run that program for the gateway? Pure: a policy and a program in, yes or a reason out.
//!
//! The policy is a document in the form of the incumbent's `exec-approvals.json`:
//!
//! ```json
//! {"version": 1,
//!  "defaults": {"security": "allowlist", "ask": "on-miss"},
//!  "agents": {"*": {"allowlist": [{"pattern": "/usr/bin/uname"}]}, "main": {"security": "full", "ask": "off"}}}
//! ```
//!
//! `security` says what may run at all (`deny`, `allowlist`, `full`), `ask` when a person must have approved it on the
//! gateway (`off`, `on-miss`, `always`). What an agent's entry leaves out is taken from `*`, then from `defaults`, then
//! from the built-in `allowlist` and `on-miss`: without a policy nothing runs that no person has approved.
//!
//! With `ask: off` nobody is asked, so that the gateway's word that a person has approved counts for nothing: the list
//! is a bound that a gateway cannot widen. With `on-miss` and `always` that word is taken.
//!
//! A pattern with a slash is a glob over the path of the program (`*` within a folder, `**` across folders, `~` for the
//! home folder); one without is a glob over the name of a program that was found through `PATH`. The list is about
//! programs, not about what they are told to do. So shells and programs that run others (`env`, `sudo`, `timeout`) are
//! never allowed by it; programs that are known to run others or to write any file when they are told to (`python3`,
//! `find`, `git`, `tar`, `cp`) only by an entry without `*` and `?`, which somebody has written for them; and by an
//! entry with an `argPattern` nothing, for it is for other hosts to understand. What is known is in
//! [`programs`](super::programs).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::programs::Kind;

/// What may run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// Nothing.
    Deny,
    /// What is on the list, and what a person has approved.
    Allowlist,
    /// Everything.
    Full,
}

/// When a person must have approved a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Never.
    Off,
    /// When it is not on the list.
    OnMiss,
    /// Always.
    Always,
}

/// Both in one word, as a person says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing runs.
    Deny,
    /// What is on the list runs, and nothing else, whatever the gateway says.
    Allowlist,
    /// What is on the list runs, and the rest when the gateway says that a person has approved it.
    Ask,
    /// Everything runs.
    Full,
}

impl Mode {
    const fn parts(self) -> (Security, Ask) {
        match self {
            Self::Deny => (Security::Deny, Ask::Off),
            Self::Allowlist => (Security::Allowlist, Ask::Off),
            Self::Ask => (Security::Allowlist, Ask::OnMiss),
            Self::Full => (Security::Full, Ask::Off),
        }
    }
}

/// A program that may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// A glob over its path or its name.
    pub pattern: String,
    /// A rule about its arguments. Such an entry allows nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arg_pattern: Option<serde_json::Value>,
}

/// One block of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// What may run at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// When a person must have approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Programs that may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowlist: Vec<Entry>,
}

/// The document. Keys that mean nothing here are left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approvals {
    /// Version of the form.
    pub version: u32,
    /// For every agent.
    #[serde(default)]
    pub defaults: Block,
    /// By the agent's id; `*` is every agent.
    #[serde(default)]
    pub agents: BTreeMap<String, Block>,
}

impl Approvals {
    /// No document.
    pub fn none() -> Self {
        Self { version: 1, ..Self::default() }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// What is wrong with it. Whoever has a document that cannot be read runs nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let approvals: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match approvals.version {
            1 => Ok(approvals),
            version => Err(format!("version {version} is not known, only 1")),
        }
    }

    /// What counts for `agent`; `mode` replaces what the document says of `security` and `ask`.
    pub fn rules(&self, agent: Option<&str>, mode: Option<Mode>) -> Rules {
        let agent = agent.map(str::trim).filter(|agent| !agent.is_empty() && *agent != "*").unwrap_or("main");
        let blocks = [self.agents.get(agent), self.agents.get("*"), Some(&self.defaults)];
        let blocks = || blocks.iter().flatten();
        let (security, ask) = mode.unwrap_or(Mode::Ask).parts();
        let (said_security, said_ask) = match mode {
            Some(_) => (None, None),
            None => (blocks().find_map(|block| block.security), blocks().find_map(|block| block.ask)),
        };
        Rules {
            security: said_security.unwrap_or(security),
            ask: said_ask.unwrap_or(ask),
            allowlist: blocks().flat_map(|block| block.allowlist.iter().cloned()).collect(),
        }
    }
}

/// What counts for one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What may run at all.
    pub security: Security,
    /// When a person must have approved it.
    pub ask: Ask,
    /// Programs that may run.
    pub allowlist: Vec<Entry>,
}

/// A program that is to run.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// As it was asked for.
    pub name: &'a str,
    /// The file that would run: absolute, without `..`.
    pub path: &'a Path,
    /// The file that this one leads to, links followed.
    pub real: &'a Path,
    /// The home folder, for patterns.
    pub home: Option<&'a str>,
}

/// What lets a program run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It is on the list, and no person was asked.
    Listed,
    /// A person has approved it.
    Approved,
    /// Everything may run.
    Unlimited,
}

/// Why a program does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nothing runs here.
    Disabled,
    /// A person must approve it on the gateway.
    ApprovalRequired,
    /// It is not on the list.
    NotListed,
}

impl Denied {
    /// The word for it in the event `exec.denied`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Disabled => "security=deny",
            Self::ApprovalRequired => "approval-required",
            Self::NotListed => "allowlist-miss",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "SYSTEM_RUN_DISABLED: security=deny",
            Self::ApprovalRequired => "SYSTEM_RUN_DENIED: approval required",
            Self::NotListed => "SYSTEM_RUN_DENIED: allowlist miss",
        })
    }
}

impl Rules {
    /// Decides. `approved`: the gateway says that a person has approved this very command.
    ///
    /// # Errors
    /// Why it must not run.
    pub fn decide(&self, program: Program<'_>, approved: bool) -> Result<Permit, Denied> {
        let listed = || self.lists(program).then_some(Permit::Listed);
        let by_a_person = || if approved { Ok(Permit::Approved) } else { Err(Denied::ApprovalRequired) };
        match (self.security, self.ask) {
            (Security::Deny, _) => Err(Denied::Disabled),
            // Where no person is asked, none can have approved.
            (Security::Allowlist, Ask::Off) => listed().ok_or(Denied::NotListed),
            (Security::Allowlist, Ask::OnMiss) => by_a_person().or_else(|denied| listed().ok_or(denied)),
            (Security::Full, Ask::Off | Ask::OnMiss) => Ok(Permit::Unlimited),
            (_, Ask::Always) => by_a_person(),
        }
    }

    /// Why a program is not on the list although an entry is about it, for whoever wrote the entry.
    pub fn why_not(&self, program: Program<'_>) -> Option<&'static str> {
        let kind = Kind::of(program.name, program.path, program.real);
        let is_about = self.security == Security::Allowlist && self.matches(program, |_| true);
        match kind {
            Kind::RunsOthers if is_about => Some("no entry allows shells and programs that run others"),
            Kind::Versatile if is_about && !self.lists(program) => {
                Some("it can run others or write any file: only an entry without * and ? allows it")
            }
            _ => None,
        }
    }

    fn lists(&self, program: Program<'_>) -> bool {
        match Kind::of(program.name, program.path, program.real) {
            Kind::RunsOthers => false,
            Kind::Versatile => self.matches(program, |pattern| !pattern.contains(['*', '?'])),
            Kind::Plain => self.matches(program, |_| true),
        }
    }

    /// Whether an entry is about a program, of those whose pattern counts.
    fn matches(&self, program: Program<'_>, counts: impl Fn(&str) -> bool) -> bool {
        let Some(path) = program.path.to_str().filter(|path| path.starts_with('/')) else { return false };
        self.allowlist.iter().filter(|entry| entry.arg_pattern.is_none()).any(|entry| {
            let pattern = entry.pattern.trim();
            if !counts(pattern) {
                return false;
            }
            match (pattern.strip_prefix("~/"), program.home) {
                (Some(rest), Some(home)) => glob(&format!("{}/{rest}", home.trim_end_matches('/')), path),
                (Some(_), None) => false,
                (None, _) if pattern.contains('/') => glob(pattern, path),
                (None, _) => !pattern.is_empty() && !program.name.contains('/') && glob(pattern, program.name),
            }
        })
    }
}

/// `?` is one character and `*` any number, but no slash; `**` takes slashes, too.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Which places of the pattern the text read so far can have led to: no pattern takes longer than their product.
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    let skip_stars = |at: &mut Vec<bool>| {
        for i in 0..pattern.len() {
            if at[i] && pattern[i] == '*' {
                at[i + 1] = true;
            }
        }
    };
    skip_stars(&mut at);
    for c in text {
        let mut next = vec![false; pattern.len() + 1];
        for i in (0..pattern.len()).filter(|i| at[*i]) {
            match pattern[i] {
                '*' => {
                    let doubled = i > 0 && pattern[i - 1] == '*' || pattern.get(i + 1) == Some(&'*');
                    next[i] |= c != '/' || doubled;
                }
                '?' => next[i + 1] |= c != '/',
                letter => next[i + 1] |= letter == c,
            }
        }
        at = next;
        skip_stars(&mut at);
    }
    at[pattern.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn program<'a>(name: &'a str, path: &'a str) -> Program<'a> {
        Program { name, path: Path::new(path), real: Path::new(path), home: Some("/home/u") }
    }

    fn allowed(rules: &Rules, program: Program<'_>, approved: bool) -> Result<(), Denied> {
        rules.decide(program, approved).map(|_| ())
    }

    fn listed(patterns: &[&str]) -> Approvals {
        let allowlist =
            patterns.iter().map(|pattern| Entry { pattern: (*pattern).into(), arg_pattern: None }).collect();
        let mut approvals = Approvals::none();
        approvals.agents.insert("*".into(), Block { allowlist, ..Block::default() });
        approvals
    }

    #[test]
    fn without_a_policy_only_what_a_person_has_approved_runs() {
        let rules = Approvals::none().rules(None, None);
        let uname = program("uname", "/usr/bin/uname");
        assert_eq!(rules.decide(uname, false), Err(Denied::ApprovalRequired));
        assert_eq!(rules.decide(uname, true), Ok(Permit::Approved));
    }

    #[test]
    fn every_combination_of_security_and_ask_has_one_answer() {
        use Denied::{ApprovalRequired as Person, Disabled, NotListed};
        let (hit, miss) = (program("uname", "/usr/bin/uname"), program("id", "/usr/bin/id"));
        // Listed and not, each unapproved and approved.
        for (security, ask, expected) in [
            (Security::Deny, Ask::Off, [Err(Disabled); 4]),
            (Security::Deny, Ask::Always, [Err(Disabled); 4]),
            (Security::Allowlist, Ask::Off, [Ok(()), Ok(()), Err(NotListed), Err(NotListed)]),
            (Security::Allowlist, Ask::OnMiss, [Ok(()), Ok(()), Err(Person), Ok(())]),
            (Security::Allowlist, Ask::Always, [Err(Person), Ok(()), Err(Person), Ok(())]),
            (Security::Full, Ask::Off, [Ok(()); 4]),
            (Security::Full, Ask::OnMiss, [Ok(()); 4]),
            (Security::Full, Ask::Always, [Err(Person), Ok(()), Err(Person), Ok(())]),
        ] {
            let rules = Rules { security, ask, ..listed(&["/usr/bin/uname"]).rules(None, None) };
            let got = [(hit, false), (hit, true), (miss, false), (miss, true)].map(|(it, ok)| allowed(&rules, it, ok));
            assert_eq!(got, expected, "{security:?} {ask:?}");
        }
    }

    #[test]
    fn an_agents_entry_comes_before_all_agents_and_those_before_the_defaults() {
        let approvals = Approvals::parse(
            r#"{"version":1,"socket":{"path":"x"},"defaults":{"security":"deny","ask":"off","askFallback":"deny"},
                "agents":{"*":{"ask":"always","allowlist":[{"pattern":"a","id":"1"}]},
                "main":{"security":"full","allowlist":[{"pattern":"b"}]}}}"#,
        )
        .unwrap();
        let main = approvals.rules(None, None);
        assert_eq!((main.security, main.ask, main.allowlist.len()), (Security::Full, Ask::Always, 2));
        let other = approvals.rules(Some("ops"), None);
        assert_eq!((other.security, other.ask, other.allowlist.len()), (Security::Deny, Ask::Always, 1));
        let flagged = approvals.rules(Some("ops"), Some(Mode::Allowlist));
        assert_eq!((flagged.security, flagged.ask), (Security::Allowlist, Ask::Off));
        assert!(Approvals::parse(r#"{"version":2}"#).is_err() && Approvals::parse("{}").is_err());
        assert!(Approvals::parse(r#"{"version":1,"defaults":{"security":"maybe"}}"#).is_err());
    }

    #[test]
    fn the_list_is_about_files_and_names_found_through_path() {
        let allows = |pattern: &str, name: &str, path: &str| {
            listed(&[pattern]).rules(None, Some(Mode::Allowlist)).decide(program(name, path), false).is_ok()
        };
        for (pattern, name, path) in [
            ("/usr/bin/uname", "uname", "/usr/bin/uname"),
            ("uname", "uname", "/opt/bin/uname"),
            ("git*", "git-lfs", "/usr/bin/git-lfs"),
            ("~/bin/*", "/home/u/bin/tool", "/home/u/bin/tool"),
            ("/opt/**/rg", "/opt/a/b/rg", "/opt/a/b/rg"),
            ("/usr/bin/un?me", "uname", "/usr/bin/uname"),
        ] {
            assert!(allows(pattern, name, path), "{pattern} allows {path}");
        }
        for (pattern, name, path) in [
            ("uname", "./uname", "/tmp/uname"),
            ("uname", "/tmp/uname", "/tmp/uname"),
            ("/opt/*/rg", "/opt/a/b/rg", "/opt/a/b/rg"),
            ("~/bin/*", "/home/u/bin/evil/tool", "/home/u/bin/evil/tool"),
            ("", "", "/usr/bin/uname"),
            ("/usr/bin/uname", "uname", "/usr/bin/uname2"),
            ("/usr/bin/uname", "uname", "uname"),
        ] {
            assert!(!allows(pattern, name, path), "{pattern} does not allow {name} ({path})");
        }
    }

    #[test]
    fn a_shell_is_never_allowed_by_the_list() {
        let rules = listed(&["**", "/bin/*", "sh", "env"]).rules(None, Some(Mode::Allowlist));
        for name in ["sh", "env", "sudo", "busybox"] {
            assert_eq!(rules.decide(program(name, &format!("/bin/{name}")), false), Err(Denied::NotListed), "{name}");
        }
        // Called by another name.
        assert!(rules.decide(program("tool", "/bin/bash"), false).is_err());
        assert!(rules.decide(program("cat", "/bin/cat"), false).is_ok());
        assert!(rules.why_not(program("sh", "/bin/sh")).unwrap().contains("shells"));
        assert_eq!(rules.why_not(program("cat", "/bin/cat")), None);
        assert_eq!(listed(&["cat"]).rules(None, None).why_not(program("sh", "/bin/sh")), None, "nobody listed it");
    }

    #[test]
    fn the_gateways_word_adds_nothing_to_the_list_of_exec_allowlist() {
        let rules = listed(&["/usr/bin/uname"]).rules(None, Some(Mode::Allowlist));
        assert_eq!(rules.decide(program("id", "/usr/bin/id"), true), Err(Denied::NotListed));
        assert!(rules.decide(program("uname", "/usr/bin/uname"), true).is_ok());
    }

    #[test]
    fn a_shell_or_a_wrapper_is_known_by_any_of_its_names() {
        let rules = listed(&["**", "*", "/usr/bin/*"]).rules(None, Some(Mode::Allowlist));
        for name in [
            "rbash",
            "BASH",
            "zsh-5.9",
            "ksh93",
            "mksh",
            "busybox.static",
            "busybox-1.36",
            "bash-static",
            "setpriv",
            "ssh-agent",
            "x86_64",
        ] {
            let path = format!("/usr/bin/{name}");
            assert!(rules.decide(program(name, &path), false).is_err(), "{name}");
            let exact = listed(&[&path, name]).rules(None, Some(Mode::Allowlist));
            assert!(exact.decide(program(name, &path), false).is_err(), "{name}, whoever lists it");
        }
    }

    #[test]
    fn what_can_run_programs_is_allowed_by_its_own_entry_and_by_no_glob() {
        for name in ["python3.12", "perl5.36.0", "find", "gawk", "git", "tar", "vim.basic", "node", "make", "rsync"] {
            let path = format!("/usr/bin/{name}");
            let allows = |pattern: &str| {
                listed(&[pattern]).rules(None, Some(Mode::Allowlist)).decide(program(name, &path), false).is_ok()
            };
            assert!(allows(&path) && allows(name), "{name}");
            let rules = listed(&["**"]).rules(None, None);
            assert!(rules.why_not(program(name, &path)).unwrap().contains("without * and ?"), "{name}");
            for glob in ["**", "/usr/bin/*", "/usr/**", &format!("{}?", &name[..name.len() - 1]), "*"] {
                assert!(!allows(glob), "{glob} does not allow {name}");
            }
        }
    }

    #[test]
    fn a_link_is_what_it_leads_to() {
        let rules = listed(&["**"]).rules(None, Some(Mode::Allowlist));
        let leads_to = |real: &'static str| Program { real: Path::new(real), ..program("tool", "/opt/tool") };
        assert!(rules.decide(leads_to("/bin/bash"), false).is_err());
        assert!(rules.decide(leads_to("/opt/tool-1.2"), false).is_ok());
    }

    #[test]
    fn an_entry_with_a_rule_about_arguments_allows_nothing() {
        let text = r#"{"version":1,"agents":{"*":{"allowlist":[{"pattern":"id","argPattern":"sha256:argv:00"}]}}}"#;
        let rules = Approvals::parse(text).unwrap().rules(None, Some(Mode::Allowlist));
        assert_eq!(rules.decide(program("id", "/usr/bin/id"), false), Err(Denied::NotListed));
    }

    proptest! {
        #[test]
        fn a_glob_without_signs_matches_itself_alone(text in "[a-z/.]{0,12}", other in "[a-z/.]{0,12}") {
            prop_assert_eq!(glob(&text, &other), text == other);
            prop_assert!(glob("**", &text));
            prop_assert_eq!(glob("*", &text), !text.contains('/'));
        }
    }
}
