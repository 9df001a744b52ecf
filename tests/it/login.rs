//! `doorward login`: a program's own session, obtained through the browser, and attempts to abuse it.

mod device;
mod replicas;
mod shell;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use crate::{
    harness::{Answer, Issuer, OidcProvider, Raw, Upstream, browse, found, free_port, until, within},
    login_fixture::{CHALLENGE, Changes, LoginFixture, RULE, VERIFIER},
    pages::screenshots,
};

/// Signs that a page of another site posts a form.
const FORGED: [(&str, &[&str]); 4] = [
    ("no origin", &[]),
    ("another origin", &["Origin: http://evil.example"]),
    ("another site", &["Sec-Fetch-Site: cross-site"]),
    ("a sandboxed page", &["Origin: null"]),
];

const STATE: &str = "a-state-of-the-program";

/// Adds another host.
const HOSTS: Changes<'_> = &[
    (
        "rules:\n",
        "  - {name: other, kind: http, hosts: [other.localhost], schemes: [session], upstream: web}\nrules:\n",
    ),
    (RULE, "{id: people, on: {routes: [web, other]}, who: {users: [alice]}, do: allow}"),
];

async fn world() -> (LoginFixture, Issuer) {
    LoginFixture::scripted(HOSTS).await
}

async fn certified() -> (LoginFixture, OidcProvider) {
    LoginFixture::certified(&json!({}), HOSTS).await
}

impl LoginFixture {
    /// Presses the button of the page, as a browser with this origin, and returns the callback's response.
    async fn allow(&self, page: &str) -> Answer {
        let away = self.post(&format!("{page}&issuer=a"), &[&format!("Origin: {}", self.origin())], "").await;
        assert_eq!(away.status, 303, "{}{}", away.head, away.text());
        self.come_back(&away).await
    }

    /// A code for a program on a port where nothing listens.
    async fn code(&self) -> String {
        let back = self.allow(&page(&[])).await;
        let location = back.header("location").unwrap();
        let code = location.strip_prefix("http://127.0.0.1:7000/?code=").expect(location);
        code.strip_suffix(&format!("&state={STATE}")).expect(location).to_owned()
    }

    async fn redeem(&self, code: &str, verifier: &str) -> Answer {
        let form = format!("grant_type=authorization_code&code={code}&code_verifier={verifier}");
        self.submit("/.doorward/login/token", &[], &form).await
    }

    async fn handle(&self) -> String {
        let answer = self.redeem(&self.code().await, VERIFIER).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// The status of a page for a program with this handle.
    async fn status_of(&self, handle: &str) -> u16 {
        self.status(&format!("Authorization: Bearer {handle}")).await
    }
}

/// The address of the consent page, with some of its parameters changed.
fn page(changed: &[(&str, &str)]) -> String {
    let parameters = [("port", "7000"), ("state", STATE), ("code_challenge", CHALLENGE), ("machine", "laptop")];
    let value = |name: &str, value: &'static str| {
        changed.iter().find(|(changed, _)| *changed == name).map_or(value, |(_, value)| value).to_owned()
    };
    let known = parameters.iter().map(|(name, given)| format!("{name}={}", value(name, given)));
    let others = changed.iter().filter(|(name, _)| parameters.iter().all(|(known, _)| known != name));
    let all: Vec<String> = known.chain(others.map(|(name, value)| format!("{name}={value}"))).collect();
    format!("/.doorward/login?{}", all.join("&"))
}

/// A person's shell, with a home directory of its own.
pub struct Shell(TempDir);

impl Shell {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_doorward")), arguments)
    }

    pub fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HOME", self.0.path())
            .env_remove("XDG_STATE_HOME")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn kept(&self) -> PathBuf {
        self.0.path().join(".local/state/doorward/sessions.json")
    }

    /// The exit code, and the output.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = within(self.command(arguments).output()).await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// Starts a login. Returns the address to open, and the code that the page must show.
    pub async fn login(&self, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStderr>>, String, String) {
        let mut command = self.command(&[&["login", "--no-browser"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut url, mut code) = (None, None);
        while url.is_none() || code.is_none() {
            let line = within(lines.next_line()).await.unwrap().expect("it ended");
            if line.trim().starts_with("http") {
                url = Some(line.trim().to_owned());
            }
            if let Some((_, shown)) = line.split_once("shows the code ") {
                code = Some(shown.trim_end_matches('.').to_owned());
            }
        }
        (child, lines, url.unwrap(), code.unwrap())
    }
}

#[tokio::test]
async fn a_shell_signs_in_by_way_of_the_browser_and_has_a_session_of_its_own() {
    let (world, _provider) = certified().await;
    let (shell, origin) = (Shell::new(), world.origin());
    let (mut child, _lines, url, code) = shell.login(&["--kubeconfig", "build", &origin]).await;
    let saw = browse(&json!({"scenario": "program", "url": url, "screenshots": screenshots()})).await;
    let asked = saw["asked"].as_str().unwrap();
    assert!(asked.contains(&code) && asked.contains("wants to act as you"), "{asked}");
    assert!(saw["ended"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{saw}");
    assert!(saw["told"].as_str().unwrap().contains("As alice"), "{saw}");
    assert_eq!(saw["faults"], json!([]));
    let cookies = saw["cookies"].to_string();
    assert!(!cookies.contains("\"__Host-doorward\""), "the browser itself is not signed in: {cookies}");
    assert!(within(child.wait()).await.unwrap().success());
    assert_eq!(fs::metadata(shell.kept()).unwrap().permissions().mode() & 0o777, 0o600);

    let (status, who) = shell.run(&["whoami"]).await;
    assert_eq!(status, Some(0), "{who}");
    assert!(who.contains("alice"), "{who}");
    // The same as kubectl does with the context.
    let config: Value = {
        let text = fs::read_to_string(shell.0.path().join(".kube/config")).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    };
    assert_eq!(config["current-context"], "build");
    let exec = &config["users"][0]["user"]["exec"];
    let arguments: Vec<&str> = exec["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let (status, said) = shell.run(&arguments).await;
    assert_eq!(status, Some(0), "{said}");
    let credential: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(credential["apiVersion"], "client.authentication.k8s.io/v1");
    let handle = credential["status"]["token"].as_str().unwrap().to_owned();
    assert!(handle.starts_with("dws_") && credential["status"]["expirationTimestamp"].is_string(), "{said}");
    assert_eq!(world.status_of(&handle).await, 200);

    let (status, said) = shell.run(&["logout"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(world.status_of(&handle).await, 401, "it has ended there too");
    let (status, said) = shell.run(&["whoami"]).await;
    assert_eq!(status, Some(1));
    assert!(said.contains("run `doorward login"), "{said}");
}

/// Also for requests that no rule decides.
#[tokio::test]
async fn the_trail_records_sign_in_sign_out_and_views_of_own_pages() {
    let (world, _issuer) = world().await;
    let origin = format!("Origin: {}", world.origin());
    let cookie = world.log_in().await;
    for (path, status) in [("/.doorward/whoami", 200), ("/.doorward/sessions", 200), ("/.doorward/device", 200)] {
        assert_eq!(world.get(path, &[&cookie, "Accept: text/html"]).await.status, status, "{path}");
    }
    for path in ["/.doorward/sessions/end?others=1", "/oauth2/sign_out"] {
        let answer = world.post(path, &[&cookie, &origin], "").await;
        assert_eq!(answer.status, 303, "{path}: {}", answer.text());
    }
    assert_eq!(world.get("/oauth2/sign_in", &[]).await.status, 200);
    let paths = [
        "/oauth2/callback",
        "/.doorward/whoami",
        "/.doorward/sessions",
        "/.doorward/device",
        "/.doorward/sessions/end",
        "/oauth2/sign_out",
        "/oauth2/sign_in",
    ];
    let lines = found(async || {
        let trail = world.doorward.audit();
        let line_of = |path: &str| trail.iter().find(|line| line["http_request"]["url"]["path"] == path).cloned();
        paths.iter().map(|path| line_of(path)).collect::<Option<Vec<Value>>>()
    })
    .await;
    let (nobody, lines) = lines.split_last().unwrap();
    let session = lines[0]["actor"]["session"].clone();
    assert!(session["uid"].as_str().is_some_and(|uid| !uid.is_empty()), "{}", lines[0]);
    for line in lines {
        assert_eq!((&line["actor"]["user"]["uid"], &line["actor"]["session"]), (&json!("alice"), &session), "{line}");
        assert_eq!(line["unmapped"]["principal"]["credential"], "session", "{line}");
    }
    assert_eq!(nobody["actor"], Value::Null, "{nobody}");

    // A program's session: who approved it, which program fetched it, and who ended it.
    let handle = world.handle().await;
    let ended = world.submit("/.doorward/login/end", &[&format!("Authorization: Bearer {handle}")], "").await;
    assert_eq!(ended.status, 200, "{}", ended.text());
    let of = |path: &str| {
        let trail = world.doorward.audit();
        let mut lines = trail.into_iter().filter(|line| line["http_request"]["url"]["path"] == path);
        lines.next_back().map(|line| line["actor"].clone()).unwrap_or_default()
    };
    let is_program = |actor: &Value| actor["user"]["uid"] == "alice" && actor["session"]["uid"] != session["uid"];
    let paths = ["/oauth2/callback", "/.doorward/login/token", "/.doorward/login/end"];
    until(async || paths.iter().all(|path| is_program(&of(path)))).await;
}

#[tokio::test]
async fn a_person_who_cancels_is_not_signed_in() {
    let (world, _issuer) = world().await;
    let shell = Shell::new();
    let (mut child, mut lines, url, _) = shell.login(&[&world.origin()]).await;
    let saw = browse(&json!({"scenario": "program", "url": url, "cancel": true})).await;
    assert!(saw["told"].as_str().unwrap().contains("declined"), "{saw}");
    assert_eq!(saw["faults"], json!([]));
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(1));
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said += &line;
    }
    assert!(said.contains("you, or the provider, declined") && !shell.kept().exists(), "{said}");
}

#[tokio::test]
async fn a_code_goes_to_this_machine_only_and_only_where_the_person_pressed_the_button() {
    let (world, _issuer) = world().await;
    // The challenge appears in addresses unchanged.
    let challenge = |last: &str| format!("{}{last}", CHALLENGE.split_at(42).0);
    for changed in [
        ("redirect_uri", "http://evil.example/"),
        ("port", "80"),
        ("port", "65536"),
        ("port", "7000@evil.example"),
        ("port", "%2B7000"),
        ("state", "short"),
        ("state", &*"a".repeat(129)),
        ("state", "with%0d%0aa-line-of-its-own"),
        ("code_challenge", VERIFIER.split_at(40).0),
        ("code_challenge", &*challenge("%26")),
        ("code_challenge", &*challenge("%2B")),
        ("code_challenge_method", "plain&code_challenge=x"),
        ("machine", ""),
        ("machine", "laptop%3Cscript%3E"),
        ("machine", &*"a".repeat(65)),
    ] {
        let answer = world.get(&page(&[changed]), &[]).await;
        assert_eq!(answer.status, 400, "{changed:?}: {}", answer.text());
    }
    let longest = page(&[("state", &*"a".repeat(128)), ("machine", &*"a".repeat(64))]);
    assert_eq!(world.get(&longest, &[]).await.status, 200);
    let good = page(&[]);
    let asked = world.get(&good, &[]).await;
    assert_eq!(asked.status, 200);
    assert!(asked.text().contains("laptop") && asked.all("set-cookie").is_empty(), "{}", asked.text());
    for (row, more) in FORGED {
        let answer = world.post(&format!("{good}&issuer=a"), more, "").await;
        assert_eq!(answer.status, 403, "{row}: {}", answer.text());
        assert!(answer.header("location").is_none(), "{row}");
    }
}

#[tokio::test]
async fn a_code_is_good_once_for_a_minute_and_for_its_program() {
    let (world, _issuer) = world().await;
    let refused = |answer: &Answer, why: &str| {
        assert_eq!(answer.status, 400, "{}", answer.text());
        let told = answer.json();
        assert_eq!(told["error"], "invalid_grant");
        assert!(told["error_description"].as_str().unwrap().contains(why), "{told}");
    };
    // Stolen on its way and presented without the verifier: it is used up.
    let stolen = world.code().await;
    refused(&world.redeem(&stolen, &VERIFIER.replace('d', "e")).await, "bound to another program");
    refused(&world.redeem(&stolen, VERIFIER).await, "used before");

    // Presented twice: the first session ends, as one of the two stole the code.
    let code = world.code().await;
    let first = world.redeem(&code, VERIFIER).await.json();
    let handle = first["access_token"].as_str().unwrap();
    assert_eq!((first["token_type"].as_str(), first["username"].as_str()), (Some("Bearer"), Some("alice")));
    assert_eq!(world.status_of(handle).await, 200);
    refused(&world.redeem(&code, VERIFIER).await, "used before");
    assert_eq!(world.status_of(handle).await, 401);

    refused(&world.redeem("none-of-ours", VERIFIER).await, "not known");
    // A malformed request gets no answer, and uses nothing up.
    let code = world.code().await;
    let (line, kind) = ("POST /.doorward/login/token HTTP/1.1", "Content-Type: application/x-www-form-urlencoded");
    let (own, other) = (format!("Host: {}", world.host), format!("Host: other.{}", world.host));
    let verified =
        |verifier: &str| format!("grant_type=authorization_code&code={code}&code_verifier={verifier}").into_bytes();
    for (form, error, why) in [
        (Vec::new(), "unsupported_grant_type", "neither"),
        (b"grant_type=password&code=x&code_verifier=y".to_vec(), "unsupported_grant_type", "neither"),
        (b"grant_type=authorization_code".to_vec(), "invalid_request", "`code` is missing"),
        (verified(&"a".repeat(42)), "invalid_request", "RFC 7636"),
        (verified(&"a".repeat(129)), "invalid_request", "RFC 7636"),
        (verified(&format!("{}%20", "a".repeat(42))), "invalid_request", "RFC 7636"),
        ([&verified(VERIFIER)[..], b"&more=\xff"].concat(), "invalid_request", "not UTF-8"),
    ] {
        let answer = world.doorward.send(&[line, &own, kind], &form).await;
        let (told, form) = (answer.json(), String::from_utf8_lossy(&form));
        assert_eq!((answer.status, told["error"].as_str()), (400, Some(error)), "{form}: {told}");
        assert!(told["error_description"].as_str().unwrap().contains(why), "{form}: {told}");
    }
    let answer = world.redeem(&code, VERIFIER).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let code = world.code().await;
    refused(&world.redeem(&code, &"a".repeat(128)).await, "bound to another program");
    // Only for the host where it began.
    let form = format!("grant_type=authorization_code&code={}&code_verifier={VERIFIER}", world.code().await);
    refused(&world.doorward.send(&[line, &other, kind], form.as_bytes()).await, "another host");

    let late = world.code().await;
    world.doorward.set_clock_ahead(61);
    refused(&world.redeem(&late, VERIFIER).await, "older than a minute");
}

#[tokio::test]
async fn a_handle_is_worth_what_a_session_is_and_nothing_as_a_cookie() {
    let (world, _issuer) = world().await;
    let handle = world.handle().await;
    assert_eq!(world.status_of(&handle).await, 200);
    // Neither kind of session is accepted as the other, nor on another host.
    let id = handle.strip_prefix("dws_").unwrap();
    let as_cookie = world.get("/page", &[&format!("Cookie: __Host-doorward={id}")]).await;
    assert_eq!(as_cookie.status, 401, "attacks:Z44");
    let cookie = world.log_in().await;
    let browsers = cookie.strip_prefix("Cookie: __Host-doorward=").unwrap();
    assert_eq!(world.status_of(&format!("dws_{browsers}")).await, 401, "attacks:Z44");
    let bearer = format!("Authorization: Bearer {handle}");
    let elsewhere = world.doorward.get("/page", &[&format!("Host: other.{}", world.host), &bearer]).await;
    assert_eq!(elsewhere.status, 401);
    for damaged in ["dws_", "dws_x", &handle[..handle.len() - 1], &format!("{handle}x"), &handle.to_uppercase()] {
        assert_eq!(world.status_of(damaged).await, 401, "{damaged}");
    }
    // The person sees it in the list with their browsers, and ends it there.
    let listed = world.get("/.doorward/sessions", &[&cookie, "Accept: application/json"]).await;
    let sessions = listed.json();
    let text = sessions.to_string();
    assert!(text.contains("doorward login on laptop") && !text.contains(id), "{text}");
    let origin = format!("Origin: {}", world.origin());
    let ended = world.post("/.doorward/sessions/end?others=yes", &[&cookie, &origin], "").await;
    assert!((300..400).contains(&ended.status), "{}{}", ended.head, ended.text());
    assert_eq!(world.status_of(&handle).await, 401);
    assert_eq!(world.get("/page", &[&cookie]).await.status, 200, "the browser's goes on");

    let again = world.handle().await;
    let (status, said) = world.sessions("end").await;
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(world.status_of(&again).await, 401);
    let trail: String = world.doorward.audit().iter().map(Value::to_string).collect();
    assert!(!trail.contains(id), "no handle is in the trail");
}

#[tokio::test]
async fn other_requests_to_the_loopback_address_end_no_login() {
    let (world, _issuer) = world().await;
    let shell = Shell::new();
    let (mut child, _lines, url, _) = shell.login(&[&world.origin()]).await;
    let back = world.allow(url.strip_prefix(&world.origin()).unwrap()).await;
    let location = back.header("location").unwrap();
    let (address, path) = location.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let ask = async |path: &str, host: &str| {
        let mut raw = Raw::connect(address.parse().unwrap()).await;
        raw.send(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        raw.answer().await.status
    };
    assert_eq!(ask("?code=stolen&state=guessed", address).await, 404);
    assert_eq!(ask(path, "evil.example").await, 404);
    assert_eq!(ask("favicon.ico", address).await, 404);
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(ask(path, address).await, 200);
    assert!(within(child.wait()).await.unwrap().success());
}
