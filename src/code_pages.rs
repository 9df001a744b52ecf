//! Returns memory that holds code and constants which only a start or a reload uses.
//!
//! Reading and checking a configuration touches more of the program than serving requests does, and Linux maps the
//! surroundings of each page that is touched: after a start more than half of the resident memory is code that an idle
//! Doorward does not need. Until memory is short the kernel takes none of it back, so it counts in what
//! `kubectl top pod` and other tools report.

use std::{fs, io, ops::Range, path::Path, time::Duration};

/// The first rounds of the background tasks, and the closing of streams after a reload, use code that is not used again
/// either.
const SETTLE: Duration = Duration::from_secs(5);

/// Releases the code when what follows a start or a reload is done.
pub async fn release_when_settled() {
    tokio::time::sleep(SETTLE).await;
    release();
}

/// Asks the kernel to reclaim the pages of this program that are never written. What is needed later is read again from
/// the page cache or the binary. A kernel that cannot do this (before Linux 5.4, gVisor) keeps them.
fn release() {
    if let Err(error) = try_release() {
        tracing::debug!(%error, "the memory of the code that a start needs is not returned");
    }
}

fn try_release() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    for range in code_of(&fs::read_to_string("/proc/self/maps")?, &program) {
        page_out(range)?;
    }
    Ok(())
}

/// The mappings of `program` that are never written: its code and constants, by the lines of `/proc/self/maps`.
fn code_of(maps: &str, program: &Path) -> Vec<Range<usize>> {
    let code = maps.lines().filter_map(|line| {
        // Address, permissions, offset, device, inode, and the path after blanks; it may hold blanks itself.
        let mut fields = line.splitn(6, ' ');
        let (range, permissions) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?.trim_start();
        if permissions.contains('w') || Path::new(path) != program {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    });
    code.collect()
}

#[expect(unsafe_code, reason = "`madvise` takes addresses; there is no safe form of it")]
fn page_out(range: Range<usize>) -> io::Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: MADV_PAGEOUT changes neither the content nor the mapping of a page. A page that is touched later is read
    // again, so no address in the range becomes invalid, whether or not it is still mapped by this program.
    unsafe { rustix::mm::madvise(start, range.len(), rustix::mm::Advice::LinuxPageOut) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5581c0000000-5581c0600000 r--p 00000000 fe:00 1234                       /opt/door ward
5581c0600000-5581c2000000 r-xp 00600000 fe:00 1234                       /opt/door ward
5581c2000000-5581c20a8000 rw-p 01fff000 fe:00 1234                       /opt/door ward
7f0000000000-7f0000100000 r-xp 00000000 fe:00 99                         /usr/lib/libc.so.6
7f0000200000-7f0000300000 r-xp 00000000 00:00 0
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn only_mappings_of_the_program_itself_that_are_never_written_count() {
        let code = |maps, program| code_of(maps, Path::new(program));
        assert_eq!(
            code(MAPS, "/opt/door ward"),
            vec![0x5581_c000_0000..0x5581_c060_0000, 0x5581_c060_0000..0x5581_c200_0000]
        );
        assert!(code(MAPS, "/opt/door").is_empty());
        assert!(code("nonsense\n", "/opt/door").is_empty());
    }

    #[test]
    fn released_code_is_no_longer_resident() {
        let before = resident_code();
        // Other tests of this process run meanwhile and need some of it again.
        let released = (0..100).any(|_| {
            try_release().unwrap();
            resident_code() < before
        });
        assert!(released, "{before} kB before");
    }

    /// The resident part of the program's code, in kB.
    fn resident_code() -> u64 {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut in_code = false;
        let mut resident = 0;
        for line in smaps.lines() {
            if line.split(' ').next().is_some_and(|first| first.contains('-')) {
                in_code = !code_of(line, &program).is_empty();
            } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| in_code) {
                resident += size.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap();
            }
        }
        resident
    }
}
