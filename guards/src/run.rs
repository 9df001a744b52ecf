//! Runs the tests that meet a guard, without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    slice, thread,
    time::{Duration, Instant},
};

use crate::rewrite::{AWAY, Guard, SEEN};

/// How long some tests may take without a guard. A test that hangs misses it too.
const TIME: Duration = Duration::from_secs(120);

/// How many black-box tests run before it is looked whether one of them failed.
const BATCH: usize = 6;

/// What became of the tests.
pub enum Verdict {
    MissedByUnit,
    MissedByBlackBox,
    NotMissed,
    /// No test meets the guard at all.
    NeverMet,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissedByUnit => f.write_str("missed by unit tests"),
            Self::MissedByBlackBox => f.write_str("missed by black-box tests"),
            Self::NotMissed => f.write_str("NOT MISSED"),
            Self::NeverMet => f.write_str("NEVER MET"),
        }
    }
}

/// The tests, and which guards each meets.
pub struct Tests {
    root: PathBuf,
    unit: PathBuf,
    black_box: PathBuf,
    by_unit: BTreeMap<usize, BTreeSet<String>>,
    by_black_box: BTreeMap<usize, BTreeSet<String>>,
    /// Unit tests that fail in any case.
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
            by_unit: BTreeMap::new(),
            by_black_box: BTreeMap::new(),
            left_out: BTreeSet::new(),
        };
        tests.meet_all(&target.join("seen"))?;
        Ok(tests)
    }

    fn meet_all(&mut self, seen: &Path) -> Result<(), Box<dyn std::error::Error>> {
        fs::create_dir_all(seen)?;
        let file = seen.join("unit");
        _ = fs::remove_file(&file);
        let output = Command::new(&self.unit).env(SEEN, &file).current_dir(&self.root).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains("test result: ") {
            return Err("the unit tests do not run with all guards in place".into());
        }
        for line in text.lines() {
            let failed = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
            if let Some(test) = failed {
                eprintln!("{test} fails with all guards in place, and is left out");
                self.left_out.insert(test.to_owned());
            }
        }
        // The harness of Rust names a thread after its test.
        for line in fs::read_to_string(&file)?.lines() {
            let (thread, number) = line.rsplit_once('\t').ok_or("a line without a number")?;
            if !self.left_out.contains(thread) {
                self.by_unit.entry(number.parse()?).or_default().insert(thread.to_owned());
            }
        }
        for test in self.list(&self.black_box)? {
            let file = seen.join(test.replace(':', "-"));
            _ = fs::remove_file(&file);
            let begun = self.start(&self.black_box, slice::from_ref(&test), Some((SEEN, file.as_os_str())))?;
            if !passes(begun, TIME)? {
                eprintln!("{test} fails with all guards in place, and is left out");
                continue;
            }
            for line in fs::read_to_string(&file).unwrap_or_default().lines() {
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

    /// Whether a test fails without the guard: of its own module, of all units, of the whole program.
    pub fn without(&self, number: usize, guard: &Guard) -> io::Result<Verdict> {
        let empty = BTreeSet::new();
        let units = self.by_unit.get(&number).unwrap_or(&empty);
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
        let away = number.to_string();
        let fails = |binary: &Path, names: &[String]| -> io::Result<bool> {
            if names.is_empty() {
                return Ok(false);
            }
            Ok(!passes(self.start(binary, names, Some((AWAY, away.as_ref())))?, TIME)?)
        };
        if fails(&self.unit, &near)? || fails(&self.unit, &far)? {
            return Ok(Verdict::MissedByUnit);
        }
        let whole = self.by_black_box.get(&number).unwrap_or(&empty);
        // First those that meet few guards: they are about this one, and end soon.
        let mut black_box = Vec::from_iter(whole.iter().cloned());
        black_box.sort_by_key(|test| self.by_black_box.values().filter(|tests| tests.contains(test)).count());
        for batch in black_box.chunks(BATCH) {
            // Twice, since a black-box test may fail for want of time too.
            if fails(&self.black_box, batch)? && fails(&self.black_box, batch)? {
                return Ok(Verdict::MissedByBlackBox);
            }
        }
        Ok(if units.is_empty() && whole.is_empty() { Verdict::NeverMet } else { Verdict::NotMissed })
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
