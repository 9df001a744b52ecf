//! The programs of a cluster as processes. They outlive the tests that use them and end with the test binary, however
//! it ends.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

/// The folder `tests/cluster`.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster")
}

/// The output folder of `tests/cluster/build`.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Command::new(scripts().join("build")).arg("--where").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// The file of a program. `KUBEBUILDER_ASSETS` names a folder with some of them, as is usual for Kubernetes.
pub fn path(name: &str) -> PathBuf {
    let given = std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join(name));
    given.filter(|path| path.exists()).unwrap_or_else(|| built().join("bin").join(name))
}

/// A registry client.
pub fn crane() -> PathBuf {
    let module = include_str!("../../cluster/clients/go.mod");
    let mut words = module.split_whitespace().skip_while(|word| *word != "github.com/google/go-containerregistry");
    path(&format!("crane-{}", words.nth(1).unwrap()))
}

/// The manifests of one of the modules: `pipeline`, `triggers` or `kubelet`.
pub fn manifests(module: &str) -> PathBuf {
    built().join("manifests").join(module)
}

/// The Gateway API definitions.
pub fn gateway() -> PathBuf {
    let version = include_str!("../../cluster/definitions/go.mod").split_whitespace().last().unwrap();
    manifests(&format!("gateway-{version}"))
}

/// A folder that is deleted when the program that is started in it ends.
pub fn folder() -> PathBuf {
    tempfile::tempdir().unwrap().keep()
}

/// A running program.
pub struct Program {
    folder: PathBuf,
    /// Holds the pipe that ends the program when it closes.
    _keeper: Child,
}

impl Program {
    /// Starts a program in a folder from [`folder`].
    pub fn start(folder: PathBuf, name: &str, arguments: &[String], environment: &[(&str, &str)]) -> Self {
        let keeper = Command::new(scripts().join("keep"))
            .arg(&folder)
            .arg(path(name))
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal signal must not end the keeper before its program.
            .process_group(0)
            .spawn()
            .unwrap();
        Self { folder, _keeper: keeper }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Stops (SIGSTOP) or continues it.
    pub fn stop(&self, stopped: bool) {
        let pid = fs::read_to_string(self.folder.join("pid")).unwrap();
        let signal = if stopped { "-STOP" } else { "-CONT" };
        let done = Command::new("kill").args([signal, pid.trim()]).status().unwrap().success();
        assert!(done, "it has ended: {}", self.log());
    }

    /// Whether it ended by itself.
    pub fn has_ended(&self) -> bool {
        let Ok(pid) = fs::read_to_string(self.folder.join("pid")) else { return false };
        let Ok(state) = fs::read_to_string(format!("/proc/{}/stat", pid.trim())) else { return !pid.is_empty() };
        // proc(5): the state follows the name, which is in parentheses. The keeper does not wait for it, so it stays a
        // zombie.
        state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    }
}
