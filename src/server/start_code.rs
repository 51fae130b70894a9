//! Gives back what only the start has needed of the program's own file.
//!
//! The start runs through most of the program once: the command line, the configuration, the schemas. The kernel maps
//! what was touched, 64 KiB around each place, and leaves it mapped: some ten megabytes that count as this process's. When
//! the gateway is ready they are let go of, and what it needs from then on is mapped again as it is touched. The file's
//! pages stay in the kernel's cache; they are only the first to go when memory is short.

/// Lets go of the code and the constants of the program and its libraries. A failure leaves them mapped.
pub(super) fn release() {
    #[cfg(target_os = "linux")]
    if let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") {
        file_pages(&maps).for_each(|(start, end)| {
            // SAFETY: the range is a mapping of a file that this process cannot write to, and no page of it was ever
            // copied for this process (see `file_pages`), not even by those who write past the protection (text
            // relocations, a hook, a debugger's breakpoint): each page is the file's, and what is touched again is
            // read from there again. No such writer comes between the look and the call: the loader is done, and
            // nothing here patches code. A debugger that sets a breakpoint in just this moment loses it.
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

/// The ranges of the mappings that hold nothing but what their file says: code, and what lies at the file's beginning. Of
/// the other read-only ones the loader has written some (relocations) before it closed them. One that has a page of this
/// process's own is left alone, whatever it is. `maps` is `/proc/self/smaps`: a line for each mapping, and below it what
/// the kernel knows of it.
#[cfg(target_os = "linux")]
fn file_pages(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut lines = maps.lines().peekable();
    std::iter::from_fn(move || {
        let mapping = file_range(lines.next()?);
        let mut own = None;
        // Names of the fields begin with a capital, ranges with a digit or a small letter.
        while let Some(field) = lines.next_if(|line| line.starts_with(|c: char| c.is_ascii_uppercase())) {
            let Some((name, size)) = field.split_once(':') else { continue };
            // Not `Private_Dirty`: so are the pages of a file that was written a moment ago, as by its installation.
            if matches!(name, "Anonymous" | "Swap") {
                let is_none = size.trim().strip_suffix(" kB").is_some_and(|kib| kib.trim() == "0");
                own = Some(own.unwrap_or(false) || !is_none);
            }
        }
        // A kernel that does not say is not believed.
        Some(mapping.filter(|_| own == Some(false)))
    })
    .flatten()
}

#[cfg(target_os = "linux")]
fn file_range(line: &str) -> Option<(usize, usize)> {
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
            file_range(&format!("1000-3000 {access} {offset} 08:01 77                        {path}"))
        };
        assert_eq!(of("r-xp", "002ef000", "/usr/bin/clawgate"), Some((0x1000, 0x3000)));
        assert_eq!(of("r--p", "00000000", "/usr/bin/clawgate"), Some((0x1000, 0x3000)));
        assert_eq!(of("r--p", "00e3b000", "/usr/bin/clawgate"), None, "relocated by the loader");
        assert_eq!(of("rw-p", "00000000", "/usr/bin/clawgate"), None);
        assert_eq!(of("r-xp", "00000000", "[vdso]"), None);
        assert_eq!(of("r-xp", "00000000", ""), None);
    }

    #[test]
    fn a_mapping_with_a_page_of_our_own_is_left_alone() {
        let mapping =
            |start: &str, fields: &str| format!("{start}-9000 r-xp 00001000 08:01 77   /lib/libc.so.6\n{fields}");
        let clean = "Size: 32 kB\nPrivate_Dirty: 0 kB\nAnonymous: 0 kB\nSwap: 0 kB\nVmFlags: rd ex\n";
        let maps = [
            mapping("1000", clean),
            mapping("2000", &clean.replace("Anonymous: 0", "Anonymous: 4")),
            mapping("4000", &clean.replace("Swap: 0", "Swap: 4")),
            mapping("5000", "Size: 32 kB\n"),
            mapping("a", &clean.replace("Private_Dirty: 0", "Private_Dirty: 4")),
        ];
        let those = file_pages(&maps.concat()).collect::<Vec<_>>();
        assert_eq!(those, [(0x1000, 0x9000), (0xa, 0x9000)], "also of a file that is on its way to the disk");
    }

    #[test]
    fn code_that_was_patched_stays_patched() {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect};
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let private = MapFlags::PRIVATE;
        // SAFETY: a mapping of our own, of a whole page of a file that does not change, written to and read while it is
        // mapped and by nobody else.
        let (before, after) = unsafe {
            let page = mmap(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, private, &file, 0).unwrap();
            let byte = page.cast::<u8>();
            byte.write_volatile(0xCC);
            mprotect(page, 4096, MprotectFlags::READ | MprotectFlags::EXEC).unwrap();
            let before = byte.read_volatile();
            release();
            let after = byte.read_volatile();
            rustix::mm::munmap(page, 4096).unwrap();
            (before, after)
        };
        assert_eq!((before, after), (0xCC, 0xCC));
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
