//! Faults that real parts cannot be made to have: a preloaded library makes the disk fail, the clock jump and memory
//! run short.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use super::replace_file;

/// The library, built once for all tests.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (library, draft) = (folder.join("faults.so"), folder.join(format!("faults-{}.so", std::process::id())));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/faults.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&draft).arg(source).arg("-ldl").output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // Atomically, for other test runs that use it at the same time.
    std::fs::rename(&draft, &library).unwrap();
    library
});

fn disk(folder: &Path) -> PathBuf {
    folder.join("disk-fault")
}

fn trail(folder: &Path) -> PathBuf {
    folder.join("trail-fault")
}

fn clock(folder: &Path) -> PathBuf {
    folder.join("clock-ahead")
}

fn status(folder: &Path) -> PathBuf {
    folder.join("proc-status")
}

/// Environment variables for a process whose faults are set in this folder.
pub fn environment(folder: &Path) -> [(&'static str, PathBuf); 5] {
    [
        ("LD_PRELOAD", LIBRARY.clone()),
        ("TEST_DISK_FAULT", disk(folder)),
        ("TEST_TRAIL_FAULT", trail(folder)),
        ("TEST_CLOCK_AHEAD", clock(folder)),
        ("TEST_PROC_STATUS", status(folder)),
    ]
}

pub fn break_disk(folder: &Path, broken: bool) {
    // 5 is EIO.
    replace_file(&disk(folder), if broken { "5" } else { "0" });
}

pub fn break_syncs(folder: &Path, broken: bool) {
    replace_file(&disk(folder), if broken { "-5" } else { "0" });
}

pub fn break_trail(folder: &Path, broken: bool) {
    replace_file(&trail(folder), if broken { "5" } else { "0" });
}

pub fn set_clock_ahead(folder: &Path, seconds: u64) {
    replace_file(&clock(folder), &seconds.to_string());
}

pub fn set_memory_used(folder: &Path, kib: u64) {
    replace_file(&status(folder), &format!("RssAnon:\t{kib} kB\n"));
}
