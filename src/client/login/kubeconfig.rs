//! A kubectl context whose credential comes from this program (client-go credential plugins).

use std::{
    env, fmt,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    EXEC_API, Failure,
    session_file::{MODE, not_a_file},
};
use crate::atomic_file::{could_replace, replace};

/// The maximum length of a chain of links, as in Linux.
const MAX_LINKS: usize = 40;

/// The settings of the context.
#[derive(Debug)]
pub struct Context<'a> {
    /// The name of the context, its cluster and its user.
    pub name: &'a str,
    /// The address of the Kubernetes route.
    pub server: &'a str,
    /// A file with the authorities that are trusted there.
    pub ca: Option<String>,
    /// The path of this program.
    pub program: String,
}

/// The files that kubectl reads as one.
#[derive(Debug)]
pub struct Files {
    /// The file that is written.
    pub first: PathBuf,
    /// Entries in the first file hide entries of the same name in these.
    others: Vec<PathBuf>,
}

impl Files {
    /// The files of `KUBECONFIG`, else the one in the person's home.
    pub fn from_environment() -> Result<Self, Failure> {
        let named = env::var_os("KUBECONFIG").unwrap_or_default();
        let mut named = env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
        let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".kube/config"));
        let first = named.next().or_else(home).ok_or("neither `KUBECONFIG` nor `HOME` is set")?;
        Ok(Self { first, others: named.collect() })
    }

    /// Writes the context into the first file and makes it the current one. Everything else in the file stays. An entry
    /// of this name that this program did not make is not overwritten, nor hidden if it is in another file.
    pub fn write(&self, context: &Context<'_>) -> Result<(), Failure> {
        let (target, _lock) = self.begin()?;
        let config = self.with(context)?;
        replace(&target, serde_saphyr::to_string(&config)?.as_bytes(), MODE)?;
        Ok(())
    }

    /// Whether [`Self::write`] would currently succeed: checked before a person goes through a login for it.
    pub fn check(&self, context: &Context<'_>) -> Result<(), Failure> {
        let (target, _lock) = self.begin()?;
        self.with(context)?;
        // A file can be created where the lock is; the target of a link may be elsewhere.
        could_replace(&target, MODE)?;
        Ok(())
    }

    /// The file that is finally written, and the lock for it.
    fn begin(&self) -> Result<(PathBuf, Lock), Failure> {
        // The target of a link is the file, wherever its owner keeps it.
        let target = target(&self.first).map_err(told(&self.first))?;
        // A device would be replaced by a file, for all programs of the machine; a pipe may never deliver anything.
        if let Some(what) = fs::metadata(&target).ok().as_ref().and_then(not_a_file) {
            let why = format!("{what}, and a context cannot be written to it; set `KUBECONFIG` to the path of a file");
            return Err(format!("{} is {why}", self.first.display()).into());
        }
        if let Some(folder) = self.first.parent() {
            fs::create_dir_all(folder).map_err(told(folder))?;
        }
        Ok((target, Lock::take(&self.first)?))
    }

    /// The configuration in the first file, with the context.
    fn with(&self, context: &Context<'_>) -> Result<Value, String> {
        for other in &self.others {
            // kubectl skips files that do not exist, and a pipe can be read only once.
            if other.is_file() {
                let known = read(other).map_err(told(other))?;
                known.as_object().map_or(Ok(()), |known| of_others(known, context.name)).map_err(told(other))?;
            }
        }
        let mut config = read(&self.first).map_err(told(&self.first))?;
        add(&mut config, context).map_err(told(&self.first))?;
        Ok(config)
    }
}

/// Prefixes an error with its file.
fn told<E: fmt::Display>(file: &Path) -> impl Fn(E) -> String {
    move |error| format!("{}: {error}", file.display())
}

/// The configuration in a file; empty if the file does not exist.
fn read(file: &Path) -> Result<Value, String> {
    match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(json!({})),
        Ok(text) => serde_saphyr::from_str(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({})),
        Err(error) => Err(error.to_string()),
    }
}

type Entries = serde_json::Map<String, Value>;

/// The entry with a name in a list of a configuration.
fn known<'a>(config: &'a Entries, list: &str, name: &str) -> Option<&'a Value> {
    config.get(list)?.as_array()?.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))
}

/// Refuses a name that a configuration has for something that this program did not make.
fn of_others(config: &Entries, name: &str) -> Result<(), String> {
    let command = known(config, "users", name).and_then(|entry| entry.pointer("/user/exec/args/0"));
    let ours = command.is_some_and(|command| command == "credential");
    if !ours && ["users", "clusters", "contexts"].iter().any(|list| known(config, list, name).is_some()) {
        return Err(format!("it has another `{name}` already; choose another name"));
    }
    Ok(())
}

/// The file that a chain of links leads to, whether it exists or not.
fn target(file: &Path) -> io::Result<PathBuf> {
    let mut file = std::path::absolute(file)?;
    for _ in 0..MAX_LINKS {
        match fs::read_link(&file) {
            // Relative to its folder, unless it is absolute.
            Ok(to) => file = file.with_file_name(to),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(file);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many links lead to one another"))
}

fn add(config: &mut Value, context: &Context<'_>) -> Result<(), String> {
    let Context { name, server, ca, program } = context;
    let cluster = match ca {
        Some(ca) => json!({"server": server, "certificate-authority": ca}),
        None => json!({"server": server}),
    };
    let user = json!({"exec": {
        "apiVersion": EXEC_API,
        "command": program,
        "args": ["credential", server],
        "interactiveMode": "Never",
        "provideClusterInfo": false,
    }});
    let config = config.as_object_mut().ok_or("this is not a kubectl configuration")?;
    of_others(config, name)?;
    let before = known(config, "contexts", name);
    let what = match before.and_then(|before| before.pointer("/context/namespace")) {
        Some(namespace) => json!({"cluster": name, "user": name, "namespace": namespace}),
        None => json!({"cluster": name, "user": name}),
    };
    for (list, member, value) in
        [("clusters", "cluster", cluster), ("users", "user", user), ("contexts", "context", what)]
    {
        let entries = config.entry(list).or_insert_with(|| json!([]));
        if entries.is_null() {
            *entries = json!([]);
        }
        let entries = entries.as_array_mut().ok_or_else(|| format!("`{list}` is not a list"))?;
        entries.retain(|entry| entry.get("name") != Some(&json!(name)));
        entries.push(json!({"name": name, member: value}));
    }
    config.entry("apiVersion").or_insert_with(|| json!("v1"));
    config.entry("kind").or_insert_with(|| json!("Config"));
    config.insert("current-context".to_owned(), json!(name));
    Ok(())
}

/// The lock that kubectl takes as well.
struct Lock(PathBuf);

impl Lock {
    fn take(file: &Path) -> Result<Self, String> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(error) => {
                Err(format!("{}: {error}; another program writes the file, or has ended early", path.display()))
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_joins_what_is_there_and_overwrites_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kube/config");
        let files = Files { first: file.clone(), others: Vec::new() };
        let read = || serde_saphyr::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap();
        let context = |name: &'static str, server: &'static str| Context {
            name,
            server,
            ca: Some("/etc/ca.pem".into()),
            program: "/usr/bin/doorward".into(),
        };
        files.write(&context("build", "https://k8s.example.com")).unwrap();
        let first = read();
        assert_eq!(first["current-context"], "build");
        assert_eq!(
            first["clusters"][0]["cluster"],
            json!({"server": "https://k8s.example.com", "certificate-authority": "/etc/ca.pem"})
        );
        let exec = &first["users"][0]["user"]["exec"];
        assert_eq!((&exec["apiVersion"], &exec["args"][1]), (&json!(EXEC_API), &json!("https://k8s.example.com")));

        let mut with_others = first;
        with_others["contexts"][0]["context"]["namespace"] = json!("ci");
        with_others["users"].as_array_mut().unwrap().push(json!({"name": "prod", "user": {"token": "yes"}}));
        with_others["preferences"] = json!({"colors": "1"});
        fs::write(&file, serde_saphyr::to_string(&with_others).unwrap()).unwrap();
        files.write(&context("build", "https://other.example.com")).unwrap();
        let again = read();
        assert_eq!(again["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(again["clusters"][0]["cluster"]["server"], "https://other.example.com");
        assert_eq!(again["contexts"][0]["context"]["namespace"], "ci", "what a person chose stays");
        assert_eq!(again["preferences"], json!({"colors": "1"}));
        assert_eq!(again["users"][0], json!({"name": "prod", "user": {"token": "yes"}}));

        let refused = files.write(&context("prod", "https://k8s.example.com")).unwrap_err().to_string();
        assert!(refused.contains("another `prod`"), "{refused}");
        assert_eq!(read(), again, "nothing was written");
        let refused = files.check(&context("prod", "https://k8s.example.com")).unwrap_err().to_string();
        assert!(refused.contains("another `prod`"), "{refused}");
        files.check(&context("build", "https://k8s.example.com")).unwrap();
        assert_eq!(read(), again, "looking writes nothing");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "and leaves nothing");
        fs::write(dir.path().join("kube/config.lock"), "").unwrap();
        assert!(files.check(&context("build", "https://k8s.example.com")).is_err());
        let locked = files.write(&context("build", "https://k8s.example.com")).unwrap_err().to_string();
        assert!(locked.contains("config.lock"), "{locked}");
    }
    #[test]
    fn a_symbolic_link_is_kept_and_its_target_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (file, middle) = (dir.path().join("config"), dir.path().join("middle"));
        let real = dir.path().join("dotfiles/kube.yaml");
        fs::create_dir(dir.path().join("dotfiles")).unwrap();
        std::os::unix::fs::symlink("middle", &file).unwrap();
        std::os::unix::fs::symlink(&real, &middle).unwrap();
        let files = Files { first: file.clone(), others: Vec::new() };
        let context = plain();
        // The target need not exist yet.
        for _ in 0..2 {
            files.check(&context).unwrap();
            files.write(&context).unwrap();
            assert!(
                fs::symlink_metadata(&file).unwrap().is_symlink()
                    && fs::symlink_metadata(&middle).unwrap().is_symlink()
            );
            assert!(fs::symlink_metadata(&real).unwrap().is_file());
            assert!(fs::read_to_string(&file).unwrap().contains("k8s.example.com"));
        }
        fs::remove_dir_all(dir.path().join("dotfiles")).unwrap();
        assert!(files.check(&context).unwrap_err().to_string().contains("dotfiles/kube.yaml"));
        fs::remove_file(&middle).unwrap();
        std::os::unix::fs::symlink("config", &middle).unwrap();
        assert!(files.write(&context).is_err(), "a circle");
    }
    fn plain() -> Context<'static> {
        Context { name: "build", server: "https://k8s.example.com", ca: None, program: "/usr/bin/doorward".into() }
    }

    #[test]
    fn a_device_or_a_pipe_is_neither_read_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        // Not /dev/null, which the machine would lose with the guard.
        let (socket, link) = (dir.path().join("socket"), dir.path().join("link"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        for first in [socket.clone(), link, dir.path().to_owned()] {
            let files = Files { first: first.clone(), others: Vec::new() };
            for refused in [files.check(&plain()), files.write(&plain())] {
                let refused = refused.unwrap_err().to_string();
                assert!(refused.contains("set `KUBECONFIG` to the path of a file"), "{refused}");
            }
            assert!(not_a_file(&fs::metadata(&first).unwrap()).is_some(), "{} is as it was", first.display());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no lock stays");
        // Any file but the first is only read by kubectl.
        let files = Files { first: dir.path().join("config"), others: vec![socket, "/dev/null".into()] };
        files.write(&plain()).unwrap();
    }

    #[test]
    fn an_entry_of_that_name_in_another_kubeconfig_of_the_list_is_not_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        let others = vec![dir.path().join("missing"), other.clone()];
        let files = Files { first: dir.path().join("config"), others };
        for entry in ["contexts: [{name: build, context: {}}]", "clusters: [{name: build}]", "users: [{name: build}]"] {
            fs::write(&other, entry).unwrap();
            for refused in [files.check(&plain()), files.write(&plain())] {
                let refused = refused.unwrap_err().to_string();
                assert!(refused.contains("another `build`") && refused.contains("other: "), "{refused}");
            }
        }
        assert!(!files.first.exists(), "nothing was written");
        // An entry of this program may exist from before, and others have other names.
        fs::remove_file(&other).unwrap();
        Files { first: other.clone(), others: Vec::new() }.write(&plain()).unwrap();
        files.write(&plain()).unwrap();
        fs::write(&other, "contexts: [{name: prod, context: {}}]").unwrap();
        files.write(&plain()).unwrap();
    }
}
