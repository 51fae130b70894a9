//! Who has a port: the program that an error can name.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};

/// A program that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process, when we may know.
    pub pid: Option<u32>,
    /// Its name, when we may know.
    pub name: Option<String>,
    /// The user it runs as, when that is all there is to know.
    pub uid: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.pid, self.uid) {
            (Some(name), Some(pid), _) => write!(f, "{name} (pid {pid})"),
            (None, Some(pid), _) => write!(f, "pid {pid}"),
            (_, None, Some(uid)) => write!(f, "a program of the user with id {uid}"),
            _ => f.write_str("another program"),
        }
    }
}

/// Whether a port of `127.0.0.1` can be had at this moment.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Who listens on `port` of `127.0.0.1`; `None` when nobody does, or it cannot be found out.
#[cfg(target_os = "linux")]
pub fn of(port: u16) -> Option<Holder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let (inode, uid) = tables.iter().find_map(|table| listener(table, port))?;
    let owner = process_with_socket(inode);
    let name = owner.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    Some(Holder { pid: owner, name: name.map(|name| name.trim().to_owned()), uid: Some(uid) })
}

/// Who listens on `port` of `127.0.0.1`; `None` when nobody does, or it cannot be found out.
#[cfg(not(target_os = "linux"))]
pub fn of(port: u16) -> Option<Holder> {
    let selector = format!("-iTCP:{port}");
    let output = std::process::Command::new("lsof").args(["-nP", &selector, "-sTCP:LISTEN", "-Fpc"]).output().ok()?;
    from_lsof(&String::from_utf8_lossy(&output.stdout))
}

/// Inode and user of the socket that listens on `port` of loopback or of every address, in the form of
/// `/proc/net/tcp`.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the form is Linux's; the tests run everywhere"))]
fn listener(table: &str, port: u16) -> Option<(u64, u32)> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace();
        let (address, number) = columns.nth(1)?.rsplit_once(':')?;
        let state = columns.nth(1)?;
        let reachable = match address.len() {
            8 => address == "0100007F" || address == "00000000",
            _ => address.ends_with("01000000") || address.chars().all(|c| c == '0') || address.ends_with("0100007F"),
        };
        if u16::from_str_radix(number, 16).ok()? != port || state != LISTEN || !reachable {
            return None;
        }
        // Behind the state: queues, timer, retransmissions, user, timeout, inode.
        let uid = columns.nth(3)?.parse().ok()?;
        Some((columns.nth(1)?.parse().ok()?, uid))
    })
}

#[cfg(target_os = "linux")]
fn process_with_socket(inode: u64) -> Option<u32> {
    let link = std::path::PathBuf::from(format!("socket:[{inode}]"));
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == link))
    })
}

/// Reads `lsof -Fpc`: `p` before the pid, `c` before the name.
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "the form is of lsof; the tests run everywhere"))]
fn from_lsof(text: &str) -> Option<Holder> {
    let field = |letter: char| text.lines().find_map(|line| line.strip_prefix(letter)).map(str::to_owned);
    Some(Holder { pid: Some(field('p')?.parse().ok()?), name: field('c'), uid: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_of_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: \
                     0100007F:4965 0100007F:1234 01 00000000:00000000 00:00000000 00000000  1000        0 11 1 0\n   1: \
                     0100007F:4965 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22 1 0\n   2: \
                     0500000A:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1 0\n";
        assert_eq!(listener(table, 0x4965), Some((22, 1000)));
        assert_eq!(listener(table, 22), None, "another address");
        assert_eq!(listener(table, 80), None);
    }

    #[test]
    fn reads_what_lsof_says() {
        let holder = from_lsof("p123\ncssh\nf3\n").unwrap();
        assert_eq!(holder.to_string(), "ssh (pid 123)");
        assert_eq!(from_lsof(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_the_program_that_listens() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(!is_free(port));
        assert_eq!(of(port).unwrap().pid, Some(std::process::id()));
        drop(socket);
        assert_eq!(of(port), None);
    }
}
