//! Makes what a package of clawgate carries, from its own grammar, and the package:
//!
//! ```console
//! $ cargo xtask files target/dist     # man/*.1 and completions/
//! $ cargo xtask dist                  # target/dist/clawgate-VERSION-ARCH-OS.tar.gz, and a .deb where dpkg-deb is
//! ```

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap_complete::Shell;

/// Where everything goes.
const FOLDER: &str = "target/dist";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["files"] => write_files(Path::new(FOLDER)),
        ["files", folder] => write_files(Path::new(folder)),
        ["dist"] => build().and_then(|()| dist(Path::new(FOLDER))),
        // Packs what `cargo build --release` has left.
        ["dist", "--no-build"] => dist(Path::new(FOLDER)),
        _ => Err(io::Error::other("usage: cargo xtask files [FOLDER] | cargo xtask dist [--no-build]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&mut io::stderr(), &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn say(out: &mut impl io::Write, text: &str) {
    // Nobody reads: then nobody is told.
    let _ = writeln!(out, "{text}");
}

/// Man pages and completion scripts.
fn write_files(folder: &Path) -> io::Result<()> {
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(clawgate::cli::command(), &man)?;
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
        clap_complete::generate_to(shell, &mut clawgate::cli::command(), "clawgate", &completions)?;
    }
    Ok(())
}

fn build() -> io::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).args(["build", "--release", "--locked", "--package", "clawgate"]))
}

/// Packs the program with its files.
fn dist(folder: &Path) -> io::Result<()> {
    // Pages of commands that are no more must not be packed, nor what a run that failed has left.
    let name = format!("clawgate-{}-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS);
    for stale in ["man", "completions", &name] {
        match fs::remove_dir_all(folder.join(stale)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    write_files(folder)?;
    let root = folder.join(&name);
    lay_out(folder, Path::new("."), &root)?;
    let archive = folder.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "-czf"]).arg(&archive).arg("-C").arg(folder).arg(&name);
    run(&mut tar)?;
    fs::remove_dir_all(&root)?;
    say(&mut io::stdout(), &archive.display().to_string());
    let has_dpkg = Command::new("dpkg-deb").arg("--version").output().is_ok_and(|said| said.status.success());
    if !has_dpkg {
        say(&mut io::stderr(), "no .deb: there is no dpkg-deb here");
        return Ok(());
    }
    debian(folder, &root)
}

/// The same files as a package for Debian and what descends from it.
fn debian(folder: &Path, root: &Path) -> io::Result<()> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    lay_out(folder, Path::new("."), &root.join("usr"))?;
    // Debian's zsh looks elsewhere.
    fs::rename(root.join("usr/share/zsh/site-functions"), root.join("usr/share/zsh/vendor-completions"))?;
    let version = env!("CARGO_PKG_VERSION");
    fs::create_dir_all(root.join("DEBIAN"))?;
    let control = format!(
        "Package: clawgate\nVersion: {version}\nArchitecture: {arch}\nSection: net\nPriority: optional\n\
         Maintainer: the clawgate authors <clawgate@localhost>\nDepends: libc6, libgcc-s1\nRecommends: openssh-client\n\
         Description: Gateway of an OpenClaw installation\n \
         The gateway, its command line and its node host, in one program.\n"
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    let package = folder.join(format!("clawgate_{version}_{arch}.deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(root).arg(&package))?;
    fs::remove_dir_all(root)
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.status().map_err(|error| {
        io::Error::other(format!("{} does not start: {error}", command.get_program().to_string_lossy()))
    })?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    Err(io::Error::other(format!("{} failed: {status}", words.join(" "))))
}

/// Puts everything under `root` where it goes under a prefix such as `/usr/local`.
fn lay_out(files: &Path, sources: &Path, root: &Path) -> io::Result<()> {
    let put = |from: PathBuf, to: &str| -> io::Result<()> {
        let to = root.join(to);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(&from, &to).map(drop).map_err(|error| io::Error::other(format!("{}: {error}", from.display())))
    };
    put(sources.join("target/release/clawgate"), "bin/clawgate")?;
    for page in fs::read_dir(files.join("man"))? {
        let page = page?;
        put(page.path(), &format!("share/man/man1/{}", page.file_name().to_string_lossy()))?;
    }
    for (script, place) in COMPLETIONS {
        put(files.join("completions").join(script), place)?;
    }
    put(sources.join("packaging/clawgate.service"), "lib/systemd/user/clawgate.service")?;
    for document in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        put(sources.join(document), &format!("share/doc/clawgate/{document}"))?;
    }
    Ok(())
}

/// Completion scripts, and where shells look for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("clawgate.bash", "share/bash-completion/completions/clawgate"),
    ("_clawgate", "share/zsh/site-functions/_clawgate"),
    ("clawgate.fish", "share/fish/vendor_completions.d/clawgate.fish"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let folder = std::env::temp_dir().join(format!("clawgate-xtask-{}", std::process::id()));
        write_files(&folder).unwrap();
        let page = fs::read_to_string(folder.join("man/clawgate-tunnel-up.1")).unwrap();
        assert!(page.contains(".TH") && page.contains("sshTarget"), "{page}");
        assert!(folder.join("man/clawgate.1").exists() && folder.join("man/clawgate-gateway-explain.1").exists());
        assert_eq!(fs::read_dir(folder.join("completions")).unwrap().count(), 4);
        assert!(COMPLETIONS.iter().all(|(script, _)| folder.join("completions").join(script).exists()));
        fs::remove_dir_all(&folder).unwrap();
    }
}
