//! Runs the tests that meet a guard, without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    slice, thread,
    time::{Duration, Instant},
};

use crate::rewrite::{AWAY, Guard, SEEN};

/// How long some tests may take without a guard. A test that hangs misses it too.
const TIME: Duration = Duration::from_secs(120);

/// In the folder of what the tests of a binary met: when that was built, and which of them fail in any case.
const BUILT: &str = "built";
const FAILED: &str = "failed";

/// How many black-box tests run before it is looked whether one of them failed.
const BATCH: usize = 6;

/// The tests, and which guards each meets.
pub struct Tests {
    root: PathBuf,
    /// The folder for what tests met.
    seen: PathBuf,
    unit: PathBuf,
    black_box: PathBuf,
    by_unit: BTreeMap<usize, BTreeSet<String>>,
    by_black_box: BTreeMap<usize, BTreeSet<String>>,
    /// Tests that fail in any case.
    left_out: BTreeSet<String>,
}

impl Tests {
    /// Builds the rewritten tests, and runs each once with all guards.
    pub fn build(root: &Path, target: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let root = root.canonicalize()?;
        let built = Command::new("cargo")
            .args(["test", "--locked", "--no-run", "--message-format=json", "--target-dir"])
            .arg(target)
            .current_dir(&root)
            .stderr(Stdio::inherit())
            .output()?;
        if !built.status.success() {
            return Err("the rewritten sources do not build".into());
        }
        let messages = String::from_utf8(built.stdout)?;
        let executable = |kind: &str| -> Result<PathBuf, String> {
            let named = messages.lines().filter(|line| line.contains(kind) && line.contains("\"test\":true"));
            let mut paths = named.filter_map(|line| Some(line.split_once("\"executable\":\"")?.1.split_once('"')?.0));
            paths.next_back().map(PathBuf::from).ok_or(format!("no {kind} was built"))
        };
        let mut tests = Self {
            unit: executable("\"kind\":[\"lib\"]")?,
            black_box: executable("\"kind\":[\"test\"]")?,
            root,
            seen: target.join("seen"),
            by_unit: BTreeMap::new(),
            by_black_box: BTreeMap::new(),
            left_out: BTreeSet::new(),
        };
        tests.meet_units()?;
        Ok(tests)
    }

    /// Whether the tests of a binary were run as it is built now; if not, empties the folder of what they met.
    fn is_known(binary: &Path, folder: &Path) -> io::Result<bool> {
        let (file, built) = (folder.join(BUILT), format!("{:?}", fs::metadata(binary)?.modified()?));
        if fs::read_to_string(&file).ok().as_ref() == Some(&built) {
            return Ok(true);
        }
        _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        Ok(false)
    }

    /// Writes down that all tests of a binary were run, and which of them fail in any case.
    fn note_known(binary: &Path, folder: &Path, failed: &[String]) -> io::Result<()> {
        fs::write(folder.join(FAILED), failed.join("\n"))?;
        fs::write(folder.join(BUILT), format!("{:?}", fs::metadata(binary)?.modified()?))
    }

    fn leave_out(&mut self, folder: &Path) -> io::Result<()> {
        for test in fs::read_to_string(folder.join(FAILED))?.lines() {
            eprintln!("{test} fails with all guards in place, and is left out");
            self.left_out.insert(test.to_owned());
        }
        Ok(())
    }

    /// Finds out which guards the unit tests meet.
    fn meet_units(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let folder = self.seen.join("unit");
        let seen = folder.join("seen");
        if !Self::is_known(&self.unit, &folder)? {
            let output = Command::new(&self.unit).env(SEEN, &seen).current_dir(&self.root).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            if !text.contains("test result: ") {
                return Err("the unit tests do not run with all guards in place".into());
            }
            let failed = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
            Self::note_known(&self.unit, &folder, &Vec::from_iter(failed.map(str::to_owned)))?;
        }
        self.leave_out(&folder)?;
        // The harness of Rust names a thread after its test.
        for line in fs::read_to_string(seen)?.lines() {
            let (thread, number) = line.rsplit_once('\t').ok_or("a line without a number")?;
            if !self.left_out.contains(thread) {
                self.by_unit.entry(number.parse()?).or_default().insert(thread.to_owned());
            }
        }
        Ok(())
    }

    /// Finds out which guards the black-box tests meet, each of them in a process of its own.
    pub fn meet_black_box(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let folder = self.seen.join("black-box");
        let seen = |test: &str| folder.join(test.replace(':', "-"));
        let tests = self.list(&self.black_box)?;
        if !Self::is_known(&self.black_box, &folder)? {
            let mut failed = Vec::new();
            for test in &tests {
                let begun = self.start(&self.black_box, slice::from_ref(test), Some((SEEN, seen(test).as_os_str())))?;
                if !passes(begun, TIME)? {
                    failed.push(test.clone());
                }
            }
            Self::note_known(&self.black_box, &folder, &failed)?;
        }
        self.leave_out(&folder)?;
        for test in tests.into_iter().filter(|test| !self.left_out.contains(test)) {
            for line in fs::read_to_string(seen(&test)).unwrap_or_default().lines() {
                let (_, number) = line.rsplit_once('\t').ok_or("a line without a number")?;
                self.by_black_box.entry(number.parse()?).or_default().insert(test.clone());
            }
        }
        Ok(())
    }

    fn list(&self, binary: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
        let output = Command::new(binary).arg("--list").current_dir(&self.root).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// Starts these tests, or all of a binary if none are named.
    fn start(&self, binary: &Path, names: &[String], variable: Option<(&str, &std::ffi::OsStr)>) -> io::Result<Child> {
        let mut command = Command::new(binary);
        command.args(names).arg("-q").args((!names.is_empty()).then_some("--exact"));
        command.envs(variable).current_dir(&self.root);
        // A group of its own, which ends with the programs that tests started.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    }

    /// Whether a unit test fails without the guard: one of its own module, or another that meets it.
    pub fn units_miss(&self, number: usize, guard: &Guard) -> io::Result<bool> {
        let Some(units) = self.by_unit.get(&number) else { return Ok(false) };
        let path = guard.file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let module = path.replace('/', "::");
        let (component, _) = module.split_once("::").unwrap_or((&module, ""));
        let is_test = |name: &&String| name.contains("::");
        let (near, mut far): (Vec<String>, Vec<String>) =
            units.iter().filter(is_test).cloned().partition(|name| name.starts_with(&format!("{module}::")));
        // On another thread than that of the test, which may be any of the component.
        if units.iter().any(|name| !name.contains("::")) {
            let all = self.list(&self.unit).unwrap_or_default().into_iter();
            far.extend(all.filter(|name| name.starts_with(component) && !self.left_out.contains(name)));
        }
        Ok(self.fails(&self.unit, &near, number)? || self.fails(&self.unit, &far, number)?)
    }

    /// Whether a black-box test fails against a program without the guard.
    pub fn black_box_misses(&self, number: usize) -> io::Result<bool> {
        let Some(tests) = self.by_black_box.get(&number) else { return Ok(false) };
        // First those that meet few guards: they are about this one, and end soon.
        let mut tests = Vec::from_iter(tests.iter().cloned());
        tests.sort_by_key(|test| self.by_black_box.values().filter(|tests| tests.contains(test)).count());
        for batch in tests.chunks(BATCH) {
            // Twice, since a black-box test may fail for want of time too.
            if self.fails(&self.black_box, batch, number)? && self.fails(&self.black_box, batch, number)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether any test meets the guard.
    pub fn meet(&self, number: usize) -> bool {
        self.by_unit.contains_key(&number) || self.by_black_box.contains_key(&number)
    }

    fn fails(&self, binary: &Path, names: &[String], away: usize) -> io::Result<bool> {
        if names.is_empty() {
            return Ok(false);
        }
        Ok(!passes(self.start(binary, names, Some((AWAY, away.to_string().as_ref())))?, TIME)?)
    }
}

/// Waits for tests; those that take longer fail.
fn passes(mut begun: Child, time: Duration) -> io::Result<bool> {
    let end = Instant::now() + time;
    loop {
        if let Some(status) = begun.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > end {
            Command::new("kill").args(["-KILL", "--", &format!("-{}", begun.id())]).status()?;
            begun.wait()?;
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
