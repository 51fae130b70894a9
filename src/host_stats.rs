//! How busy this machine is, in the words of the wire: a node host tells its gateway, and a gateway tells it of itself.

use std::path::Path;

use serde::Serialize;

/// Resources of this machine.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStats {
    cpu_count: usize,
    load_average: [f64; 3],
    memory_total_bytes: u64,
    memory_free_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_available_bytes: Option<u64>,
}

impl HostStats {
    /// Those of now, with the file system that holds `folder`; `None` where the system does not tell (everywhere but on
    /// Linux).
    #[cfg(target_os = "linux")]
    pub fn now(folder: Option<&Path>) -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kib = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse().ok()
        };
        let memory_total_bytes = kib("MemTotal")? * 1024;
        let loads = std::fs::read_to_string("/proc/loadavg").ok()?;
        let mut loads = loads.split_whitespace().map(|load| load.parse().unwrap_or(0.0));
        let disk = folder.and_then(|folder| rustix::fs::statvfs(folder).ok());
        Some(Self {
            cpu_count: std::thread::available_parallelism().ok()?.get(),
            load_average: [loads.next()?, loads.next()?, loads.next()?],
            memory_total_bytes,
            memory_free_bytes: (kib("MemAvailable").or_else(|| kib("MemFree"))? * 1024).min(memory_total_bytes),
            disk_total_bytes: disk.as_ref().map(|disk| disk.f_blocks * disk.f_frsize),
            disk_available_bytes: disk.map(|disk| disk.f_bavail.min(disk.f_blocks) * disk.f_frsize),
        })
    }

    /// Those of now; `None`: the system does not tell.
    #[cfg(not(target_os = "linux"))]
    pub fn now(_: Option<&Path>) -> Option<Self> {
        None
    }
}
