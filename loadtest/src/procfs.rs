//! What a process has used, from `/proc` and its CPU clock. Linux only, as the scheduler's and the kernel's own accounts are.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// A process that is watched.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pid: u32,
}

/// Time and sleeps of a process since it started. Two of them make a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time in user and kernel mode, of all threads, also those that have ended: what `/proc/PID/stat` has as
    /// `utime` and `stime` in steps of 10 ms, from the clock behind it.
    pub cpu: Duration,
    /// Times that a thread went to sleep by itself and was woken again, over the threads that live.
    pub wakeups: u64,
}

impl Usage {
    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(earlier.cpu), wakeups: self.wakeups.saturating_sub(earlier.wakeups) }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.cpu += more.cpu;
        self.wakeups += more.wakeups;
    }
}

impl Process {
    /// The process with this number, whether it lives or not.
    pub const fn new(pid: u32) -> Self {
        Self { pid }
    }

    fn read(self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).with_context(|| format!("reading {path}; is the process still there?"))
    }

    /// What it has used so far.
    pub fn usage(self) -> Result<Usage> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?);
        let cpu = clock_getcpuclockid(pid).and_then(|clock| clock.now());
        let cpu = cpu.with_context(|| format!("reading the CPU time of process {}; is it still there?", self.pid))?;
        let cpu = Duration::from(cpu);
        let mut wakeups = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid)).context("listing the threads")? {
            // A thread may end while the list is read.
            let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
            wakeups += field(&status, "voluntary_ctxt_switches:").unwrap_or_default();
        }
        Ok(Usage { cpu, wakeups })
    }

    /// Resident bytes, shared ones included.
    pub fn resident_bytes(self) -> Result<u64> {
        let status = self.read("status")?;
        field(&status, "VmRSS:").map(|kilobytes| kilobytes * 1024).context("/proc/PID/status without VmRSS")
    }

    /// Resident bytes with shared pages divided by those who share them. `None` where the kernel does not tell.
    /// Walks the page tables: not for a moment that is measured.
    pub fn proportional_bytes(self) -> Option<u64> {
        field(&self.read("smaps_rollup").ok()?, "Pss:").map(|kilobytes| kilobytes * 1024)
    }
}

/// The number after `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let process = Process::new(std::process::id());
        let before = process.usage().unwrap();
        let start = std::time::Instant::now();
        // This machine may have other things to do.
        while process.usage().unwrap().since(before).cpu < Duration::from_millis(30) {
            assert!(start.elapsed() < Duration::from_secs(30));
        }
        assert!(process.resident_bytes().unwrap() > 500_000);
    }
}
