//! What a node offers, what of it was approved, and what follows when it connects.
//!
//! A [`Surface`] is a set of capabilities, commands and permissions. The node declares one, an operator
//! approved one, and [`reconcile`] says which of the declared may be used now and whether the operator has to
//! look again. Everything here is a rule over values: it knows no connection, no store and no clock.
//!
//! The rules, by case (contract 3.2):
//!
//! | approved | declared | in effect | request |
//! |---|---|---|---|
//! | nothing | anything | nothing | opened |
//! | A | within A, same caps and permissions | the declared | cleared |
//! | A | A and more, or other caps, permissions or kind of device | the intersection | opened |
//!
//! "More" is judged on what the command policy would let the node offer at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::rpc::scope::{Scope, ScopeSet};

/// Bytes that the name of a command, capability or permission may have.
const MAX_NAME_BYTES: usize = 128;

/// Capabilities, commands and permissions. Lists are sorted and without repeats; names are printable ASCII
/// without space, quotes and backslashes, so that they need no escape anywhere, and no reader is fooled by them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Surface {
    /// Kinds of things the node can do: `camera`, `system`, ...
    pub caps: Box<[Arc<str>]>,
    /// Commands it answers: `system.which`, ...
    pub commands: Box<[Arc<str>]>,
    /// What its own operating system lets it do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub permissions: BTreeMap<Arc<str>, bool>,
}

impl Surface {
    /// Takes in what a node declares. White space around names goes; names that no command can have are left out.
    pub(super) fn declared<'a>(
        caps: impl IntoIterator<Item = &'a str>,
        commands: impl IntoIterator<Item = &'a str>,
        permissions: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> Self {
        Self {
            caps: names(caps),
            commands: names(commands),
            permissions: permissions.into_iter().filter_map(|(key, on)| Some((name(key)?.into(), on))).collect(),
        }
    }

    /// The same with only the commands that `keep` keeps.
    #[must_use]
    pub(super) fn with_commands(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self {
            caps: self.caps.clone(),
            commands: self.commands.iter().filter(|command| keep(command)).cloned().collect(),
            permissions: self.permissions.clone(),
        }
    }

    /// Whether `command` is in it.
    pub(super) fn has_command(&self, command: &str) -> bool {
        self.commands.binary_search_by(|known| (**known).cmp(command)).is_ok()
    }

    /// What is in both. A permission that the node reports as off is off; one that is on needs approval.
    #[must_use]
    fn intersection(&self, approved: &Self) -> Self {
        let both = |ours: &[Arc<str>], theirs: &[Arc<str>]| {
            ours.iter().filter(|name| theirs.binary_search(name).is_ok()).cloned().collect()
        };
        let permissions = self.permissions.iter().filter_map(|(key, on)| {
            let on = if *on { *approved.permissions.get(key)? } else { false };
            Some((Arc::clone(key), on))
        });
        Self {
            caps: both(&self.caps, &approved.caps),
            commands: both(&self.commands, &approved.commands),
            permissions: permissions.collect(),
        }
    }

    /// The scopes an operator must hold to approve it: always pairing; with commands also write; with commands
    /// that run programs or reach the host's files, admin.
    pub(super) fn required_scopes(&self) -> ScopeSet {
        let pairing = ScopeSet::EMPTY.with(Scope::Pairing);
        if self.commands.iter().any(|command| needs_admin_approval(command)) {
            pairing.with(Scope::Admin)
        } else if self.commands.is_empty() {
            pairing
        } else {
            pairing.with(Scope::Write)
        }
    }
}

/// Commands that only an operator with `operator.admin` may approve.
fn needs_admin_approval(command: &str) -> bool {
    needs_admin_invoke(command)
        || matches!(
            command,
            "system.run"
                | "system.run.prepare"
                | "system.which"
                | "system.execApprovals.get"
                | "system.execApprovals.set"
        )
}

/// Commands that only an operator with `operator.admin` may call: they reach the host's files, or a browser with
/// its owner's sessions.
pub(super) fn needs_admin_invoke(command: &str) -> bool {
    matches!(command, "browser.proxy" | "browser.proxy.upload.v1" | "fs.listDir" | "terminal.upload")
}

/// What a device is judged by beside its key. An approval holds for these: a node can't get more by saying that
/// it is another kind of device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pins {
    /// `linux`, `macOS 26.1`, ...; may be empty.
    pub platform: Box<str>,
    /// `Linux`, `iPhone`, ...; may be empty.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub device_family: Box<str>,
}

/// What an operator has approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Approval {
    /// The most the node may offer.
    pub surface: Surface,
    /// The kind of device it was approved for.
    pub pins: Pins,
}

/// What a node says when it connects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Declaration<'a> {
    /// What it declares, without the commands that policy would never let it offer.
    pub offered: &'a Surface,
    /// The kind of device it is.
    pub pins: &'a Pins,
}

/// What follows from a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reconciled {
    /// What is declared and approved. What policy lets run is the caller's to take out.
    pub effective: Surface,
    /// What to do about approval.
    pub request: Request,
}

/// What to do about approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The declaration has to be approved: open a request, or keep the one that asks for just this.
    Open,
    /// Nothing needs approval: a request that is open has lapsed.
    Clear,
}

/// Compares what a node declares with what was approved. `same_kind` says whether two devices are of one kind in
/// the eyes of the command policy.
pub(super) fn reconcile(
    approved: Option<&Approval>,
    declared: Declaration<'_>,
    same_kind: impl FnOnce(&Pins, &Pins) -> bool,
) -> Reconciled {
    let Some(approved) = approved else {
        return Reconciled { effective: Surface::default(), request: Request::Open };
    };
    let surface = &approved.surface;
    let more = declared.offered.commands.iter().any(|command| !surface.has_command(command));
    let differs = declared.offered.caps != surface.caps
        || declared.offered.permissions != surface.permissions
        || !same_kind(declared.pins, &approved.pins);
    Reconciled {
        effective: declared.offered.intersection(surface),
        request: if more || differs { Request::Open } else { Request::Clear },
    }
}

fn names<'a>(list: impl IntoIterator<Item = &'a str>) -> Box<[Arc<str>]> {
    let mut names: Vec<Arc<str>> = list.into_iter().filter_map(name).map(Arc::from).collect();
    names.sort_unstable();
    names.dedup();
    names.into()
}

fn name(text: &str) -> Option<&str> {
    let text = text.trim();
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    fits.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surface(caps: &[&str], commands: &[&str], permissions: &[(&str, bool)]) -> Surface {
        Surface::declared(caps.iter().copied(), commands.iter().copied(), permissions.iter().copied())
    }

    fn pins(platform: &str) -> Pins {
        Pins { platform: platform.into(), device_family: "".into() }
    }

    fn decide(approved: Option<&Surface>, offered: &Surface) -> (Vec<Arc<str>>, Request) {
        let approved = approved.map(|surface| Approval { surface: surface.clone(), pins: pins("linux") });
        let declared = Declaration { offered, pins: &pins("linux") };
        let decided = reconcile(approved.as_ref(), declared, Pins::eq);
        (decided.effective.commands.to_vec(), decided.request)
    }

    fn texts(list: &[&str]) -> Vec<Arc<str>> {
        list.iter().copied().map(Arc::from).collect()
    }

    #[test]
    fn without_approval_nothing_is_in_effect() {
        for commands in [&["system.run"] as &[_], &[]] {
            let offered = surface(&["system"], commands, &[("screen", true)]);
            let decided =
                reconcile(None, Declaration { offered: &offered, pins: &pins("linux") }, |_, _| panic!("no approval"));
            assert_eq!(decided, Reconciled { effective: Surface::default(), request: Request::Open });
        }
    }

    #[test]
    fn what_was_approved_is_in_effect_and_clears_the_request() {
        let approved = surface(&["system"], &["a", "b"], &[]);
        assert_eq!(decide(Some(&approved), &approved), (texts(&["a", "b"]), Request::Clear));
        let fewer = surface(&["system"], &["b"], &[]);
        assert_eq!(decide(Some(&approved), &fewer), (texts(&["b"]), Request::Clear));
    }

    #[test]
    fn an_added_command_is_held_back_and_asked_for() {
        let approved = surface(&["system"], &["a"], &[]);
        let more = surface(&["system"], &["a", "x"], &[]);
        assert_eq!(decide(Some(&approved), &more), (texts(&["a"]), Request::Open));
        let other = surface(&["system"], &["x"], &[]);
        assert_eq!(decide(Some(&approved), &other), (texts(&[]), Request::Open));
    }

    #[test]
    fn other_caps_or_permissions_are_asked_for_and_narrowed() {
        let approved = surface(&["camera", "system"], &["a"], &[("mic", false), ("screen", true)]);
        let declared = surface(&["sms", "system"], &["a"], &[("mic", true), ("screen", false), ("sms", true)]);
        let approval = Approval { surface: approved, pins: pins("linux") };
        let decided = reconcile(Some(&approval), Declaration { offered: &declared, pins: &pins("linux") }, Pins::eq);
        assert_eq!(decided.request, Request::Open);
        assert_eq!(decided.effective, surface(&["system"], &["a"], &[("mic", false), ("screen", false)]));
    }

    #[test]
    fn another_kind_of_device_is_asked_for_and_gains_nothing() {
        let approved = Approval { surface: surface(&[], &["a"], &[]), pins: pins("linux") };
        let offered = surface(&[], &["a"], &[]);
        let declared = Declaration { offered: &offered, pins: &pins("macos") };
        let decided = reconcile(Some(&approved), declared, Pins::eq);
        assert_eq!((decided.effective, decided.request), (offered.clone(), Request::Open));
    }

    #[test]
    fn names_are_made_plain() {
        let declared = surface(
            &[" b ", "a", "a", "", "with space", "quo\"te", "back\\slash", "bell\u{7}", "ünï"],
            &["x".repeat(129).as_str(), "x".repeat(128).as_str()],
            &[(" p ", true), ("\n", false)],
        );
        assert_eq!(&*declared.caps, texts(&["a", "b"]));
        assert_eq!(declared.commands.len(), 1);
        assert_eq!(declared.permissions.keys().cloned().collect::<Vec<_>>(), texts(&["p"]));
    }

    #[test]
    fn approval_needs_the_scopes_that_the_commands_deserve() {
        let needs = |commands: &[&str]| format!("{:?}", surface(&[], commands, &[]).required_scopes());
        assert_eq!(needs(&[]), r#"{"operator.pairing"}"#);
        assert_eq!(needs(&["camera.snap"]), r#"{"operator.pairing", "operator.write"}"#);
        for command in ["system.run", "system.which", "browser.proxy", "fs.listDir", "system.execApprovals.set"] {
            assert_eq!(needs(&["camera.snap", command]), r#"{"operator.admin", "operator.pairing"}"#, "{command}");
        }
    }
}
