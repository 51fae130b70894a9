//! Gives back what only the start has needed of the program's own file.
//!
//! The start runs through most of the program once: the command line, the configuration, the schemas. The kernel maps
//! what was touched, 64 KiB around each place, and leaves it mapped: some ten megabytes that count as this process's. When
//! the gateway is ready they are let go of, and what it needs from then on is mapped again as it is touched. The file's
//! pages stay in the kernel's cache; they are only the first to go when memory is short.

/// Lets go of the code and the constants of the program and its libraries. A failure leaves them mapped.
pub(super) fn release() {
    #[cfg(target_os = "linux")]
    if let Ok(maps) = std::fs::read_to_string("/proc/self/maps") {
        maps.lines().filter_map(file_pages).for_each(|(start, end)| {
            // SAFETY: the range is a mapping of a file that this process cannot write to and never could (see
            // `file_pages`), so that its pages are the file's: what is touched again is read from there again.
            let _ = unsafe {
                rustix::mm::madvise(
                    std::ptr::with_exposed_provenance_mut(start),
                    end - start,
                    rustix::mm::Advice::LinuxDontNeed,
                )
            };
        });
    }
}

/// The range of a mapping that holds nothing but what its file says: code, and what lies at the file's beginning. Of
/// the other read-only ones the loader has written some (relocations) before it closed them.
#[cfg(target_os = "linux")]
fn file_pages(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, access, offset) = (words.next()?, words.next()?, words.next()?);
    let is_file = words.nth(2)?.starts_with('/');
    let is_pure = access == "r-xp" || access == "r--p" && offset.bytes().all(|digit| digit == b'0');
    let (start, end) = range.split_once('-')?;
    let bounds = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (is_file && is_pure).then_some(bounds)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_file_says_is_let_go_of() {
        let of = |access: &str, offset: &str, path: &str| {
            file_pages(&format!("1000-3000 {access} {offset} 08:01 77                        {path}"))
        };
        assert_eq!(of("r-xp", "002ef000", "/usr/bin/clawgate"), Some((0x1000, 0x3000)));
        assert_eq!(of("r--p", "00000000", "/usr/bin/clawgate"), Some((0x1000, 0x3000)));
        assert_eq!(of("r--p", "00e3b000", "/usr/bin/clawgate"), None, "relocated by the loader");
        assert_eq!(of("rw-p", "00000000", "/usr/bin/clawgate"), None);
        assert_eq!(of("r-xp", "00000000", "[vdso]"), None);
        assert_eq!(of("r-xp", "00000000", ""), None);
    }

    #[test]
    fn less_of_the_file_is_resident_afterwards() {
        let resident_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap().to_owned();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident_kib();
        release();
        let after = resident_kib();
        assert!(after < before, "{after} KiB of {before}");
    }
}
