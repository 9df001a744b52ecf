use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use serde_json::json;

use super::{super::Upstream, *};

/// Appears wherever a secret would.
const SECRET: &str = "hunter2";

struct Bench {
    folder: tempfile::TempDir,
    /// The kubeconfig, in a folder of its own.
    document: Value,
    context: Option<String>,
}

/// A certificate that signs itself, and its key.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["doorward".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn encoded(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

impl Bench {
    /// A kubeconfig as kubectl writes it.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kube")).unwrap();
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "preferences": {},
            "clusters": [
                {"name": "c", "cluster": {
                    "server": "https://api.test:6443", "certificate-authority-data": encoded(&certificate().0),
                }},
                {"name": "other", "cluster": {"server": "https://other.test", "insecure-skip-tls-verify": true}},
            ],
            "users": [{"name": "u", "user": {"token": SECRET}}, {"name": "ops", "user": {"exec": {"command": "aws"}}}],
            "contexts": [
                {"name": "prod", "context": {"cluster": "c", "user": "u", "namespace": "ci"}},
                {"name": "staging", "context": {"cluster": "other", "user": "ops"}},
            ],
            "current-context": "prod",
        });
        Self { folder, document, context: None }
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        fs::write(self.folder.path().join("kube").join(name), text).unwrap();
        self
    }

    /// Sets the value at a pointer; null removes it.
    fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self.document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        parent.insert(key.to_owned(), value);
        self
    }

    fn resolve(&self) -> (Option<Arc<Upstream>>, Resolver) {
        self.write("config", &self.document.to_string());
        self.resolve_as_it_stands()
    }

    fn resolve_as_it_stands(&self) -> (Option<Arc<Upstream>>, Resolver) {
        let kubeconfig = json!({"file": "kube/config", "context": self.context});
        let entry = serde_json::from_value(json!({"name": "cluster", "kubeconfig": kubeconfig})).unwrap();
        let mut resolver = Resolver::new(self.folder.path());
        let at = At::root().key("upstreams").index(0);
        let upstream = Upstream::resolve(&entry, &raw::Limits::default(), &at, &mut resolver);
        assert_eq!(upstream.is_none(), resolver.report.has_errors());
        (upstream, resolver)
    }

    fn good(&self) -> Arc<Upstream> {
        let (upstream, resolver) = self.resolve();
        upstream.unwrap_or_else(|| panic!("{:?}", resolver.report))
    }

    /// The problems, each as place, message and help; none of them may show a secret.
    fn problems(&self) -> Vec<String> {
        Self::told(&self.resolve().1)
    }

    fn told(resolver: &Resolver) -> Vec<String> {
        let problems = resolver.report.problems().iter();
        let told: Vec<String> = problems
            .map(|problem| format!("{} {} | {}", problem.at, problem.message, problem.help.as_deref().unwrap_or("")))
            .collect();
        assert!(!told.iter().any(|told| told.contains(SECRET)), "{told:?}");
        told
    }
}

const USER_AT: &str = "/users/0/user";
const CLUSTER_AT: &str = "/clusters/0/cluster";

#[test]
fn a_token_goes_to_the_server_of_the_current_context() {
    let bench = Bench::new();
    let upstream = bench.good();
    assert_eq!(upstream.authorization().unwrap().unwrap(), &format!("Bearer {SECRET}"));
    assert!(upstream.authorization().unwrap().unwrap().is_sensitive());
    assert_eq!(upstream.origin(), "https://api.test:6443");
    assert_eq!(upstream.tls.as_ref().unwrap().server_name, "api.test".try_into().unwrap());
    assert!(upstream.knows_us());
}

#[test]
fn the_context_that_is_named_is_taken_and_what_is_wrong_with_others_is_not_looked_at() {
    let mut bench = Bench::new();
    bench.set("/current-context", json!("staging")).context = Some("prod".to_owned());
    bench.good();
    bench.context = None;
    let problems = bench.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("`insecure-skip-tls-verify` in the cluster `other`"), "{problems:?}");
    assert!(problems[1].contains("`exec` in the user `ops`"), "{problems:?}");
    bench.context = Some("prd".to_owned());
    let problems = bench.problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("/upstreams/0/kubeconfig/context "), "{problems:?}");
    assert!(problems[0].ends_with("there is no context `prd` | did you mean `prod`?"), "{problems:?}");
}

#[test]
fn the_token_file_takes_precedence_and_is_relative_to_the_kubeconfig() {
    let mut bench = Bench::new();
    bench.set("/users/0/user/tokenFile", json!("token")).write("token", "rotated\n");
    assert_eq!(bench.good().authorization().unwrap().unwrap(), "Bearer rotated");
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), "absolute").unwrap();
    bench.set("/users/0/user/tokenFile", json!(elsewhere.path()));
    assert_eq!(bench.good().authorization().unwrap().unwrap(), "Bearer absolute");
    // The token beside it is old.
    bench.set("/users/0/user/tokenFile", json!("gone"));
    let problems = bench.problems();
    assert!(problems[0].contains("kube/gone cannot be read"), "{problems:?}");
}

#[test]
fn data_and_files_make_the_same_connection_and_another_certificate_another() {
    let mut bench = Bench::new();
    let ((chain, key), (ca, _)) = (certificate(), certificate());
    bench.write("ca.pem", &ca).write("a.pem", &chain).write("a.key", &key);
    bench.set(CLUSTER_AT, json!({"server": "https://api.test:6443", "certificate-authority": "ca.pem"}));
    bench.set(USER_AT, json!({"client-certificate": "./a.pem", "client-key": "a.key"}));
    let by_files = bench.good();
    assert!(by_files.knows_us() && by_files.authorization().unwrap().is_none());
    let (_, resolver) = bench.resolve();
    let expected = ["a.key", "./a.pem", "ca.pem", "config"].map(|name| bench.folder.path().join("kube").join(name));
    assert_eq!(resolver.files(), &BTreeSet::from(expected), "all are watched");

    let written: raw::Upstream = serde_json::from_value(json!({
        "name": "cluster", "url": "https://api.test:6443",
        "tls": {"ca": "kube/ca.pem", "certificate": {"chain": "kube/a.pem", "key": "kube/a.key"}},
    }))
    .unwrap();
    let mut resolver = Resolver::new(bench.folder.path());
    let written = Upstream::resolve(&written, &raw::Limits::default(), &At::root(), &mut resolver).unwrap();
    assert_eq!(by_files.identity, written.identity);

    // With line breaks, as `base64` prints it.
    let folded: Vec<String> =
        encoded(&ca).as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line).into()).collect();
    bench.set("/clusters/0/cluster/certificate-authority", json!(""));
    bench.set("/clusters/0/cluster/certificate-authority-data", json!(folded.join("\r\n") + "\n"));
    bench.set(USER_AT, json!({"client-certificate-data": encoded(&chain), "client-key-data": encoded(&key)}));
    let by_data = bench.good();
    assert_eq!(by_data.identity, written.identity);

    bench.set("/users/0/user/token", json!("beside"));
    assert_eq!(bench.good().identity, written.identity, "a token is of a request, not of a connection");
    bench.set("/clusters/0/cluster/tls-server-name", json!("other.test"));
    assert_ne!(bench.good().identity, written.identity, "another name");
    bench.set("/clusters/0/cluster/tls-server-name", Value::Null);
    bench.set("/clusters/0/cluster/certificate-authority-data", Value::Null);
    assert_ne!(bench.good().identity, written.identity, "the authorities of the system");
    bench.set("/clusters/0/cluster/certificate-authority-data", json!(encoded(&ca)));
    let (chain, key) = certificate();
    bench.set(USER_AT, json!({"client-certificate-data": encoded(&chain), "client-key-data": encoded(&key)}));
    assert_ne!(bench.good().identity, written.identity, "another certificate");
}

#[test]
fn clear_text_is_accepted_on_loopback() {
    let mut bench = Bench::new();
    bench.set(CLUSTER_AT, json!({"server": "http://127.0.0.1:8001"}));
    let upstream = bench.good();
    assert!(upstream.tls.is_none() && upstream.authorization().unwrap().is_some());
}

#[test]
fn settings_without_effect_and_empty_ones_are_ignored() {
    let mut bench = Bench::new();
    bench.set("/clusters/0/cluster/insecure-skip-tls-verify", json!(false));
    bench.set("/clusters/0/cluster/disable-compression", json!(true));
    bench.set("/clusters/0/cluster/proxy-url", json!(""));
    bench.set("/clusters/0/cluster/extensions", json!([{"name": "minikube.sigs.k8s.io", "extension": {}}]));
    for (key, empty) in
        [("exec", Value::Null), ("as-groups", json!([])), ("as-user-extra", json!({})), ("username", json!(""))]
    {
        bench.set(&format!("{USER_AT}/{key}"), empty);
    }
    bench.good();
}

fn user(key: &str) -> String {
    format!("{USER_AT}/{key}")
}

fn cluster(key: &str) -> String {
    format!("{CLUSTER_AT}/{key}")
}

/// A name, a pointer and the value to set there, and words of the problem and of its remedy.
type Row = (&'static str, String, Value, &'static str, &'static str);

fn assert_refused(rows: impl IntoIterator<Item = Row>) {
    for (row, pointer, value, message, help) in rows {
        let mut bench = Bench::new();
        let problems = bench.set(&pointer, value).problems();
        assert_eq!(problems.len(), 1, "{row}: {problems:?}");
        let (told, cure) = problems[0].split_once(" | ").unwrap();
        assert!(told.starts_with("/upstreams/0/kubeconfig/file ") && told.contains("/kube/config"), "{row}: {told}");
        assert!(told.contains(message), "{row}: {told}");
        assert!(cure.contains(help), "{row}: {cure}");
    }
}

#[test]
fn unsupported_settings_of_a_user_are_refused_with_a_remedy() {
    assert_refused([
        ("exec", user("exec"), json!({"command": "aws", "env": [SECRET]}), "has `exec` in the user `u`", "`tokenFile`"),
        ("auth provider", user("auth-provider"), json!({"name": "gcp"}), "has `auth-provider`", "`tokenFile`"),
        ("username", user("username"), json!(SECRET), "has `username`", "use a token"),
        ("password", user("password"), json!(SECRET), "has `password`", "use a token"),
        ("as", user("as"), json!("admin"), "has `as` in the user `u`", "impersonates its callers"),
        ("as-uid", user("as-uid"), json!("1"), "has `as-uid`", "impersonates its callers"),
        ("as-groups", user("as-groups"), json!(["system:masters"]), "has `as-groups`", "impersonates its callers"),
        (
            "as-user-extra",
            user("as-user-extra"),
            json!({"a": ["b"]}),
            "has `as-user-extra`",
            "impersonates its callers",
        ),
        ("no credential", USER_AT.to_owned(), json!({}), "has no credential in the user `u`", "`client-certificate`"),
        ("an empty token", user("token"), json!(""), "has no credential", "`tokenFile`"),
        ("a number for a token", user("token"), json!(4711), "not text in `token`", "quotes"),
        ("a token of two words", user("token"), json!(format!("{SECRET} x")), "`token` of the user `u`", "on one line"),
        (
            "a misspelt field",
            user("token-file"),
            json!(SECRET),
            "an unknown field in the user `u`",
            "did you mean `tokenFile`?",
        ),
        ("a token for a field", user(SECRET), json!(""), "an unknown field", "known there: token, tokenFile"),
        (
            "a token for its file",
            user("tokenFile"),
            json!(SECRET.repeat(50)),
            "not a path in `tokenFile`",
            "path of a file",
        ),
        (
            "a key for its file",
            user("client-key"),
            json!(format!("-----\n{SECRET}")),
            "not a path in `client-key`",
            "path",
        ),
        (
            "half a certificate",
            user("client-certificate"),
            json!("a.pem"),
            "has half of a client certificate",
            "`client-key`",
        ),
        (
            "the other half",
            user("client-key-data"),
            json!(encoded(SECRET)),
            "has half of a client certificate",
            "`client-key`",
        ),
        ("an empty entry", USER_AT.to_owned(), Value::Null, "has nothing for the user `u`", "kubectl config view"),
    ]);
}

#[test]
fn unsupported_settings_of_a_cluster_are_refused_with_a_remedy() {
    assert_refused([
        (
            "no verification",
            cluster("insecure-skip-tls-verify"),
            json!(true),
            "has `insecure-skip-tls-verify`",
            "`certificate-authority-data`",
        ),
        (
            "a word for it",
            cluster("insecure-skip-tls-verify"),
            json!("yes"),
            "has `insecure-skip-tls-verify`",
            "any server",
        ),
        ("a proxy", cluster("proxy-url"), json!(format!("http://u:{SECRET}@p:3128")), "has `proxy-url`", "directly"),
        ("no server", cluster("server"), Value::Null, "has no `server` in the cluster `c`", "`https://host:port`"),
        (
            "a path",
            cluster("server"),
            json!("https://rancher.test/k8s/clusters/c-1"),
            "that has a path",
            "without a path",
        ),
        (
            "a password",
            cluster("server"),
            json!(format!("https://u:{SECRET}@api.test")),
            "that has a user or a password",
            "https://host:port",
        ),
        ("no address", cluster("server"), json!(SECRET), "that is not a URL", "https://host:port"),
        ("port 0", cluster("server"), json!("https://api.test:0"), "port 0", "https://host:port"),
        ("clear text", cluster("server"), json!("http://api.test"), "in clear text", "`https://`"),
        ("TLS in clear text", cluster("server"), json!("http://localhost:1"), "is not https", "`https://`"),
        ("no name", cluster("tls-server-name"), json!("a b"), "no name for the cluster `c`", "`tls-server-name`"),
        (
            "data and file",
            cluster("certificate-authority"),
            json!("ca.pem"),
            "both `certificate-authority` and",
            "leave one",
        ),
        (
            "no base64",
            cluster("certificate-authority-data"),
            json!(SECRET),
            "not base64 in `certificate-authority-data`",
            "`base64 -w0",
        ),
        (
            "no PEM",
            cluster("certificate-authority-data"),
            json!(encoded(SECRET)),
            "`certificate-authority-data` of the cluster `c` in",
            "PEM form",
        ),
    ]);
}

#[test]
fn what_is_no_kubeconfig_or_names_what_it_lacks_is_refused_with_a_remedy() {
    assert_refused([
        ("no kind", "/kind".to_owned(), Value::Null, "is not a kubeconfig", "`kind: Config`"),
        ("another kind", "/kind".to_owned(), json!("Secret"), "is not a kubeconfig", "`kind: Config`"),
        ("another version", "/apiVersion".to_owned(), json!("v2"), "is not a kubeconfig", "`apiVersion: v1`"),
        ("no context", "/current-context".to_owned(), json!(""), "has no `current-context`", "set `context`"),
        (
            "an unknown context",
            "/current-context".to_owned(),
            json!("x"),
            "there is no context `x`",
            "known: prod, staging",
        ),
        ("no list", "/users".to_owned(), json!(SECRET), "there is no user `u`", "no user is defined"),
        (
            "an unknown user",
            "/contexts/0/context/user".to_owned(),
            json!("uu"),
            "there is no user `uu`",
            "known: u, ops",
        ),
        (
            "an unknown cluster",
            "/contexts/0/context/cluster".to_owned(),
            json!("othre"),
            "there is no cluster `othre`",
            "`other`",
        ),
        (
            "no user in a context",
            "/contexts/0/context/user".to_owned(),
            json!(""),
            "names no cluster or no user in the context `prod`",
            "set-context",
        ),
        ("two of one name", "/users/1/name".to_owned(), json!("u"), "has the user `u` twice", "rename"),
    ]);
}

#[test]
fn unreadable_certificates_are_reported_with_their_field() {
    let mut bench = Bench::new();
    let (chain, key) = certificate();
    let (_, other) = certificate();
    for (chain, key, message) in [
        (SECRET, key.as_str(), "`client-certificate-data` of the user `u` in"),
        (&chain, SECRET, "`client-key-data` of the user `u` in"),
        (&chain, &other, "the client certificate and its key cannot be used"),
    ] {
        bench.set(USER_AT, json!({"client-certificate-data": encoded(chain), "client-key-data": encoded(key)}));
        let problems = bench.problems();
        assert!(problems.len() == 1 && problems[0].contains(message), "{problems:?}");
    }
}

#[test]
fn a_file_that_is_broken_is_not_quoted() {
    let bench = Bench::new();
    for text in [
        &b"users: [{name: u, user: {token: hunter2}"[..],
        b"token: &a hunter2\n<<: *a",
        b"a: *hunter2",
        b"a: !hunter2 b",
        b"hunter2: a\nhunter2: b",
        b"hunter2",
        b"\xffhunter2",
        b"",
    ] {
        fs::write(bench.folder.path().join("kube/config"), text).unwrap();
        let problems = Bench::told(&bench.resolve_as_it_stands().1);
        assert!(problems.len() == 1 && problems[0].contains("is not valid YAML"), "{problems:?}");
    }
    fs::write(bench.folder.path().join("kube/config"), vec![b'#'; 5 << 20]).unwrap();
    let problems = Bench::told(&bench.resolve_as_it_stands().1);
    assert!(problems[0].contains("is larger than 4 MiB"), "{problems:?}");
    fs::remove_file(bench.folder.path().join("kube/config")).unwrap();
    let (_, resolver) = bench.resolve_as_it_stands();
    assert!(Bench::told(&resolver)[0].contains("cannot be read"));
    assert!(resolver.files().contains(Path::new(&bench.folder.path().join("kube/config"))), "it is waited for");
}
