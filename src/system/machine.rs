//! The machine that the gateway runs on, as `system.info` shows it.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

/// `system.info`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    machine_name: String,
    hostname: String,
    /// `linux`, `darwin`.
    platform: &'static str,
    release: String,
    /// `x64`, `arm64`.
    arch: &'static str,
    os_label: String,
    /// What runs here; the field is named for a gateway of another kind.
    node_version: &'static str,
    pid: u32,
    uptime_ms: u64,
    cpu_count: usize,
    /// Over one, five and fifteen minutes.
    load_average: [f64; 3],
    memory_total_bytes: u64,
    memory_free_bytes: u64,
    /// Of the file system that holds the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_available_bytes: Option<u64>,
    disk_path: String,
}

/// The words of the wire for a platform and a processor: those of Node.js.
const fn words() -> (&'static str, &'static str) {
    let platform = if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS };
    let arch = if cfg!(target_arch = "x86_64") {
        "x64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    };
    (platform, arch)
}

/// Asks the kernel; `None` where it has no answer in this form (everywhere but on Linux).
pub(super) fn look(state_dir: &Path, up: Duration) -> Option<Machine> {
    let (load_average, memory_total_bytes, memory_free_bytes) = memory_and_load()?;
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let (platform, arch) = words();
    let disk = rustix::fs::statvfs(state_dir).ok().map(|disk| (disk.f_blocks, disk.f_bavail, disk.f_frsize));
    let hostname = text(uname.nodename());
    Some(Machine {
        machine_name: hostname.clone(),
        hostname,
        platform,
        release: text(uname.release()),
        arch,
        os_label: format!("{} {}", text(uname.sysname()), text(uname.release())),
        node_version: concat!("clawgate ", env!("CARGO_PKG_VERSION")),
        pid: std::process::id(),
        uptime_ms: u64::try_from(up.as_millis()).unwrap_or(u64::MAX),
        cpu_count: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        load_average,
        memory_total_bytes,
        memory_free_bytes,
        disk_total_bytes: disk.map(|(all, _, unit)| all.saturating_mul(unit)),
        disk_available_bytes: disk.map(|(_, available, unit)| available.saturating_mul(unit)),
        disk_path: state_dir.display().to_string(),
    })
}

#[cfg(target_os = "linux")]
fn memory_and_load() -> Option<([f64; 3], u64, u64)> {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    // Fixed-point, with sixteen bits behind the point.
    let load = |at: usize| u32::try_from(info.loads[at]).map_or(0.0, |load| f64::from(load) / 65536.0);
    Some(([load(0), load(1), load(2)], info.totalram.saturating_mul(unit), info.freeram.saturating_mul(unit)))
}

#[cfg(not(target_os = "linux"))]
fn memory_and_load() -> Option<([f64; 3], u64, u64)> {
    None
}
