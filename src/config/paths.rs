//! Where the configuration file and the state directory are (contract 1.5).
//!
//! Pure: the environment, the profile and two directories come in, paths go out; nothing is looked up on
//! disk. Start at [`Paths::resolve`].

use std::path::{Path, PathBuf};

use super::Environment;

/// Name of the configuration file inside the state directory.
pub const CONFIG_FILE_NAME: &str = "openclaw.json";

/// Which set of isolated defaults is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// `~/.openclaw`.
    #[default]
    Default,
    /// `--dev`: `~/.openclaw-dev`, port 19001 unless another is said.
    Dev,
    /// `--profile NAME`: `~/.openclaw-NAME`. It has no port of its own: every OpenClaw client of the profile looks for the
    /// gateway on 18789 unless the profile's configuration says another, so a made-up one would be found by none of them.
    Named(String),
}

impl Profile {
    /// The profile of that name: letters, digits, `_` and `-`, at most 64 of them. `default` is the
    /// profile that is in use without `--profile`.
    ///
    /// # Errors
    /// [`InvalidProfile`] for any other name: it would become part of a path.
    pub fn parse(name: &str) -> Result<Self, InvalidProfile> {
        let valid =
            (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        match name {
            _ if !valid => Err(InvalidProfile(name.to_owned())),
            _ if name.eq_ignore_ascii_case("default") => Ok(Self::Default),
            _ => Ok(Self::Named(name.to_owned())),
        }
    }

    /// The port when no flag, variable or key says one.
    pub const fn default_port(&self) -> u16 {
        match self {
            Self::Dev => 19001,
            Self::Default | Self::Named(_) => 18789,
        }
    }

    /// The flags that choose this profile.
    pub fn flags(&self) -> Vec<String> {
        match self {
            Self::Default => Vec::new(),
            Self::Dev => vec!["--dev".to_owned()],
            Self::Named(name) => vec!["--profile".to_owned(), name.clone()],
        }
    }

    fn directory_name(&self) -> String {
        match self {
            Self::Default => ".openclaw".to_owned(),
            Self::Dev => ".openclaw-dev".to_owned(),
            Self::Named(name) => format!(".openclaw-{name}"),
        }
    }
}

/// A profile name that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be a profile: use 1 to 64 letters, digits, \"_\" and \"-\"")]
pub struct InvalidProfile(String);

/// Where things are, as absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The JSON5 file. It need not exist.
    pub config_file: PathBuf,
    /// The folder of the database, the lock and the keys. It need not exist.
    pub state_dir: PathBuf,
}

/// No home directory is known, and one is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no home directory is known: set HOME, or OPENCLAW_STATE_DIR to the folder to use")]
pub struct NoHome;

impl Paths {
    /// Decides both paths.
    ///
    /// The home directory is `OPENCLAW_HOME`, else `HOME`, else `USERPROFILE`, else `account_home`. The state
    /// directory is `OPENCLAW_STATE_DIR`, else the profile's folder in the home directory; the file is
    /// `OPENCLAW_CONFIG_PATH`, else `openclaw.json` in the state directory. A variable wins over the
    /// profile, `~` at the beginning of one stands for the home directory, and relative paths are relative
    /// to `working_dir`.
    ///
    /// # Errors
    /// [`NoHome`] when a path depends on the home directory and there is none.
    pub fn resolve(
        environment: &Environment,
        profile: &Profile,
        account_home: Option<&Path>,
        working_dir: &Path,
    ) -> Result<Self, NoHome> {
        let account_home = ["HOME", "USERPROFILE"]
            .iter()
            .find_map(|name| home_variable(environment, name))
            .map(PathBuf::from)
            .or_else(|| account_home.map(Path::to_path_buf));
        let home = match home_variable(environment, "OPENCLAW_HOME") {
            Some(text) => Some(absolute(text, account_home.as_deref(), working_dir)?),
            None => account_home,
        };
        let state_dir = match environment.get("OPENCLAW_STATE_DIR") {
            Some(text) => absolute(text, home.as_deref(), working_dir)?,
            None => working_dir.join(home.as_deref().ok_or(NoHome)?).join(profile.directory_name()),
        };
        let config_file = match environment.get("OPENCLAW_CONFIG_PATH") {
            Some(text) => absolute(text, home.as_deref(), working_dir)?,
            None => state_dir.join(CONFIG_FILE_NAME),
        };
        Ok(Self { config_file, state_dir })
    }
}

/// The value of a variable that names a home directory. Shells and wrappers that stringify a missing value
/// leave `undefined` or `null` there, which no one means as a folder.
fn home_variable<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).filter(|text| !matches!(*text, "undefined" | "null"))
}

fn absolute(text: &str, home: Option<&Path>, working_dir: &Path) -> Result<PathBuf, NoHome> {
    match text.strip_prefix('~') {
        Some("") => Ok(working_dir.join(home.ok_or(NoHome)?)),
        Some(rest) if rest.starts_with('/') => Ok(working_dir.join(home.ok_or(NoHome)?).join(&rest[1..])),
        _ => Ok(working_dir.join(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(pairs: &[(&str, &str)], profile: &Profile) -> Result<(String, String), NoHome> {
        let environment = Environment::new(pairs.iter().copied());
        let paths = Paths::resolve(&environment, profile, None, Path::new("/work"))?;
        Ok((paths.config_file.display().to_string(), paths.state_dir.display().to_string()))
    }

    fn pair(config: &str, state: &str) -> Result<(String, String), NoHome> {
        Ok((config.to_owned(), state.to_owned()))
    }

    #[test]
    fn the_file_lies_in_the_profile_folder_of_the_home_directory() {
        let home = [("HOME", "/home/u")];
        let named = Profile::parse("Rescue_1-2").unwrap();
        assert_eq!(resolve(&home, &Profile::Default), pair("/home/u/.openclaw/openclaw.json", "/home/u/.openclaw"));
        assert_eq!(
            resolve(&home, &named),
            pair("/home/u/.openclaw-Rescue_1-2/openclaw.json", "/home/u/.openclaw-Rescue_1-2")
        );
        assert_eq!(resolve(&home, &Profile::Dev), pair("/home/u/.openclaw-dev/openclaw.json", "/home/u/.openclaw-dev"));
    }

    #[test]
    fn variables_win_over_the_profile() {
        let named = Profile::parse("x").unwrap();
        let home = ("HOME", "/home/u");
        assert_eq!(resolve(&[home, ("OPENCLAW_STATE_DIR", "/s")], &named), pair("/s/openclaw.json", "/s"));
        assert_eq!(
            resolve(&[home, ("OPENCLAW_CONFIG_PATH", "/c.json")], &named),
            pair("/c.json", "/home/u/.openclaw-x")
        );
        assert_eq!(
            resolve(&[home, ("OPENCLAW_HOME", "/srv")], &named),
            pair("/srv/.openclaw-x/openclaw.json", "/srv/.openclaw-x")
        );
    }

    #[test]
    fn tilde_and_relative_paths_become_absolute() {
        let home = ("HOME", "/home/u");
        assert_eq!(
            resolve(&[home, ("OPENCLAW_STATE_DIR", "~/q"), ("OPENCLAW_CONFIG_PATH", "rel.json")], &Profile::Default),
            pair("/work/rel.json", "/home/u/q")
        );
        assert_eq!(
            resolve(&[home, ("OPENCLAW_HOME", "~/svc")], &Profile::Default),
            pair("/home/u/svc/.openclaw/openclaw.json", "/home/u/svc/.openclaw")
        );
        assert_eq!(
            resolve(&[("OPENCLAW_STATE_DIR", "~other/x")], &Profile::Default),
            pair("/work/~other/x/openclaw.json", "/work/~other/x")
        );
    }

    #[test]
    fn blank_and_stringified_homes_are_unset() {
        let pairs = [("OPENCLAW_HOME", "undefined"), ("HOME", "null"), ("USERPROFILE", "/u")];
        assert_eq!(resolve(&pairs, &Profile::Default), pair("/u/.openclaw/openclaw.json", "/u/.openclaw"));
        assert_eq!(resolve(&[("HOME", " ")], &Profile::Default), Err(NoHome));
        assert_eq!(resolve(&[("OPENCLAW_STATE_DIR", "/s")], &Profile::Default), pair("/s/openclaw.json", "/s"));
    }

    #[test]
    fn refuses_names_that_would_leave_the_folder() {
        for name in ["", "a/b", "..", "a b", "ä", &"x".repeat(65)] {
            assert!(Profile::parse(name).is_err(), "{name:?}");
        }
        assert_eq!(Profile::parse("default"), Ok(Profile::Default));
    }
}
