//! How busy this machine is, as gateways list it for a node.

use serde::Serialize;

/// Resources of this machine.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostStats {
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
    /// Those of now; `None` where the system does not tell.
    #[cfg(target_os = "linux")]
    pub(super) fn now(home: Option<&str>) -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kib = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse().ok()
        };
        let memory_total_bytes = kib("MemTotal")? * 1024;
        let loads = std::fs::read_to_string("/proc/loadavg").ok()?;
        let mut loads = loads.split_whitespace().map(|load| load.parse().unwrap_or(0.0));
        let disk = home.and_then(|home| rustix::fs::statvfs(home).ok());
        Some(Self {
            cpu_count: std::thread::available_parallelism().ok()?.get(),
            load_average: [loads.next()?, loads.next()?, loads.next()?],
            memory_total_bytes,
            memory_free_bytes: (kib("MemAvailable").or_else(|| kib("MemFree"))? * 1024).min(memory_total_bytes),
            disk_total_bytes: disk.as_ref().map(|disk| disk.f_blocks * disk.f_frsize),
            disk_available_bytes: disk.map(|disk| disk.f_bavail.min(disk.f_blocks) * disk.f_frsize),
        })
    }

    /// Those of now; `None` where the system does not tell.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn now(_: Option<&str>) -> Option<Self> {
        None
    }
}
