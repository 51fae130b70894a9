//! Which commands a node may offer, and which of them may run (contract 3.2).
//!
//! A command runs when the node declares it, its surface was approved, and this policy lets it. The policy is
//! a list made of the platform's defaults, what was approved of a desktop host, and what the operator allows;
//! what the operator denies is taken out last and always wins. Names are exact: no globs, no case folding.
//!
//! The platform decides much, so a node's word for it is read strictly: exact names, plain ASCII (S-76).
//! Everything else is [`Platform::Unknown`], and [`Platform::why_unknown`] says so to people. That the word does
//! not change after approval is the business of `auth`.

use std::fmt;

/// Commands of desktop hosts that reach programs, browser and screen: offered when the node is paired, run only
/// when its surface was approved with them.
const DESKTOP_HOST: &[&str] = &["browser.proxy", "screen.snapshot", "system.run", "system.run.prepare", "system.which"];

/// Commands of a node that offers to talk.
const TALK: &[&str] = &["talk.ptt.cancel", "talk.ptt.once", "talk.ptt.start", "talk.ptt.stop"];

/// What a node runs on, as far as policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// iPhone and iPad.
    Ios,
    /// Android.
    Android,
    /// macOS.
    MacOs,
    /// Windows.
    Windows,
    /// Linux.
    Linux,
    /// Nothing we know, or a platform and a family that don't go together.
    Unknown,
}

impl Platform {
    /// Reads `client.platform` and `client.deviceFamily`. White space around them and the case of ASCII letters
    /// don't count.
    ///
    /// `ios` and `android` may leave the family out; desktops must name it. Apps may add the version
    /// (`macOS 26.1`, `iPadOS 18.1`, `Android 15 (SDK 35)`), and then must name the family. Without a platform the
    /// family alone decides.
    pub fn of(platform: &str, device_family: &str) -> Self {
        let (platform, family) = (plain(platform), plain(device_family));
        let (Some(platform), Some(family)) = (platform, family) else { return Self::Unknown };
        let (name, version) = platform.split_once(' ').unwrap_or((&platform, ""));
        let of_family = Self::of_family(&family);
        let of_name = match name {
            "" => return of_family.unwrap_or(Self::Unknown),
            "ios" => Self::Ios,
            "ipados" if !version.is_empty() => Self::Ios,
            "android" => Self::Android,
            "macos" => Self::MacOs,
            "windows" => Self::Windows,
            "linux" => Self::Linux,
            _ => return Self::Unknown,
        };
        let fits = match version {
            "" => of_family == Some(of_name) || (family.is_empty() && matches!(of_name, Self::Ios | Self::Android)),
            version => of_family == Some(of_name) && of_name.is_version(version),
        };
        if fits { of_name } else { Self::Unknown }
    }

    fn of_family(family: &str) -> Option<Self> {
        match family {
            "iphone" | "ipad" | "ios" => Some(Self::Ios),
            "android" => Some(Self::Android),
            "mac" => Some(Self::MacOs),
            "windows" => Some(Self::Windows),
            "linux" => Some(Self::Linux),
            _ => None,
        }
    }

    /// Whether `text` is how this platform's app writes its version.
    fn is_version(self, text: &str) -> bool {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match self {
            Self::Ios | Self::MacOs => text.split('.').count() <= 3 && text.split('.').all(number),
            Self::Android => match text.split_once(" (sdk ") {
                Some((version, sdk)) => number(version) && sdk.strip_suffix(')').is_some_and(number),
                None => number(text),
            },
            Self::Windows | Self::Linux | Self::Unknown => false,
        }
    }

    /// Why a node's platform is unknown to policy, for people; `None` where it is known.
    pub fn why_unknown(platform: &str, device_family: &str) -> Option<String> {
        (Self::of(platform, device_family) == Self::Unknown).then(|| {
            format!(
                "platform {platform:?} with device family {device_family:?} is none that the command policy knows, so only \
                 a few commands are allowed; it knows ios (iPhone, iPad), android (Android), macos (Mac), windows \
                 (Windows) and linux (Linux); other commands can be listed in gateway.nodes.commands.allow"
            )
        })
    }

    const fn is_desktop(self) -> bool {
        matches!(self, Self::MacOs | Self::Windows | Self::Linux)
    }

    /// Everything that a node of this platform may offer without a word of the operator.
    const fn defaults(self) -> &'static [&'static str] {
        match self {
            Self::Ios => &[
                "calendar.events",
                "camera.list",
                "contacts.search",
                "device.info",
                "device.status",
                "location.get",
                "motion.activity",
                "motion.pedometer",
                "photos.latest",
                "reminders.list",
                "system.notify",
            ],
            Self::Android => &[
                "calendar.events",
                "callLog.search",
                "camera.list",
                "contacts.search",
                "device.apps",
                "device.health",
                "device.info",
                "device.permissions",
                "device.status",
                "location.get",
                "motion.activity",
                "motion.pedometer",
                "notifications.actions",
                "notifications.list",
                "photos.latest",
                "reminders.list",
                "system.notify",
            ],
            Self::MacOs => &[
                "browser.proxy",
                "calendar.events",
                "camera.list",
                "contacts.search",
                "device.info",
                "device.status",
                "location.get",
                "motion.activity",
                "motion.pedometer",
                "photos.latest",
                "reminders.list",
                "screen.snapshot",
                "system.notify",
                "system.run",
                "system.run.prepare",
                "system.which",
            ],
            Self::Windows => &[
                "browser.proxy",
                "camera.list",
                "device.info",
                "device.status",
                "location.get",
                "screen.snapshot",
                "system.notify",
                "system.run",
                "system.run.prepare",
                "system.which",
            ],
            Self::Linux => &["browser.proxy", "system.notify", "system.run", "system.run.prepare", "system.which"],
            Self::Unknown => &["camera.list", "location.get", "system.notify"],
        }
    }
}

/// Trimmed, ASCII letters lowered; `None` when there is anything but ASCII in it.
fn plain(text: &str) -> Option<String> {
    let text = text.trim();
    text.is_ascii().then(|| text.to_ascii_lowercase())
}

/// What policy needs to know of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What it runs on.
    pub platform: Platform,
    /// Whether it offers to talk: by the capability `talk` or any command `talk.*`, in any case.
    pub talks: bool,
}

impl Kind {
    /// A node of this platform with what it declares.
    pub fn new<'a>(
        platform: Platform,
        caps: impl IntoIterator<Item = &'a str>,
        commands: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self { platform, talks: Self::offers_talk(caps, commands) }
    }

    fn offers_talk<'a>(caps: impl IntoIterator<Item = &'a str>, commands: impl IntoIterator<Item = &'a str>) -> bool {
        let talks = |command: &str| command.trim().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("talk."));
        caps.into_iter().any(|cap| cap.trim().eq_ignore_ascii_case("talk")) || commands.into_iter().any(talks)
    }
}

/// What the operator says about commands: `gateway.nodes.commands`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandPolicy {
    allow: Vec<Box<str>>,
    deny: Vec<Box<str>>,
}

/// Why a command may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAllowed {
    /// There is no command.
    Blank,
    /// The policy does not let it.
    NotAllowlisted,
    /// The node does not offer it.
    NotDeclared,
    /// The node offers nothing.
    NothingDeclared,
}

impl NotAllowed {
    /// The reason on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blank => "command required",
            Self::NotAllowlisted => "command not allowlisted",
            Self::NotDeclared => "command not declared by node",
            Self::NothingDeclared => "node did not declare commands",
        }
    }
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CommandPolicy {
    /// Takes the operator's lists: exact names; white space around them does not count.
    pub fn new<'a>(allow: impl IntoIterator<Item = &'a str>, deny: impl IntoIterator<Item = &'a str>) -> Self {
        let names = |list: &mut dyn Iterator<Item = &'a str>| list.map(|name| name.trim().into()).collect();
        Self { allow: names(&mut allow.into_iter()), deny: names(&mut deny.into_iter()) }
    }

    /// Whether a node may offer `command` when it asks for approval.
    pub fn may_offer(&self, kind: Kind, command: &str) -> bool {
        self.lets(kind, command, kind.platform.defaults().contains(&command))
    }

    /// Whether `command` may run, if it is declared and approved at all. `approved` says that the approved surface
    /// has it, which is what lets the commands of desktop hosts run.
    pub fn may_run(&self, kind: Kind, command: &str, approved: bool) -> bool {
        let by_platform = match kind.platform.is_desktop() && DESKTOP_HOST.contains(&command) {
            true => approved,
            false => kind.platform.defaults().contains(&command),
        };
        self.lets(kind, command, by_platform)
    }

    fn lets(&self, kind: Kind, command: &str, by_platform: bool) -> bool {
        let named = |list: &[Box<str>]| list.iter().any(|name| **name == *command);
        (by_platform || (kind.talks && TALK.contains(&command)) || named(&self.allow)) && !named(&self.deny)
    }

    /// Whether `command` may run on a node that declares `declared`.
    ///
    /// # Errors
    /// The first of: no command, not let by policy, not declared.
    pub fn check<'a>(
        &self,
        kind: Kind,
        command: &str,
        declared: impl IntoIterator<Item = &'a str>,
        approved: impl Fn(&str) -> bool,
    ) -> Result<(), NotAllowed> {
        let command = command.trim();
        if command.is_empty() {
            return Err(NotAllowed::Blank);
        }
        if !self.may_run(kind, command, approved(command)) {
            return Err(NotAllowed::NotAllowlisted);
        }
        let mut declared = declared.into_iter().peekable();
        if declared.peek().is_none() {
            return Err(NotAllowed::NothingDeclared);
        }
        if declared.any(|name| name == command) { Ok(()) } else { Err(NotAllowed::NotDeclared) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s_76_a_platform_is_read_strictly() {
        use Platform::{Android, Ios, Linux, MacOs, Unknown, Windows};
        for (platform, family, expected) in [
            ("ios", "", Ios),
            ("iOS", "iPhone", Ios),
            ("iPadOS 18.1", "iPad", Ios),
            ("ios 17.2.1", "iphone", Ios),
            ("android", "", Android),
            ("Android 15 (SDK 35)", "Android", Android),
            ("macos", "Mac", MacOs),
            ("macOS 26.1", "Mac", MacOs),
            ("windows", "Windows", Windows),
            (" Linux ", "linux", Linux),
            ("", "iphone", Ios),
            ("", "Linux", Linux),
            ("", "my linux box", Unknown),
            ("", "", Unknown),
            ("linux", "", Unknown),
            ("linux", "iphone", Unknown),
            ("darwin", "Mac", Unknown),
            ("win32", "Windows", Unknown),
            ("ipados", "iPad", Unknown),
            ("ios 17", "", Unknown),
            ("ios 1.2.3.4", "iphone", Unknown),
            ("linux 6.1", "linux", Unknown),
            ("lınux", "linux", Unknown),
            ("ｌｉｎｕｘ", "linux", Unknown),
            ("linux", "lïnux", Unknown),
        ] {
            assert_eq!(Platform::of(platform, family), expected, "{platform:?} {family:?}");
            assert_eq!(Platform::why_unknown(platform, family).is_some(), expected == Unknown);
        }
    }

    fn linux() -> Kind {
        Kind::new(Platform::Linux, [], [])
    }

    #[test]
    fn host_commands_run_only_when_approved() {
        let policy = CommandPolicy::default();
        for command in ["system.run", "system.which", "browser.proxy"] {
            assert!(policy.may_offer(linux(), command));
            assert!(policy.may_run(linux(), command, true));
            assert!(!policy.may_run(linux(), command, false));
            let phone = Kind::new(Platform::Ios, [], []);
            assert!(!policy.may_offer(phone, command) && !policy.may_run(phone, command, true));
        }
        assert!(!policy.may_offer(linux(), "system.execApprovals.set"));
    }

    #[test]
    fn deny_always_wins() {
        let policy = CommandPolicy::new(["camera.snap", "system.notify"], [" camera.snap ", "system.notify"]);
        for command in ["camera.snap", "system.notify"] {
            assert!(!policy.may_offer(linux(), command) && !policy.may_run(linux(), command, true));
        }
    }

    #[test]
    fn dangerous_commands_need_the_operators_word() {
        for command in [
            "camera.snap",
            "camera.clip",
            "screen.record",
            "contacts.add",
            "calendar.add",
            "reminders.add",
            "sms.send",
            "sms.search",
        ] {
            for platform in [
                Platform::Ios,
                Platform::Android,
                Platform::MacOs,
                Platform::Windows,
                Platform::Linux,
                Platform::Unknown,
            ] {
                let kind = Kind::new(platform, [], []);
                assert!(!CommandPolicy::default().may_offer(kind, command), "{platform:?} {command}");
                assert!(CommandPolicy::new([command], []).may_run(kind, command, false), "{platform:?} {command}");
            }
        }
    }

    #[test]
    fn a_command_that_is_not_declared_does_not_run() {
        let policy = CommandPolicy::default();
        let check =
            |declared: &[&'static str]| policy.check(linux(), "system.notify", declared.iter().copied(), |_| true);
        assert_eq!(check(&["system.notify"]), Ok(()));
        assert_eq!(check(&["system.run"]), Err(NotAllowed::NotDeclared));
        assert_eq!(check(&[]), Err(NotAllowed::NothingDeclared));
    }
}
