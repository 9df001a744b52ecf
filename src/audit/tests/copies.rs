//! The copy of checkpoints in a second place, and who can read the files.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::mpsc,
    thread,
};

use super::*;

/// A trail in a file in this directory, whose checkpoints are copied to another file there.
fn copied(directory: &Path) -> (Settings, PathBuf) {
    let copy = directory.join("elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), ..file_settings(&directory.join("audit.jsonl")) };
    (settings, copy)
}

/// A crash leaves such a line. The next checkpoint, appended to it, would count as forged.
#[test]
fn a_checkpoint_after_a_half_written_line_is_copied_to_a_line_of_its_own() {
    for before in ["", "{\"class_uid\":6002,\"ti"] {
        let directory = tempfile::tempdir().unwrap();
        let (settings, copy) = copied(directory.path());
        fs::write(&copy, before).unwrap();
        Trail::open(&settings, directory.path(), clock()).unwrap().shutdown();
        let last = Checkpoint::last_of(&*fs::read(&copy).unwrap(), &proof(&settings));
        assert!(last.is_ok(), "after `{before}`: {last:?}");
    }
}

/// An open of a named pipe hangs until somebody writes to it, as does a mount whose server is gone.
#[test]
fn a_checkpoint_copy_that_hangs_does_not_prevent_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let (settings, copy) = copied(directory.path());
    assert!(std::process::Command::new("mkfifo").arg(&copy).status().unwrap().success());
    let (sender, opened) = mpsc::channel();
    let keys = directory.path().to_owned();
    thread::spawn(move || sender.send(Trail::open(&settings, &keys, clock()).unwrap()));
    let trail = opened.recv_timeout(Duration::from_secs(30)).expect("it waits for the second place");
    assert!(matches!(trail.checkpoint_copy(), Some(Err(_))), "{:?}", trail.checkpoint_copy());
    // Ends the wait.
    drop(OpenOptions::new().read(true).write(true).open(&copy).unwrap());
    trail.shutdown();
}

/// They hold names, addresses and paths of everybody.
#[test]
fn only_the_owner_can_read_the_trail_and_the_copy_of_its_checkpoints() {
    let directory = tempfile::tempdir().unwrap();
    let (settings, copy) = copied(directory.path());
    Trail::open(&settings, directory.path(), clock()).unwrap().shutdown();
    for file in [directory.path().join("audit.jsonl"), copy] {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}
