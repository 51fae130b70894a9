//! Makes the files that a package of clawgate carries beside the program, from its own grammar:
//!
//! ```console
//! $ cargo run -p xtask -- target/dist
//! ```
//!
//! `man/*.1`, one page a command, and `completions/` for bash, zsh, fish and PowerShell.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap_complete::Shell;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let folder = args.next().unwrap_or_else(|| OsString::from("target/dist"));
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ =
                io::Write::write_fmt(&mut io::stderr(), format_args!("{}: {error}\n", Path::new(&folder).display()));
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let folder = std::env::temp_dir().join(format!("clawgate-xtask-{}", std::process::id()));
        write(&folder).unwrap();
        let page = fs::read_to_string(folder.join("man/clawgate-tunnel-up.1")).unwrap();
        assert!(page.contains(".TH") && page.contains("sshTarget"), "{page}");
        assert!(folder.join("man/clawgate.1").exists() && folder.join("man/clawgate-gateway-explain.1").exists());
        assert_eq!(fs::read_dir(folder.join("completions")).unwrap().count(), 4);
        fs::remove_dir_all(&folder).unwrap();
    }
}
