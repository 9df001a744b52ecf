//! A context for kubectl, whose credential this program gives (client-go credential plugins).

use std::{
    env,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    EXEC_API, Failure,
    kept::{could_write, write_whole},
};

/// Links that lead to one another, as in Linux.
const MAX_LINKS: usize = 40;

/// What kubectl is to know.
#[derive(Debug)]
pub struct Context<'a> {
    /// Of the context, its cluster and its user.
    pub name: &'a str,
    /// The address of the Kubernetes route.
    pub server: &'a str,
    /// A file with the authorities that are trusted there.
    pub ca: Option<PathBuf>,
    /// This program.
    pub program: PathBuf,
}

/// The file that kubectl writes: the first of `KUBECONFIG`, else the one in the person's home.
pub fn file() -> Result<PathBuf, Failure> {
    let named = env::var_os("KUBECONFIG");
    let named = named.and_then(|list| env::split_paths(&list).find(|path| !path.as_os_str().is_empty()));
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".kube/config"));
    named.or_else(home).ok_or_else(|| "neither `KUBECONFIG` nor `HOME` is set".into())
}

/// Writes the context into the file and makes it the current one. All else in the file stays; one of this name that is
/// not of this program's making is not overwritten.
pub fn write(file: &Path, context: &Context<'_>) -> Result<(), Failure> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let _lock = Lock::take(file)?;
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let config = with(file, context).map_err(|error| told(&error))?;
    // What a link leads to is the file, wherever its owner keeps it.
    let target = target(file).map_err(|error| told(&error))?;
    write_whole(&target, serde_saphyr::to_string(&config)?.as_bytes()).map_err(|error| told(&error))?;
    Ok(())
}

/// Whether [`write`] would do it, as things stand: asked before a person goes through a login for it.
pub fn check(file: &Path, context: &Context<'_>) -> Result<(), Failure> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let _lock = Lock::take(file)?;
    with(file, context).map_err(|error| told(&error))?;
    let target = target(file).map_err(|error| told(&error))?;
    // Where the lock is, a file can be made; the target of a link may be elsewhere.
    could_write(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    Ok(())
}

/// The configuration in the file, with the context.
fn with(file: &Path, context: &Context<'_>) -> Result<Value, String> {
    let mut config: Value = match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => json!({}),
        Ok(text) => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(error.to_string()),
    };
    add(&mut config, context)?;
    Ok(config)
}

/// What the file is in the end, whether it is there yet or not.
fn target(file: &Path) -> io::Result<PathBuf> {
    let mut file = std::path::absolute(file)?;
    for _ in 0..MAX_LINKS {
        match fs::read_link(&file) {
            // It is relative to its folder, if not absolute.
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
    let config = config.as_object_mut().ok_or("this is no configuration of kubectl")?;
    let known = |config: &serde_json::Map<String, Value>, list: &str| {
        let entries = config.get(list).and_then(Value::as_array);
        entries.and_then(|entries| entries.iter().find(|entry| entry.get("name") == Some(&json!(name))).cloned())
    };
    let user_before = known(config, "users");
    let command = user_before.as_ref().and_then(|entry| entry.pointer("/user/exec/args/0"));
    let ours = command.is_some_and(|command| command == "credential");
    if !ours && (user_before.is_some() || known(config, "clusters").is_some() || known(config, "contexts").is_some()) {
        return Err(format!("it has another `{name}` already; choose another name"));
    }
    let before = known(config, "contexts");
    let what = match before.as_ref().and_then(|before| before.pointer("/context/namespace")) {
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
        let entries = entries.as_array_mut().ok_or_else(|| format!("`{list}` is no list"))?;
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
        let read = || serde_saphyr::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap();
        let context = |name: &'static str, server: &'static str| Context {
            name,
            server,
            ca: Some("/etc/ca.pem".into()),
            program: "/usr/bin/doorward".into(),
        };
        write(&file, &context("build", "https://k8s.example.com")).unwrap();
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
        write(&file, &context("build", "https://other.example.com")).unwrap();
        let again = read();
        assert_eq!(again["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(again["clusters"][0]["cluster"]["server"], "https://other.example.com");
        assert_eq!(again["contexts"][0]["context"]["namespace"], "ci", "what a person chose stays");
        assert_eq!(again["preferences"], json!({"colors": "1"}));
        assert_eq!(again["users"][0], json!({"name": "prod", "user": {"token": "yes"}}));

        let refused = write(&file, &context("prod", "https://k8s.example.com")).unwrap_err().to_string();
        assert!(refused.contains("another `prod`"), "{refused}");
        assert_eq!(read(), again, "nothing was written");
        let refused = check(&file, &context("prod", "https://k8s.example.com")).unwrap_err().to_string();
        assert!(refused.contains("another `prod`"), "{refused}");
        check(&file, &context("build", "https://k8s.example.com")).unwrap();
        assert_eq!(read(), again, "looking writes nothing");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "and leaves nothing");
        fs::write(dir.path().join("kube/config.lock"), "").unwrap();
        assert!(check(&file, &context("build", "https://k8s.example.com")).is_err());
        let locked = write(&file, &context("build", "https://k8s.example.com")).unwrap_err().to_string();
        assert!(locked.contains("config.lock"), "{locked}");
    }
    #[test]
    fn a_link_stays_a_link_and_what_it_leads_to_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (file, middle) = (dir.path().join("config"), dir.path().join("middle"));
        let real = dir.path().join("dotfiles/kube.yaml");
        fs::create_dir(dir.path().join("dotfiles")).unwrap();
        std::os::unix::fs::symlink("middle", &file).unwrap();
        std::os::unix::fs::symlink(&real, &middle).unwrap();
        let context =
            Context { name: "build", server: "https://k8s.example.com", ca: None, program: "/usr/bin/doorward".into() };
        // The target need not be there yet.
        for _ in 0..2 {
            check(&file, &context).unwrap();
            write(&file, &context).unwrap();
            assert!(
                fs::symlink_metadata(&file).unwrap().is_symlink()
                    && fs::symlink_metadata(&middle).unwrap().is_symlink()
            );
            assert!(fs::symlink_metadata(&real).unwrap().is_file());
            assert!(fs::read_to_string(&file).unwrap().contains("k8s.example.com"));
        }
        fs::remove_dir_all(dir.path().join("dotfiles")).unwrap();
        assert!(check(&file, &context).unwrap_err().to_string().contains("dotfiles/kube.yaml"));
        fs::remove_file(&middle).unwrap();
        std::os::unix::fs::symlink("config", &middle).unwrap();
        assert!(write(&file, &context).is_err(), "a circle");
    }
}
