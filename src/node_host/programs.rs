//! What a program is by its names: whether it runs other programs, and whether it is given files that say what runs.
//! Pure: words in, yes or no out.
//!
//! A program has up to three names: the word it was asked by, the file that was found, and the file that this one leads to.
//! Any of them may give it away, in capitals (`BASH`), with a version (`zsh-5.9`, `python3.12`) or with a word about how
//! it was built (`busybox.static`, `vim.tiny`). The lists can never be complete: they keep a wide entry of a list from
//! meaning everything, and do not make it safe.

use std::path::Path;

/// What a program can do beyond what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing that is known here.
    Plain,
    /// It runs other programs, or writes any file, when its arguments say so.
    Versatile,
    /// Its arguments are programs: to allow it is to allow everything.
    RunsOthers,
}

#[rustfmt::skip]
const SHELLS: &[&str] = &[
    "ash", "bash", "bosh", "busybox", "csh", "dash", "elvish", "fish", "ksh", "lksh", "loksh", "mksh", "nu", "oksh", "osh",
    "pdksh", "posh", "powershell", "pwsh", "rbash", "rc", "rksh", "rzsh", "sash", "sh", "tcsh", "toybox", "xonsh", "yash",
    "ysh", "zsh",
];

/// What runs a program that it is given, under other conditions.
#[rustfmt::skip]
const WRAPPERS: &[&str] = &[
    "bwrap", "capsh", "catchsegv", "choom", "chpst", "chroot", "chrt", "coreutils", "cpulimit", "dbus-launch",
    "dbus-run-session", "doas", "dumb-init", "eatmydata", "entr", "env", "envdir", "fakechroot", "faketime", "fakeroot",
    "firejail", "flock", "gosu", "i386", "ionice", "linux32", "linux64", "ltrace", "newgrp", "nice", "nohup", "nsenter",
    "numactl", "parallel", "pkexec", "prlimit", "proot", "rlwrap", "rsh", "run-parts", "runcon", "runuser", "screen",
    "script", "sem", "setarch", "setlock", "setpriv", "setsid", "setuidgid", "sg", "softlimit", "ssh", "ssh-agent",
    "sshpass", "start-stop-daemon", "stdbuf", "strace", "su", "su-exec", "sudo", "sudoedit", "systemd-cat",
    "systemd-inhibit", "systemd-nspawn", "systemd-run", "taskset", "time", "timeout", "tini", "tmux", "torsocks", "trickle",
    "unbuffer", "unshare", "valgrind", "watch", "x86_64", "xargs", "xvfb-run",
];

/// What is given a file, or a text, that says what to do.
#[rustfmt::skip]
const INTERPRETERS: &[&str] = &[
    "ant", "awk", "bc", "bmake", "bun", "clisp", "cmake", "dart", "dc", "deno", "elixir", "emacs", "erl", "escript",
    "expect", "gawk", "gdb", "ghci", "gmake", "gradle", "groovy", "guile", "iex", "java", "jiti", "jruby", "jshell",
    "julia", "just", "kotlin", "lldb", "lua", "luajit", "m4", "make", "mawk", "mvn", "nawk", "ninja", "node", "nodejs",
    "ocaml", "octave", "original-awk", "osascript", "perl", "php", "pypy", "python", "r", "racket", "rake", "rscript",
    "ruby", "runghc", "runhaskell", "sbcl", "scala", "scheme", "sed", "sqlite", "swift", "tclsh", "ts-node", "tsx",
    "wish",
];

/// What can be told to run something, or to write where it likes.
#[rustfmt::skip]
const HELPERS: &[&str] = &[
    "apt", "apt-get", "at", "batch", "bsdtar", "bundle", "busctl", "cargo", "chmod", "chown", "cp", "cpio", "crontab",
    "curl", "dbus-send", "dd", "dnf", "docker", "dpkg", "ed", "ex", "fd", "fdfind", "find", "gem", "gio", "git", "go",
    "gpg", "gtk-launch", "hg", "info", "install", "ip", "journalctl", "kubectl", "less", "link", "ln", "loginctl", "lxc",
    "mail", "man", "more", "most", "mount", "mutt", "mv", "mysql", "nano", "nc", "ncat", "nerdctl", "nmap", "npm", "npx",
    "nvim", "open", "openssl", "pager", "patch", "pico", "pip", "pipx", "pnpm", "podman", "psql", "rm", "rpm", "rsync",
    "rustc", "scp", "sftp", "snap", "socat", "sort", "split", "ssh-add", "ssh-keygen", "svn", "systemctl", "tar",
    "tcpdump", "tee", "touch", "truncate", "unzip", "uv", "uvx", "vi", "view", "vim", "vimdiff", "wget", "xdg-open",
    "yarn", "yum", "zip",
];

/// One file under many names, which does what the name says that it was asked by.
const MANY_NAMED: &[&str] = &["busybox", "coreutils", "toybox"];

/// Words behind a name that say how it was built.
const BUILDS: &[&str] = &[
    "-static",
    ".athena",
    ".basic",
    ".debian",
    ".distrib",
    ".exe",
    ".gtk",
    ".nox",
    ".original",
    ".real",
    ".static",
    ".tiny",
];

impl Kind {
    /// The kind of a program that was asked for as `asked`, is found at `path`, and leads to `real`.
    pub(super) fn of(asked: &str, path: &Path, real: &Path) -> Self {
        let (path, real) = (path.to_string_lossy(), real.to_string_lossy());
        let named = Self::named(asked).max(Self::named(&path));
        // `ls` of BusyBox is `ls`, not all of BusyBox.
        if is_in(&real, MANY_NAMED) { named } else { named.max(Self::named(&real)) }
    }

    fn named(program: &str) -> Self {
        if is_shell(program) || is_wrapper(program) {
            Self::RunsOthers
        } else if is_in(program, INTERPRETERS) || is_in(program, HELPERS) {
            Self::Versatile
        } else {
            Self::Plain
        }
    }
}

/// Whether it is a shell, whatever it is called.
pub(super) fn is_shell(program: &str) -> bool {
    // BusyBox itself goes by the beginning.
    let name = name(program);
    is_in(program, SHELLS) || ["busybox", "toybox"].iter().any(|shell| name.starts_with(shell))
}

/// Whether it runs a program that it is given.
pub(super) fn is_wrapper(program: &str) -> bool {
    let name = name(program);
    // The loader runs what it is given, too.
    is_in(program, WRAPPERS) || ["ld-linux", "ld-musl", "ld.so"].iter().any(|loader| name.starts_with(loader))
}

/// Whether it is given a file that says what to do.
pub(super) fn is_interpreter(program: &str) -> bool {
    is_shell(program) || is_in(program, INTERPRETERS)
}

fn is_in(program: &str, names: &[&str]) -> bool {
    let name = name(program);
    names.contains(&name.as_str()) || names.contains(&stem(&name))
}

fn name(program: &str) -> String {
    program.rsplit('/').next().unwrap_or(program).to_ascii_lowercase()
}

/// A name without its version and its build.
fn stem(name: &str) -> &str {
    let bytes = name.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let starts = |at: &usize| is_digit(*at) || matches!(bytes[*at], b'-' | b'.' | b'_') && is_digit(at + 1);
    let end = (0..bytes.len()).find(starts).unwrap_or(bytes.len());
    // It is cut at an ASCII character.
    let stem = name.get(..end).unwrap_or(name);
    BUILDS.iter().find_map(|build| stem.strip_suffix(build)).unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_with_version_build_and_capitals() {
        for (program, kind) in [
            ("/usr/bin/zsh-5.9", Kind::RunsOthers),
            ("KSH93", Kind::RunsOthers),
            ("busybox.static", Kind::RunsOthers),
            ("busyboxes", Kind::RunsOthers),
            ("ld-linux-x86-64.so.2", Kind::RunsOthers),
            ("x86_64", Kind::RunsOthers),
            ("python3.12", Kind::Versatile),
            ("perl5.36-x86_64-linux-gnu", Kind::Versatile),
            ("vim.gtk3", Kind::Versatile),
            ("sqlite3", Kind::Versatile),
            ("uname", Kind::Plain),
            ("watch-builds", Kind::Plain),
            ("env.sh", Kind::Plain),
            ("7z", Kind::Plain),
            ("ü5", Kind::Plain),
            ("", Kind::Plain),
        ] {
            assert_eq!(Kind::named(program), kind, "{program}");
        }
    }

    #[test]
    fn a_program_is_the_worst_of_its_names() {
        let kind = |asked: &str, path: &str, real: &str| Kind::of(asked, Path::new(path), Path::new(real));
        assert_eq!(kind("tool", "/opt/tool", "/bin/dash"), Kind::RunsOthers);
        assert_eq!(kind("sh", "/opt/tool", "/opt/tool"), Kind::RunsOthers);
        assert_eq!(kind("ls", "/bin/ls", "/bin/busybox"), Kind::Plain);
        assert_eq!(kind("sh", "/bin/sh", "/bin/busybox"), Kind::RunsOthers);
        assert_eq!(kind("busybox", "/bin/busybox", "/bin/busybox"), Kind::RunsOthers);
    }
}
