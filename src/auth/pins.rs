//! What a paired device said of itself when it was approved, and may not change on its own (S-71).
//!
//! The platform decides which commands a node may offer, so platform and family are pinned. An update of the
//! operating system is no change: `ios 17.2` and `ios 18` are one platform.

/// The platform without its version, under one name.
fn family(platform: &str) -> String {
    let lower = platform.trim().to_ascii_lowercase();
    let name = lower.split(' ').next().unwrap_or_default();
    match name {
        "darwin" => "macos".into(),
        "win32" => "windows".into(),
        "ipados" => "ios".into(),
        name => name.into(),
    }
}

/// Whether a claimed platform is the pinned one.
pub fn same_platform(claimed: &str, pinned: &str) -> bool {
    family(claimed) == family(pinned)
}

/// Whether a claimed device family is the pinned one. Case and surrounding white space don't count.
pub fn same_device_family(claimed: &str, pinned: &str) -> bool {
    claimed.trim().eq_ignore_ascii_case(pinned.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_no_change_and_a_look_alike_is_one() {
        for (claimed, pinned) in
            [("iOS 18.1", "ios 17.2"), ("iPadOS 18", "ios"), ("darwin", "macos 15"), ("Linux", " linux ")]
        {
            assert!(same_platform(claimed, pinned), "{claimed} {pinned}");
        }
        for (claimed, pinned) in [("", "linux"), ("linux", "ios"), ("lınux", "linux"), ("linuxx", "linux")] {
            assert!(!same_platform(claimed, pinned), "{claimed} {pinned}");
        }
        assert!(same_device_family("iPhone ", "iphone"));
        assert!(!same_device_family("", "iphone"));
    }
}
