//! `doorward login`, `whoami`, `logout` and kubectl's exec plugin: a session of the program's own, obtained through the
//! browser ([`oidc::program`](crate::oidc::program) is the server side) and stored for later commands and for kubectl.
//!
//! | file | holds |
//! |---|---|
//! | `server` | the Doorward at which a program signs in |
//! | `loopback`, `device` | receiving the code from the browser, and the login without a browser on this machine |
//! | `session_file` | the stored handles of this person |
//! | `kubeconfig` | a context for kubectl |

mod device;
pub mod kubeconfig;
mod loopback;
mod server;
mod session_file;

use std::{
    env, fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

pub(crate) use self::session_file::{MODE, not_a_file};
use self::{
    loopback::Loopback,
    server::Server,
    session_file::{Entry, SessionFile},
};
use super::Failure;
use crate::{
    authn::NeededLogin,
    clock::Timestamp,
    oidc::program::{challenge, confirmation},
    sessions::{Origin, keyring::random_text},
    terminal,
};

/// How long the person may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// The API of kubectl's exec plugins (client-go credential plugins).
pub(super) const EXEC_API: &str = "client.authentication.k8s.io/v1";

/// The version before, whose response is the same. A caller accepts only its own version.
const EARLIER_EXEC_API: &str = "client.authentication.k8s.io/v1beta1";

/// The address of a Doorward: an origin. A handle is valid for it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Origin);

impl Address {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let host = Origin::https(authority).filter(|_| !authority.contains('/'));
        let origin = match (scheme, host) {
            ("https", host) => host,
            ("http", Some(_)) => {
                Some(Origin::loopback(authority).ok_or("clear text is for this machine only; write `https://`")?)
            }
            _ => None,
        };
        origin.map(Self).ok_or_else(|| "write the address of a host, such as `https://k8s.example.com`".to_owned())
    }
}

/// How a person reaches the page for the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrowserMode {
    /// A browser of this machine is opened.
    OpenBrowser,
    /// They open the address themselves, on this machine.
    PrintAddress,
    /// They type a code in a browser of any machine (RFC 8628).
    Device,
}

/// Signs in at `address`, with a login that satisfies `needed`, and stores the handle.
pub async fn login(
    address: &Address,
    ca: Option<&Path>,
    mode: BrowserMode,
    needed: &NeededLogin,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    // Before anybody signs in for a login that cannot be stored.
    SessionFile::check()?;
    let server = Server::new(address, absolute(ca)?.as_deref())?;
    let SignedIn { username, former } = match mode {
        BrowserMode::Device => device::sign_in(&server, needed, out).await?,
        BrowserMode::OpenBrowser | BrowserMode::PrintAddress => {
            by_loopback(&server, mode == BrowserMode::OpenBrowser, needed, out).await?
        }
    };
    writeln!(out, "Signed in as {}.", terminal::line(&username))?;
    // Nobody holds it any more, but it would look used in the list of sessions.
    if let Some(former) = former
        && let Err(refused) = server.end(&former.handle).await
    {
        writeln!(out, "Your previous session could not be ended: {refused}. {address}/.doorward/sessions ends it.")?;
    }
    Ok(())
}

/// The result of a login.
struct SignedIn {
    username: String,
    /// The previous entry for the address.
    former: Option<Entry>,
}

/// `open`: whether to open the address in a browser.
async fn by_loopback(
    server: &Server,
    open: bool,
    needed: &NeededLogin,
    out: &mut (dyn Write + Send),
) -> Result<SignedIn, Failure> {
    let loopback = Loopback::bind().await?;
    let verifier = random_text();
    let challenge = challenge(&verifier);
    let url = server.page(loopback.port(), loopback.state(), &challenge, &machine(), needed);
    let code = confirmation(&challenge);
    // Otherwise a wrong address, or an untrusted certificate, would show only after the person has signed in.
    server.has_page(&url, &code).await.map_err(|refused| refused.to_string())?;
    writeln!(out, "Sign in with your browser, at\n\n  {url}\n\nAllow it if the page shows the code {code}.")?;
    if open && !open_browser(&url) {
        writeln!(
            out,
            "No browser could be opened here: open the address yourself, on this machine; or run it with `--device`, and \
             use the browser of any machine."
        )?;
    }
    let mut former = None;
    let redeem = async |code: Result<String, String>| {
        let entry = match code {
            Ok(code) => server.redeem(&code, &verifier).await.map_err(|refused| refused.to_string())?,
            Err(error) if error == "access_denied" => return Err("you, or the provider, declined".to_owned()),
            Err(error) => return Err(format!("the browser came back with `{error}`")),
        };
        let signed_in = keep(server, entry).await.map_err(|error| error.to_string())?;
        former = signed_in.former;
        Ok(signed_in.username)
    };
    let answered = tokio::time::timeout(PATIENCE, loopback.answer(redeem)).await;
    let username = answered.map_err(|_| "nobody signed in within ten minutes")??;
    Ok(SignedIn { username, former })
}

/// Stores a session. If that fails, the session is ended, as nobody holds it.
async fn keep(server: &Server, entry: Entry) -> Result<SignedIn, Failure> {
    let (username, handle) = (entry.username.clone(), entry.handle.clone());
    match SessionFile::change(|kept| kept.put(&server.address, entry)) {
        Ok(former) => Ok(SignedIn { username, former }),
        Err(error) => match server.end(&handle).await {
            Ok(()) => Err(format!("the session cannot be stored, and was ended: {error}").into()),
            Err(refused) => Err(format!(
                "the session cannot be stored: {error}; it could not be ended either: {refused}. {}/.doorward/sessions ends it",
                server.address
            )
            .into()),
        },
    }
}

/// Shows who is signed in at `address`, or at the only known one.
pub async fn whoami(address: Option<&Address>, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let (address, entry) = kept(address)?;
    let told = server(&address, &entry)?.who_am_i(&entry.handle).await;
    let told = told.map_err(|refused| refused.advise(&address, entry.ca.as_deref()))?;
    writeln!(out, "{}", terminal::block(&format!("{told:#}")))?;
    Ok(())
}

/// Ends the session, there and here.
pub async fn logout(address: Option<&Address>, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let (address, entry) = kept(address)?;
    if let Some(ca) = lost_ca(&entry) {
        SessionFile::change(|kept| kept.remove(&address))?;
        return Err(format!(
            "{} no longer exists, so Doorward cannot be reached: the session was removed here and goes on there; \
             {address}/.doorward/sessions ends it",
            ca.display()
        )
        .into());
    }
    let ended = server(&address, &entry)?.end(&entry.handle).await;
    ended.map_err(|refused| format!("you are still signed in at {address}: {refused}"))?;
    SessionFile::change(|kept| kept.remove(&address))?;
    writeln!(out, "Signed out of {address}.")?;
    Ok(())
}

/// Answers kubectl's exec plugin. If the session is over, the error says why, as kubectl itself only says that one must
/// sign in.
pub async fn credential(address: &Address, out: &mut dyn Write) -> Result<(), Failure> {
    let api = exec_api()?;
    let (_, entry) = kept(Some(address))?;
    let is_over = entry.ends() <= Timestamp::from(SystemTime::now())
        || match server(address, &entry) {
            Ok(server) => server.has_ended(&entry.handle).await,
            // The server cannot be queried from here. kubectl may reach it all the same, and reports the trouble itself
            // if it does not.
            Err(_) => false,
        };
    if is_over {
        let again = again(address, entry.ca.as_deref());
        return Err(format!("the session at {address} has ended; run `{again}`").into());
    }
    let credential = json!({
        "apiVersion": api,
        "kind": "ExecCredential",
        "spec": {"interactive": false},
        "status": {"token": entry.handle, "expirationTimestamp": entry.expires},
    });
    writeln!(out, "{credential}")?;
    Ok(())
}

/// The version in which an exec plugin must answer its caller.
pub(super) fn exec_api() -> Result<&'static str, Failure> {
    exec_api_of(env::var("KUBERNETES_EXEC_INFO").ok().as_deref())
}

/// The same, from what the calling program says. Some say nothing.
fn exec_api_of(info: Option<&str>) -> Result<&'static str, Failure> {
    let Some(info) = info else { return Ok(EXEC_API) };
    let info: Value = serde_json::from_str(info).map_err(|error| format!("`KUBERNETES_EXEC_INFO`: {error}"))?;
    let asked = info.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    [EXEC_API, EARLIER_EXEC_API].into_iter().find(|api| *api == asked).ok_or_else(|| {
        let asked = asked.escape_debug();
        format!("the program asks for version `{asked}`; write `apiVersion: {EXEC_API}` under `exec` in its kubeconfig")
            .into()
    })
}

/// Writes the context `name` for kubectl, in which it asks this program for its credential. Returns the file.
pub fn write_context(name: &str, address: &Address, ca: Option<&Path>) -> Result<PathBuf, Failure> {
    let files = kubeconfig::Files::from_environment()?;
    files.write(&context(name, address, ca)?)?;
    Ok(files.first)
}

/// Whether [`write_context`] would currently succeed.
pub fn check_context(name: &str, address: &Address, ca: Option<&Path>) -> Result<(), Failure> {
    kubeconfig::Files::from_environment()?.check(&context(name, address, ca)?)
}

fn context<'a>(name: &'a str, address: &'a Address, ca: Option<&Path>) -> Result<kubeconfig::Context<'a>, Failure> {
    let (ca, program) = (absolute(ca)?.map(text).transpose()?, text(env::current_exe()?)?);
    Ok(kubeconfig::Context { name, server: address.as_str(), ca, program })
}

/// The absolute path of a file with authorities, in a form that can be stored as text.
fn absolute(ca: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let ca = ca.map(std::path::absolute).transpose()?;
    ca.map(|ca| Ok(text(ca)?.into())).transpose()
}

/// A path as text, since JSON and YAML have no other form.
fn text(path: PathBuf) -> Result<String, Failure> {
    path.into_os_string().into_string().map_err(|path| {
        let why =
            "the path is not UTF-8, and cannot be written down for later; give the file or its folder another name";
        format!("{}: {why}", Path::new(&path).display()).into()
    })
}

/// The command that signs in again with the same trust, quoted for a shell.
fn again(address: &Address, ca: Option<&Path>) -> String {
    let Some(ca) = ca else { return format!("doorward login {address}") };
    let ca = terminal::line(&ca.display().to_string());
    let is_plain = ca.chars().all(|character| character.is_alphanumeric() || "/._-+@:,".contains(character));
    let ca = if is_plain { ca } else { format!("'{}'", ca.replace('\'', r"'\''")) };
    format!("doorward login {address} --ca {ca}")
}

/// The Doorward of a stored session.
fn server(address: &Address, entry: &Entry) -> Result<Server, Failure> {
    Server::new(address, entry.ca.as_deref()).map_err(|why| match lost_ca(entry) {
        Some(_) => format!("{why}; say where it is now: `doorward login {address} --ca FILE`").into(),
        None => why.into(),
    })
}

/// The file with the authorities of a session's Doorward, if it was removed.
fn lost_ca(entry: &Entry) -> Option<&Path> {
    entry.ca.as_deref().filter(|ca| matches!(ca.try_exists(), Ok(false)))
}

fn kept(address: Option<&Address>) -> Result<(Address, Entry), Failure> {
    let kept = SessionFile::read()?;
    match address {
        Some(address) => {
            let entry = kept.get(address);
            let entry = entry.ok_or_else(|| format!("you are not signed in; run `doorward login {address}`"))?;
            Ok((address.clone(), entry.clone()))
        }
        None => kept.only(),
    }
}

/// The name of this machine, reduced to characters of host names.
fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| env::var("HOSTNAME").ok());
    let name = name.unwrap_or_default();
    let plain = |character: &char| character.is_ascii_alphanumeric() || "-._".contains(*character);
    let name: String = name.trim().chars().filter(plain).take(63).collect();
    if name.is_empty() { "this-machine".to_owned() } else { name }
}

/// Starts a browser: the one in `BROWSER`, else the desktop's. Returns whether it was started.
fn open_browser(url: &str) -> bool {
    let desktop = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let program = env::var("BROWSER").ok().filter(|program| !program.is_empty());
    let mut command = Command::new(program.as_deref().unwrap_or(desktop));
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().is_ok()
}

fn state_folder() -> io::Result<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let folder = folder.ok_or_else(|| io::Error::other("neither `XDG_STATE_HOME` nor `HOME` names a folder"))?;
    Ok(folder.join("doorward"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_origin_and_clear_text_stays_on_this_machine() {
        for (text, expected) in [
            ("https://k8s.example.com", Some("https://k8s.example.com")),
            ("https://K8s.example.com:443/", Some("https://k8s.example.com")),
            ("k8s.example.com:8443", Some("https://k8s.example.com:8443")),
            ("http://localhost:8080", Some("http://localhost:8080")),
            ("http://k8s.example.com", None),
            ("http://127.0.0.1.example.com", None),
            ("ftp://k8s.example.com", None),
            ("https://k8s.example.com/path", None),
            ("https://user@k8s.example.com", None),
            ("https://", None),
            ("", None),
        ] {
            let parsed = text.parse::<Address>();
            assert_eq!(parsed.as_ref().ok().map(Address::as_str), expected, "{text}");
        }
    }

    #[test]
    fn clear_text_is_blamed_only_where_the_address_is_otherwise_right() {
        for (text, why) in [
            ("http://localhost:28480/path", "write the address of a host"),
            ("http://user:word@localhost:28480", "write the address of a host"),
            ("http://localhost?a", "write the address of a host"),
            ("http://", "write the address of a host"),
            ("http://k8s.example.com", "write `https://`"),
        ] {
            let refused = text.parse::<Address>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_stored_is_refused_before_the_login() {
        use std::os::unix::ffi::OsStrExt;

        let path = Path::new(std::ffi::OsStr::from_bytes(b"/etc/ca-\xff.pem"));
        let address = "https://k8s.example.com".parse().unwrap();
        let refused = context("build", &address, Some(path)).unwrap_err().to_string();
        assert!(refused.contains("/etc/ca-") && refused.contains("not UTF-8"), "{refused}");
        assert!(absolute(Some(path)).is_err(), "without a context too");
        assert_eq!(absolute(Some(Path::new("/etc/ca.pem"))).unwrap(), Some("/etc/ca.pem".into()));
    }

    /// Older programs were told to use a version that they do not know.
    #[test]
    fn a_program_is_answered_in_the_version_that_it_asks_by() {
        let asks = |api: &str| json!({"apiVersion": api, "kind": "ExecCredential"}).to_string();
        for api in [EXEC_API, EARLIER_EXEC_API] {
            assert_eq!(exec_api_of(Some(&asks(api))).unwrap(), api);
        }
        assert_eq!(exec_api_of(None).unwrap(), EXEC_API);
        for info in [&*asks("client.authentication.k8s.io/v1alpha1"), "{}", "{"] {
            let refused = exec_api_of(Some(info)).unwrap_err().to_string();
            assert!(!refused.contains("kubectl"), "others ask too: {refused}");
        }
    }

    #[test]
    fn the_name_of_a_machine_is_one_that_doorward_takes() {
        let name = machine();
        assert!((1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
    }
}
