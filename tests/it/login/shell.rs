//! `doorward login` with existing state on a person's machine: an older session, kubectl and its file.

use super::*;

const EXEC_INFO: &str = "KUBERNETES_EXEC_INFO";

impl LoginFixture {
    /// Signs a shell in, with the browser of a person who presses the button.
    async fn sign_in(&self, shell: &Shell, arguments: &[&str]) -> String {
        let origin = self.origin();
        let (mut child, _lines, url, _) = shell.login(&[arguments, &[&origin]].concat()).await;
        let back = self.allow(url.strip_prefix(&origin).unwrap()).await;
        let (address, path) =
            back.header("location").unwrap().strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut raw = Raw::connect(address.parse().unwrap()).await;
        raw.send(format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200);
        assert!(within(child.wait()).await.unwrap().success());
        let kept: Value = serde_json::from_str(&fs::read_to_string(shell.kept()).unwrap()).unwrap();
        kept["sessions"][&origin]["handle"].as_str().unwrap().to_owned()
    }
}

/// kubectl's input to its plugin.
fn exec_info(api: &str) -> String {
    json!({"apiVersion": api, "kind": "ExecCredential", "spec": {"interactive": false}}).to_string()
}

#[tokio::test]
async fn a_new_login_ends_the_session_that_the_shell_had_before() {
    let (world, _issuer) = world().await;
    let shell = Shell::new();
    let first = world.sign_in(&shell, &[]).await;
    assert_eq!(world.status_of(&first).await, 200);
    let second = world.sign_in(&shell, &[]).await;
    assert_eq!((world.status_of(&first).await, world.status_of(&second).await), (401, 200));
    let (_, said) = world.sessions("list").await;
    assert_eq!(said.matches("doorward login on").count(), 1, "{said}");
}

#[tokio::test]
async fn a_context_that_cannot_be_written_is_reported_before_the_login() {
    let (world, _issuer) = world().await;
    let shell = Shell::new();
    let kube = shell.0.path().join(".kube");
    fs::create_dir(&kube).unwrap();
    fs::write(kube.join("config"), "users: [{name: build, user: {token: theirs}}]").unwrap();
    let (status, said) = shell.run(&["login", "--no-browser", "--kubeconfig", "build", &world.origin()]).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("another `build`") && !said.contains("Sign in with your browser"), "{said}");
}

#[tokio::test]
async fn an_address_without_a_doorward_is_reported_before_the_login() {
    let (upstream, shell) = (Upstream::start().await, Shell::new());
    for (url, told) in
        [(upstream.url(), "is it a Doorward?"), (format!("http://127.0.0.1:{}", free_port()), "the connection failed")]
    {
        let (status, said) = shell.run(&["login", "--no-browser", &url]).await;
        assert_eq!(status, Some(1), "{url}: {said}");
        assert!(said.contains(told) && !said.contains("Sign in with your browser"), "{url}: {said}");
    }
}

#[tokio::test]
async fn a_person_who_moved_the_authorities_file_can_sign_out_and_in_again() {
    let (world, _issuer) = world().await;
    let (shell, origin) = (Shell::new(), world.origin());
    world.sign_in(&shell, &[]).await;
    let mut kept: Value = serde_json::from_str(&fs::read_to_string(shell.kept()).unwrap()).unwrap();
    kept["sessions"][&origin]["ca"] = json!("/nowhere/ca.pem");
    fs::write(shell.kept(), kept.to_string()).unwrap();
    let (status, said) = shell.run(&["whoami"]).await;
    let told = format!("say where it is now: `doorward login {origin} --ca FILE`");
    assert!(status == Some(1) && said.contains("/nowhere/ca.pem") && said.contains(&told), "{said}");
    let (status, said) = shell.run(&["logout"]).await;
    assert!(status == Some(1) && said.contains(&format!("{origin}/.doorward/sessions ends it")), "{said}");
    let (_, said) = shell.run(&["logout"]).await;
    assert!(said.contains("you are not signed in"), "{said}");
}

/// Otherwise the code would be used up, and the session would continue with nobody holding it.
#[tokio::test]
async fn a_session_that_cannot_be_stored_is_reported_before_the_login_or_ended() {
    let (world, _issuer) = world().await;
    let (shell, origin) = (Shell::new(), world.origin());
    let first = world.sign_in(&shell, &[]).await;
    fs::set_permissions(shell.kept(), fs::Permissions::from_mode(0o644)).unwrap();
    for way in ["--no-browser", "--device"] {
        let (status, said) = shell.run(&["login", way, &origin]).await;
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("run `chmod 600`") && !said.contains("browser"), "{way}: {said}");
    }
    fs::set_permissions(shell.kept(), fs::Permissions::from_mode(0o600)).unwrap();
    // It fails while the person signs in.
    let (mut child, mut lines, url, _) = shell.login(&[&origin]).await;
    fs::write(shell.kept(), "{").unwrap();
    let back = world.allow(url.strip_prefix(&origin).unwrap()).await;
    let (address, path) = back.header("location").unwrap().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut raw = Raw::connect(address.parse().unwrap()).await;
    raw.send(format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
    assert_eq!(raw.answer().await.status, 403);
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(1));
    let mut said = String::new();
    while let Some(line) = within(lines.next_line()).await.unwrap() {
        said.push_str(&line);
    }
    assert!(said.contains("cannot be stored, and was ended"), "{said}");
    let (_, said) = world.sessions("list").await;
    assert_eq!(said.matches("doorward login on").count(), 1, "the first alone: {said}");
    assert_eq!(world.status_of(&first).await, 200);
}

#[tokio::test]
async fn kubectl_gets_a_remedy_if_there_is_no_credential_for_it() {
    let (issuer, upstream, dir) = (Issuer::start().await, Upstream::start().await, tempfile::tempdir().unwrap());
    // At a port that nobody else gets once it has ended.
    let world = LoginFixture::at(issuer.url(), free_port(), upstream, dir, HOSTS).await;
    let (shell, origin) = (Shell::new(), world.origin());
    let ask = async |api: &str| {
        let mut command = shell.command(&["credential", &origin]);
        let output = within(command.env(EXEC_INFO, exec_info(api)).output()).await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let v1 = "client.authentication.k8s.io/v1";
    let (status, said) = ask(v1).await;
    assert!(status == Some(1) && said.contains(&format!("run `doorward login {origin}`")), "{said}");

    let handle = world.sign_in(&shell, &[]).await;
    let (status, said) = ask(v1).await;
    assert!(status == Some(0) && said.contains(&handle), "{said}");
    let (status, said) = ask("client.authentication.k8s.io/v1beta1").await;
    assert!(status == Some(0) && said.contains(&handle) && said.contains("v1beta1"), "{said}");
    let (status, said) = ask("client.authentication.k8s.io/v1alpha1").await;
    assert!(
        status == Some(1) && said.contains("v1alpha1") && said.contains(&format!("write `apiVersion: {v1}`")),
        "{said}"
    );
    assert!(!said.contains(&handle), "{said}");

    // The session ended there, which is noticed here only by asking.
    assert_eq!(world.sessions("end").await.0, Some(0));
    let (status, said) = ask(v1).await;
    assert_eq!(status, Some(1), "{said}");
    let told = format!("the session at {origin} has ended; run `doorward login {origin}`");
    assert!(said.contains(&told) && !said.contains(&handle), "{said}");

    // If the server cannot be asked, kubectl gets the stored session and reports the problem itself.
    let handle = world.sign_in(&shell, &[]).await;
    drop(world);
    let (status, said) = ask(v1).await;
    assert!(status == Some(0) && said.contains(&handle), "{said}");
}

/// kubectl ignores `ALL_PROXY` and speaks SOCKS if `HTTPS_PROXY` says so, but got no credential in either case.
#[tokio::test]
async fn kubectl_gets_its_credential_where_the_environment_names_another_kind_of_proxy() {
    let (world, _issuer) = world().await;
    let shell = Shell::new();
    let handle = world.sign_in(&shell, &[]).await;
    // Over TLS, for which proxies are used, and with nothing listening.
    let nowhere = format!("https://127.0.0.1:{}", free_port());
    let mut kept: Value = serde_json::from_str(&fs::read_to_string(shell.kept()).unwrap()).unwrap();
    kept["sessions"][&nowhere] = kept["sessions"][&world.origin()].clone();
    fs::write(shell.kept(), kept.to_string()).unwrap();
    let run = async |arguments: &[&str], (name, value): (&str, &str)| {
        let output = within(shell.command(arguments).env(name, value).output()).await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let socks = "socks5://127.0.0.1:1";
    for variable in [("ALL_PROXY", socks), ("HTTPS_PROXY", socks), ("HTTPS_PROXY", "http://127.0.0.1:1")] {
        let (status, said) = run(&["credential", &nowhere], variable).await;
        assert!(status == Some(0) && said.contains(&handle), "{variable:?}: {said}");
    }
    let (_, said) = run(&["whoami", &nowhere], ("ALL_PROXY", socks)).await;
    assert!(!said.contains("ALL_PROXY"), "{said}");
    let (status, said) = run(&["whoami", &nowhere], ("HTTPS_PROXY", socks)).await;
    assert!(status == Some(1) && said.contains("`HTTPS_PROXY`"), "{said}");
}

#[tokio::test]
async fn a_terminal_that_gets_no_session_says_why() {
    let (world, _issuer) = world().await;
    let shell = Shell::new();
    let mut command = shell.command(&["login", "--device", &world.origin()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let code = loop {
        let line = within(lines.next_line()).await.unwrap().expect("it ended");
        if let Some(code) = line.strip_prefix("and type the code ") {
            break code.trim_end_matches('.').to_owned();
        }
    };
    let origin = format!("Origin: {}", world.origin());
    let declined = world.submit("/.doorward/device?decline", &[&origin], &format!("code={code}")).await;
    assert_eq!(declined.status, 200, "{}", declined.text());
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(1));
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said += &line;
    }
    assert!(said.contains("the person declined"), "{said}");
}
