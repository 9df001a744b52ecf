//! Tests of whole configurations: the output for bad ones, and that good ones load.

use std::fs;

use super::{Diagnosis, Loaded, Refused, Sources, load, raw, source};

mod digest;
mod empty;
mod examples;
mod layers;
mod once;
mod secrets;

/// A configuration in a folder of its own.
struct Case {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Case {
    fn new(main: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let case =
            Self { sources: Sources { path: folder.path().join("doorward.yaml"), ..Sources::default() }, folder };
        case.file("doorward.yaml", main)
    }

    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.folder.path().join(name), content).unwrap();
        self
    }

    fn folder(mut self) -> Self {
        self.sources.path = self.folder.path().to_owned();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn set(mut self, path: &str, value: &str) -> Self {
        self.sources.settings.push((path.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Result<Loaded, Box<Refused>> {
        load(&self.sources, |_, _| ()).map(|(loaded, ())| loaded)
    }

    /// Returns the printed diagnosis, without the changing name of the folder.
    fn printed(&self) -> String {
        let diagnosis = match self.load() {
            Ok(loaded) => loaded.warnings,
            Err(refused) => refused.diagnosis,
        };
        self.stable(&diagnosis)
    }

    fn stable(&self, diagnosis: &Diagnosis) -> String {
        diagnosis.render(false).replace(&format!("{}/", self.folder.path().display()), "")
    }
}

const GOOD: &str = r#"
listeners:
  - name: main
    address: 127.0.0.1:8080
issuers:
  - name: company
    issuer: https://id.example.com
    audiences: [doorward]
    login: {kind: human,
      client: {id: doorward, secret: {file: client-secret}}}
webhooks:
  - name: github
    sender: github
    secrets: [{secret: {file: github-secret}}]
upstreams:
  - name: api
    url: https://kubernetes.default.svc
    credential: {bearer: {file: token}}
  - name: dashboard
    url: http://tekton-dashboard.tekton-pipelines:9097
  - name: listener
    url: http://el-build.ci:8080
routes:
  - name: dashboard
    kind: dashboard
    hosts: [tekton.example.com]
    schemes: [session]
    upstream: dashboard
    kubernetes: api
  - name: api
    kind: kubernetes
    hosts: [k8s.example.com]
    schemes: [bearer]
    upstream: api
  - name: github
    kind: webhook
    hosts: [hooks.example.com]
    schemes: [webhook]
    upstream: listener
    webhook: github
sessions:
  keys: [{file: session-key}]
rules:
  - id: developers
    who: {groups: [developers]}
    do: allow
"#;

/// Returns the good configuration with one part replaced.
fn with(old: &str, new: &str) -> Case {
    assert!(GOOD.contains(old), "{old}");
    Case::new(&GOOD.replacen(old, new, 1))
}

#[test]
fn the_valid_configuration_has_no_problems() {
    assert_eq!(Case::new(GOOD).printed(), "no errors\n");
}

#[test]
fn a_scheme_that_would_never_be_tried_is_an_error() {
    let printed = |schemes: &str| Case::new(&GOOD.replace("schemes: [webhook]", schemes)).printed();
    for (schemes, name) in [
        ("schemes: [webhook, session]", "session"),
        ("schemes: [bearer, webhook, session]", "session"),
        ("schemes: [webhook, anonymous]", "anonymous"),
    ] {
        let expected = format!("`{name}` after `webhook` would never be tried");
        assert!(printed(schemes).contains(&expected), "{schemes}: {}", printed(schemes));
    }
    for schemes in ["schemes: [session, webhook]", "schemes: [webhook, bearer]", "schemes: [bearer, webhook]"] {
        assert!(!printed(schemes).contains("never be tried"), "{schemes}: {}", printed(schemes));
    }
}

/// Following the warning led to an error, as a kubeconfig is not a policy file.
#[test]
fn a_file_in_the_folder_that_a_setting_names_is_not_called_unused() {
    const API: &str = "    url: https://kubernetes.default.svc\n    credential: {bearer: {file: token}}\n";
    let case =
        || with(API, "    kubeconfig: {file: ./prod.yaml}\n").file("prod.yaml", "").file("keys.yaml", "").folder();
    assert_eq!(case().set("sessions.keys", "[{file: keys.yaml}]").printed(), "no errors\n");
    let printed = case().printed();
    assert!(
        printed.contains("keys.yaml is in the folder, but not used") && !printed.contains("prod.yaml"),
        "{printed}"
    );
}

#[test]
fn a_drain_of_zero_is_taken_however_it_is_written() {
    for zero in ["0", "'0'", "0s"] {
        assert_eq!(with("sessions:\n", &format!("limits: {{drain: {zero}}}\nsessions:\n")).printed(), "no errors\n");
    }
}

/// The deserializer refused it, without a place, and no other problems were reported.
#[test]
fn a_wrong_address_in_a_policy_test_is_reported_at_its_path_with_other_problems() {
    for address in ["10.0.0.300", "10.0.0.0/8", "localhost"] {
        let test = format!("{{name: a, request: {{route: api, address: {address}}}, expect: {{outcome: deny}}}}");
        let printed = with("sessions:\n", &format!("tests: [{test}]\nworkers: many\nsessions:\n")).printed();
        let told = format!("error: `{address}` is not an IP address\n  --> doorward.yaml:");
        assert!(printed.contains(&told) && printed.contains("expected a whole number"), "{printed}");
    }
}

/// The JSON deserializer refused it in its own words, without a place.
#[test]
fn a_fact_with_an_unknown_name_is_reported_at_its_path() {
    let facts = "sender: generic\n    signature: {header: x-sig}\n    facts: {who: /who, branhc: /branch}";
    let printed = Case::new(&GOOD.replace("sender: github", facts)).printed();
    for said in ["there is no setting `who` here", "doorward.yaml:15:13", "`actor_id`", "did you mean `branch`?"] {
        assert!(printed.contains(said), "{said}: {printed}");
    }
}

/// The documentation allowed it, but the shape check refused it.
#[test]
fn an_algorithm_may_be_written_by_either_of_its_names() {
    for name in ["EdDSA", "Ed25519"] {
        let case = with("audiences: [doorward]", &format!("audiences: [doorward]\n    algorithms: [{name}]"));
        assert_eq!(case.printed(), "no errors\n");
        assert_eq!(case.load().unwrap().raw.issuers[0].algorithms, Some(vec![raw::Algorithm::EdDSA]), "{name}");
    }
}

/// The help recommends this form, which `doorward check` refused.
#[test]
fn a_fingerprint_with_the_colons_of_openssl_names_a_certificate() {
    let runtime = crate::runtime::control().unwrap();
    let told = |sha256: &str| {
        let section = format!(
            "break_glass:\n  until: '2026-01-31T08:00:00Z'\n  certificates: [{{name: alice, sha256: '{sha256}'}}]\nsessions:\n"
        );
        let case = with("sessions:\n", &section);
        let refused = load(&case.sources, crate::app::check(&runtime).unwrap()).unwrap_err();
        let findings = refused.diagnosis.findings().iter();
        findings.filter(|finding| finding.at.as_str() == "/break_glass/certificates/0/sha256").count()
    };
    for (sha256, problems) in
        [(["9F"; 32].join(":"), 0), ("9f".repeat(32), 0), (["9F"; 31].join(":"), 1), ("no hash".to_owned(), 1)]
    {
        assert_eq!(told(&sha256), problems, "{sha256}");
    }
}

/// Every request for it failed at the proxy.
#[test]
fn break_glass_behind_a_proxy_that_ends_tls_is_warned_of() {
    let section =
        "break_glass:\n  until: \"2026-01-31T08:00:00Z\"\n  certificates:\n    - {name: alice, groups: [sre], sha256: "
            .to_owned()
            + &"a".repeat(64)
            + "}\nsessions:\n";
    let route =
        "  - {name: glass, kind: kubernetes, hosts: [glass.example.com], schemes: [break_glass], upstream: api}\n";
    let listener = |port: u16, more: &str| {
        format!(
            "  - {{name: tls{port}, address: \"127.0.0.1:{port}\", {more}tls: {{certificates: [{{chain: c.pem, key: c.key}}], client_ca: ca.pem}}}}\n"
        )
    };
    let printed = |listeners: &str| {
        let config = GOOD
            .replacen("listeners:\n", &format!("listeners:\n{listeners}"), 1)
            .replacen("routes:\n", &format!("routes:\n{route}"), 1)
            .replacen("sessions:\n", &section, 1);
        Case::new(&config).printed()
    };
    let (direct, proxied) = (listener(8443, ""), listener(8444, "trusted_proxies: [192.0.2.0/24], "));
    let passed_on = listener(8445, "trusted_proxies: [192.0.2.0/24], proxy_protocol_from: [192.0.2.0/24], ");
    let warned =
        |listeners: &str| printed(listeners).contains("present the proxy's certificate, if any, and not their own");
    assert!(warned(&proxied), "{}", printed(&proxied));
    assert!(!warned(&direct), "{}", printed(&direct));
    assert!(!warned(&passed_on), "{}", printed(&passed_on));
    assert!(!warned(&(direct + &proxied)), "one way is enough");
}

#[test]
fn routes_that_say_the_same_of_a_request_are_refused_and_others_may_overlap() {
    let moved =
        |more: &str| with("    hosts: [k8s.example.com]\n", &format!("    hosts: [tekton.example.com]\n{more}"));
    for (row, case, refused) in [
        ("the calls of a dashboard", moved("    paths: ['/api/*']\n"), true),
        ("some of them", moved("    paths: ['/v1/*', '/apis/*']\n"), true),
        ("some methods of them", moved("    paths: ['/api/*', '/apis/*']\n    methods: [POST]\n"), false),
        ("a part of them", moved("    paths: ['/apis/metrics.k8s.io/*', /api]\n"), false),
        ("others", moved("    paths: ['/v1/*']\n"), false),
        ("all, of some methods", moved("    methods: [POST]\n"), false),
        ("its own", with("    upstream: dashboard\n", "    upstream: dashboard\n    paths: ['/api/*', '/*']\n"), true),
    ] {
        let printed = case.printed();
        assert_eq!(printed.contains("matches the same requests"), refused, "{row}: {printed}");
        assert_eq!(printed.contains("for the calls of its pages"), refused, "{row}: {printed}");
    }
}

#[test]
fn a_misspelt_key_beside_the_right_one_hides_nothing_of_that() {
    let beside = GOOD.replace("upstreams:\n", "upstraems: []\nupstreams:\n").replace("http://el-build", "el-build");
    let printed = Case::new(&beside).printed();
    assert!(printed.contains("there is no setting `upstraems` here"), "{printed}");
    assert!(printed.contains("the address is neither `http` nor `https`"), "{printed}");
}

macro_rules! golden {
    ($($name:ident: $case:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let case = $case;
                insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                    insta::assert_snapshot!(stringify!($name), case.printed());
                });
            }
        )*
    };
}

golden! {
    unknown_keys_and_wrong_values: with("    kind: kubernetes\n    hosts: [k8s.example.com]", "    kind: kuberntes\n    host: [k8s.example.com]\n    schemas: x")
        .set("audit.when_full", "contineu");
    several_problems_in_one_file: Case::new(&GOOD
        .replace("upstream: dashboard\n", "upstream: dashbaord\n")
        .replace("127.0.0.1:8080", "127.0.0.1")
        .replace("schemes: [bearer]", "schemes: [anonymous, bearer]")
        .replace("do: allow", "do: alow")
        .replace("sessions:\n", "sessions:\n  idle: 8 hours\n"));
    strangers_before_an_api_server: with("schemes: [session]", "schemes: [session, anonymous]");
    wrong_types: with("audiences: [doorward]", "audiences: doorward\n    listed_clients_only: yes\n    algorithms: {RS256: true}\n    username: 12\n    clock_skew: [1]\n    preset:");
    missing_settings: with("  - name: api\n    kind: kubernetes\n    hosts: [k8s.example.com]\n", "  - name: api\n");
    numbers_out_of_range: with("sessions:\n", "workers: 1000\nlimits: {header_count: 70000, http2_streams: -1, connections: 1.5}\nsessions:\n");
    secrets_written_inline: with("{id: doorward, secret: {file: client-secret}}", "{id: doorward, secret: hunter2, client_secret: hunter3}")
        .env("DOORWARD_ADMIN__TOKEN", "hunter4");
    a_secret_of_an_unknown_kind: with("secret: {file: github-secret}", "secret: {fiel: github-secret}");
    secrets_where_their_settings_belong: with("secrets: [{secret: {file: github-secret}}]", "secrets: [hunter2]");
    text_for_settings_with_secrets: with("client: {id: doorward, secret: {file: client-secret}}", "client: doorward:hunter2");
    a_bare_credential: with("credential: {bearer: {file: token}}", "credential: hunter2");
    algorithms_that_prove_nothing: with("    audiences: [doorward]", "    audiences: [doorward]\n    algorithms: [RS256, HS256, none]");
    a_misspelt_key_with_a_wrong_value: with("sessions:", "limits: {header_byte: 3}\nsessions:");
    a_bracket_left_open: with("hosts: [tekton.example.com]", "hosts: [tekton.example.com");
    an_alias_of_itself: with("  keys: [{file: session-key}]", "  keys: &keys [*keys]");
    a_shortened_word: with("    audiences: [doorward]", "    audiences: [doorward]\n    preset: gitlab");
    empty_conditions_among_other_problems: with("  - id: developers\n    who: {groups: [developers]}\n    do: allow\n", "  - {id: a, who: {users: [], issuers: [nobody]}, need: {}, do: allow}\n  - {id: b, on: {routes: [], methods: [BREW]}, need: {acr: []}, do: allow}\n  - {id: c, need: {mfa: null}, do: alow}\n  - {id: d, need: {facs: 2}, do: allow}\n");
    empty_lists_that_could_mean_all: Case::new(&format!(
        "grants:\n  - {{id: a, who: {{groups: [a], issuers: [company]}}, kubernetes_groups: [a], tekton_roles: [{{role: view, namespaces: []}}]}}\n{}",
        GOOD.replacen("    schemes: [bearer]\n", "    schemes: [bearer]\n    paths: []\n    issuers: []\n    audiences: []\n", 1),
    ));
    duplicate_keys: with("sessions:\n", "sessions:\n  idle: 1h\n  idle: 2h\nrules: []\nsessions:\n");
    broken_syntax: with("  - name: main\n    address: 127.0.0.1:8080", "  - name: main\n   address: 127.0.0.1:8080");
    a_text_with_a_colon: with("    sender: github", "    sender: github\n    why: Developers: all of them");
    a_text_that_begins_with_a_sign: with("    sender: github", "    sender: github\n    why: @home");
    tabs: with("    sender: github", "\tsender: github");
    two_documents: with("upstreams:", "---\nupstreams:");
    not_utf8: Case::new("").file("doorward.yaml", b"log: {filter: \"\xff\"}");
    not_a_map: Case::new("- rules\n");
    an_empty_file: Case::new("");
    no_such_file: { let mut case = Case::new(""); case.sources.path.set_extension("yml"); case };
    a_folder_without_a_main_file: {
        let case = Case::new("").folder();
        fs::remove_file(case.folder.path().join("doorward.yaml")).unwrap();
        case
    };
    a_lost_policy_file: Case::new(&format!("policies: [denies.yaml, allows.yaml]\n{GOOD}"))
        .file("denies.yml.bak", "rules: [{id: never, do: deny}]")
        .file("allows.yaml", "rules: [{id: always, do: allow}]");
    a_policy_file_that_says_nothing: Case::new(&format!("policies: [empty.yaml, comments.yaml, map.yaml, none.yaml]\n{GOOD}"))
        .file("empty.yaml", "")
        .file("comments.yaml", "# rules: [{id: never, do: deny}]\n")
        .file("map.yaml", "{}\n")
        .file("none.yaml", "rules: []\n");
    the_policy_file_with_all_rules_is_lost: Case::new(&format!("policies: [rules.yaml]\n{}", GOOD.split_once("rules:\n").unwrap().0));
    an_unlisted_policy_file: Case::new(GOOD).file("denies.yaml", "rules: []").folder();
    bad_policy_files: Case::new(&format!("policies: [one.yaml, two.yaml, two.yaml, three.yaml]\n{GOOD}"))
        .file("one.yaml", "ruels: []\nlisteners: []\ngrants: {}\n")
        .file("two.yaml", "rules:\n  - id: x\n    do: {aprove: {by: {}}}\n  - id: y\n    who: {kind: persn}\n    do: deny\n")
        .file("three.yaml", "rules: [\n");
    references_to_nothing: Case::new(&GOOD
        .replace("kubernetes: api\n", "kubernetes: apis\n    issuers: [compny, other]\n")
        .replace("webhook: github", "webhook: gitlab")
        .replace("sessions:\n", "interceptor: {host: door.svc, listener: publik}\nsessions:\n"));
    names_that_clash: Case::new(&GOOD.replace("name: listener\n", "name: api\n").replace("name: github\n    kind", "name: my hook\n    kind"));
    fields_of_another_kind: Case::new(&GOOD
        .replace("    kind: kubernetes\n", "    kind: kubernetes\n    webhook: github\n    kubernetes: api\n    event_listener: {namespace: a, name: b}\n")
        .replace("schemes: [session]\n", "schemes: [bearer, bearer]\n    pass_headers: [x-team]\n")
        .replace("schemes: [webhook]\n", "schemes: [bearer]\n    pass_headers: [X-Ok]\n"));
    hosts_paths_and_methods: with("hosts: [k8s.example.com]", "hosts: [K8s.example.com, 'k8s.example.com:443', '*.com']\n    paths: [api, /a//b, /%2e%2e/x, /.doorward/x, /oauth2/*]\n    methods: [get, CONNECT]");
    overlapping_routes: with("hosts: [k8s.example.com]", "hosts: [a.example.com, tekton.example.com]");
    one_webhook_on_two_routes: Case::new(&GOOD
        .replace("sessions:\n", "  - name: staging\n    kind: webhook\n    hosts: [hooks.example.com]\n    paths: [/staging]\n    schemes: [webhook]\n    upstream: listener\n    webhook: github\nsessions:\n")
        .replace("upstreams:\n", "  - name: other\n    sender: github\n    secrets: [{secret: {file: github-secret}}]\nupstreams:\n"));
    // attacks:Z2
    a_shared_audience: with("audiences: [doorward]", "audiences: [doorward, 'api://default']");
    listeners_that_clash: with("    address: 127.0.0.1:8080\n", "    address: 127.0.0.1:8080\n  - {name: all, address: '0.0.0.0:8080', trusted_proxies: [0.0.0.0/0, 10.0.0.1]}\n  - {name: clear, address: '0.0.0.0:8081'}\nadmin: {address: '0.0.0.0:8081'}\n");
    upstreams_that_cannot_be: Case::new(&GOOD
        .replace("https://kubernetes.default.svc\n    credential: {bearer: {file: token}}", "https://user:hunter2@kubernetes.default.svc/api")
        .replace("url: http://tekton-dashboard.tekton-pipelines:9097", "url: http://tekton-dashboard.tekton-pipelines:9097\n    tls: {}\n    credential: {bearer: {env: X}}")
        .replace("url: http://el-build.ci:8080", "url: el-build.ci:8080"));
    a_kubeconfig_and_what_it_says_already: Case::new(&GOOD
        .replace("    credential: {bearer: {file: token}}", "    credential: {bearer: {file: token}}\n    tls: {}\n    kubeconfig: {file: kubeconfig}")
        .replace("url: http://tekton-dashboard.tekton-pipelines:9097", "kubeconfig: {flie: kubeconfig, contxt: prod}")
        .replace("    url: http://el-build.ci:8080\n", ""));
    a_kubeconfig_where_nobody_is_impersonated: with("url: http://tekton-dashboard.tekton-pipelines:9097", "kubeconfig: {file: kubeconfig}");
    the_content_of_a_kubeconfig: Case::new(&GOOD
        .replace("url: http://tekton-dashboard.tekton-pipelines:9097", "kubeconfig: /etc/doorward/kubeconfig")
        .replace("    url: http://el-build.ci:8080\n", "    kubeconfig: {users: [{name: u, user: {token: hunter2}}]}\n"));
    an_api_server_with_and_without_impersonation: with("    upstream: listener", "    upstream: api");
    an_api_server_without_impersonation_and_without_a_credential: Case::new(&GOOD
        .replace("    upstream: listener", "    upstream: api")
        .replace("    credential: {bearer: {file: token}}\n", ""));
    service_accounts_that_cannot_be_those_of_runs: Case::new(&GOOD
        .replace("    credential: {bearer: {file: token}}", "    credential: {bearer: {file: token}}\n    default_service_account: ci/Builder")
        .replace("url: http://el-build.ci:8080", "url: http://el-build.ci:8080\n    default_service_account: builder"));
    limits_that_cannot_be: with("sessions:\n", "limits:\n  header_timeout: 0s\n  http2_connection_window: 4GiB\n  body_min_rate: 1KB\n  drain: 1s\n  drain_accept: 5s\n  tcp_keepalive: 500ms\n  http2_ping_interval: 0s\nsessions:\n");
    a_drain_of_which_too_much_is_for_new_connections: with("sessions:\n", "limits: {drain: 5s, drain_accept: 4s}\nsessions:\n");
    bodies_that_do_not_fit_into_memory: with("sessions:\n", "limits: {memory: 64MiB}\nsessions:\n");
    break_glass_that_opens_nothing: with("sessions:\n", "break_glass:\n  until: tomorrow\n  certificates:\n    - {name: alice, sha256: abc, groups: [sre]}\nsessions:\n");
    variables_that_are_no_settings: Case::new(GOOD)
        .env("DOORWARD_AUDIT_WHEN_FULL", "continue")
        .env("DOORWARD_LIMITS__HEADER_BYTE", "1KiB")
        .env("DOORWARD_WORKERS", "many")
        .set("log.filtr", "debug");
    warnings_only: with("    kind: dashboard\n    hosts: [tekton.example.com]\n    schemes: [session]\n    upstream: dashboard\n    kubernetes: api\n", "    kind: dashboard\n    hosts: [tekton.example.com]\n    schemes: [bearer]\n    upstream: dashboard\n");
}

#[test]
fn the_requirements_of_a_sender_must_be_satisfiable() {
    let sender = |sender: &str| {
        Case::new(&GOOD.replace("sender: github", sender).replace("schemes: [webhook]", "schemes: [bearer, webhook]"))
    };
    for (row, case, problem) in [
        ("Basic and Bearer", sender("sender: azure_devops"), Some("both come in `Authorization`")),
        ("its own and Bearer", sender("sender: harbor"), Some("both come in `Authorization`")),
        ("twin: a signature and Bearer", sender("sender: github"), None),
        (
            "a certificate that nobody asks for",
            with("sender: github", "sender: github\n    client_certificate: {names: [git.example.com]}"),
            Some("no listener asks for client certificates"),
        ),
        (
            "another method than the one that EventListeners take",
            with("schemes: [webhook]", "schemes: [webhook]\n    methods: [POST, PUT]"),
            Some("an EventListener accepts only POST, not `PUT`"),
        ),
        (
            "no connection",
            with("    address: 127.0.0.1:8080\n", "    address: 127.0.0.1:8080\n    connections_per_address: 0\n"),
            Some("`connections_per_address` cannot be zero"),
        ),
        (
            "more connections than there may be",
            with("    address: 127.0.0.1:8080\n", "    address: 127.0.0.1:8080\n    connections_per_address: 20000\n"),
            Some("it is more than `limits.connections`"),
        ),
    ] {
        let printed = case.printed();
        match problem {
            Some(problem) => assert!(printed.contains(problem), "{row}: {printed}"),
            None => assert_eq!(printed, "no errors\n", "{row}"),
        }
    }
}

/// People sign in at GitHub, which issues no tokens that others could verify.
#[test]
fn a_route_accepts_no_tokens_if_none_of_its_issuers_signs_any() {
    for (issuers, problem) in [("[hub]", Some("no issuer of this route signs tokens")), ("[hub, company]", None)] {
        let hub = "  - {name: hub, preset: github_oauth, audiences: [doorward], login: {client: {id: hub, secret: {file: client-secret}}}}";
        let route = format!("schemes: [session, bearer]\n    issuers: {issuers}\n    upstream: dashboard");
        let main = GOOD.replace("webhooks:", &format!("{hub}\nwebhooks:"));
        let printed = Case::new(&main.replace("schemes: [session]\n    upstream: dashboard", &route)).printed();
        match problem {
            Some(problem) => assert!(printed.contains(problem), "{issuers}: {printed}"),
            None => assert_eq!(printed, "no errors\n", "{issuers}"),
        }
    }
}

/// No request came to such a route, and nothing said so.
#[test]
fn a_path_where_proxies_ask_or_tokens_are_given_is_none_of_a_route() {
    const ASKED: &str = "forward_auth: nginx\n";
    const TOKENS: &str = "external_host: hooks.example.com\ntokens: {exchange: [{issuer: company}]}\n";
    for (settings, path, own) in [
        (ASKED, "/oauth2/auth", Some("as `forward_auth` is set")),
        (ASKED, "/oauth2/auth/*", Some("as `forward_auth` is set")),
        (ASKED, "/oauth2/authorize", None),
        (ASKED, "/oauth2/*", None),
        ("", "/oauth2/auth", None),
        (TOKENS, "/oauth2/token", Some("as `tokens` is set")),
        (TOKENS, "/oauth2/token/*", None),
        (TOKENS, "/oauth2/*", None),
        ("external_host: hooks.example.com\n", "/oauth2/token", None),
        ("tokens: {exchange: [{issuer: company}]}\n", "/oauth2/token", None),
    ] {
        let main = GOOD.replace("schemes: [webhook]", &format!("schemes: [webhook]\n    paths: ['{path}']"));
        let printed = Case::new(&format!("{settings}{}", main.trim_start())).printed();
        assert_eq!(printed.contains("is Doorward's own"), own.is_some(), "{settings}{path}: {printed}");
        assert!(own.is_none_or(|own| printed.contains(own)), "{settings}{path}: {printed}");
    }
}

#[test]
fn a_problem_within_an_expression_is_shown_at_its_byte() {
    let case = with("do: allow", "do: allow\n    when: |\n      request.host == 'a' &&\n      requst.path == 'b'");
    let refused = load(&case.sources, |_, resolver| {
        let at = super::report::At::root().key("rules").index(0).key("when");
        resolver.error(&at, "there is no variable `requst`").offset(24).help("did you mean `request`?");
    })
    .unwrap_err();
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("a_problem_within_an_expression", case.stable(&refused.diagnosis));
    });
}

/// The log of a reload had all of them in one line, with the ends of theirs escaped.
#[test]
fn each_error_is_told_in_one_line_with_its_place() {
    let case = with("do: allow", "do: alow").set("audit.when_full", "perhaps");
    let refused = case.load().unwrap_err();
    let lines: Vec<String> = refused.diagnosis.lines().collect();
    let file = case.sources.path.display();
    assert_eq!(lines.len(), refused.diagnosis.errors(), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
    let is_there = |begin: &str, end: &str| lines.iter().any(|line| line.starts_with(begin) && line.contains(end));
    assert!(is_there(&format!("{file}:"), ": `alow` is not one of the allowed values"), "{lines:?}");
    assert!(is_there("flag --set audit.when_full: ", "`perhaps` is not one of the allowed values"), "{lines:?}");
}

/// The log of a start had the number of a rule among those of all files.
#[test]
fn a_warning_is_told_with_its_place() {
    let case = with("do: allow", "do: deny");
    let (loaded, ()) = load(&case.sources, |_, resolver| {
        resolver.warning(&super::report::At::root().key("rules").index(0).key("do"), "it is odd");
    })
    .unwrap();
    let found = loaded.warnings.findings().iter().find(|found| found.message == "it is odd").unwrap();
    let origin = loaded.warnings.origin(found);
    assert!(origin.starts_with(&format!("{}:", case.sources.path.display())), "{origin}");
}

#[test]
fn very_many_or_very_long_problems_stay_small() {
    let many = format!("routes: [{}]\nlog: {{filter: {}}}", "1,".repeat(10_000), "x".repeat(100_000));
    let refused = Case::new(&many).load().unwrap_err();
    assert!(refused.diagnosis.errors() > 10_000);
    assert!(refused.to_string().len() < 200_000);
    let long = format!("log: {{format: {}, {}: 1}}", "x".repeat(100_000), "y".repeat(900));
    let refused = Case::new(&long).load().unwrap_err();
    assert!(refused.to_string().len() < 5_000, "{}", refused.to_string().len());
    let product = format!("[{}]", (0..200).map(|n| format!("h{n}")).collect::<Vec<_>>().join(","));
    let printed =
        with("hosts: [k8s.example.com]", &format!("hosts: {product}\n    methods: {}", product.to_uppercase()))
            .printed();
    assert!(printed.contains("too many combinations"), "{printed}");
}

#[test]
fn any_bytes_end_in_a_diagnosis() {
    for bytes in
        [&b""[..], b"\xff", b"a", b"[", b"rules: [{}]", b"listeners: 1", b"break_glass: {certificates: [1]}", b"? x"]
    {
        super::fuzz_configuration(bytes);
    }
    for end in (0..GOOD.len()).step_by(9) {
        super::fuzz_configuration(&GOOD.as_bytes()[..end]);
    }
}

proptest::proptest! {
    #[test]
    fn replaced_values_never_break_the_check(line in 0usize..52, value in r#"(~|1|-1|1\.5|x|\[\]|\{\}|\[a\]|\{a: b\}|true|""|'\*'|\[\{\}\])"#) {
        let mut lines: Vec<String> = GOOD.lines().map(str::to_owned).collect();
        let index = line % lines.len();
        if let Some((key, _)) = lines[index].split_once(": ") {
            lines[index] = format!("{key}: {value}");
        }
        super::fuzz_configuration(lines.join("\n").as_bytes());
    }
}

#[test]
fn a_missing_folder_to_write_in_is_reported() {
    let main = "audit: {sink: {file: {path: logs/audit.jsonl}}, checkpoint_copy: copy/checkpoints}\n\
                store: {path: state/doorward.redb}\nadmin: {socket: run/doorward.sock}\n";
    let case = Case::new(&format!("{main}listeners: [{{name: main, address: '127.0.0.1:0'}}]"));
    let runtime = crate::runtime::control().unwrap();
    let refused = load(&case.sources, crate::app::check(&runtime).unwrap()).unwrap_err();
    let told = refused.diagnosis.render(false);
    // The folder of the store is created when Doorward starts.
    assert!(!told.contains("state"), "{told}");
    for folder in ["logs", "copy", "run"] {
        assert!(told.contains(&format!("/{folder} does not exist")), "{folder}: {told}");
        fs::create_dir(case.folder.path().join(folder)).unwrap();
    }
    assert!(load(&case.sources, crate::app::check(&runtime).unwrap()).is_ok());
}

#[test]
fn a_main_file_that_is_too_large_is_not_said_to_be_called_otherwise() {
    let printed = Case::new(&"#".repeat(source::MAX_BYTES + 1)).folder().printed();
    assert!(printed.contains("larger than 4 MiB") && !printed.contains("the main file is"), "{printed}");
}
