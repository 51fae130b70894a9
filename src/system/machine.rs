//! The machine that the gateway runs on, as `system.info` shows it.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::host_stats::HostStats;

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
    #[serde(flatten)]
    stats: HostStats,
    /// The file system of `stats` is that of this folder: the state's.
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
    let stats = HostStats::now(Some(state_dir))?;
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let (platform, arch) = words();
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
        stats,
        disk_path: state_dir.display().to_string(),
    })
}
