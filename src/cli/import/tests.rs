use super::*;

mod flags;
mod places;
mod who;

const CFG: &str = r#"
# As in many guides.
http_address = "0.0.0.0:4180"
reverse_proxy = true
trusted_proxy_ips = ["10.0.0.0/8", "192.0.2.7"]
provider = "keycloak-oidc"
oidc_issuer_url = "https://id.example.com/realms/main"
client_id = "tekton"
client_secret = "hunter2-not-to-be-printed"
redirect_url = "https://tekton.example.com/oauth2/callback"
scope = "openid email groups"
email_domains = ["example.com", ".example.org"]
allowed_groups = ["/dev", "/ops"]
upstreams = ["http://dashboard.tekton:9097/", "http://docs.tekton:8080/docs/", "static://202"]
cookie_secret = "also-not-to-be-printed"
cookie_domains = [".example.com"]
cookie_expire = "12h"
skip_provider_button = true
pass_access_token = true
banner = "hello"
"#;

fn imported(texts: &[&str], host: Option<&str>) -> Result<Imported, String> {
    let mut options = Options::default();
    for text in texts {
        options.read(text)?;
    }
    import(options, host)
}

fn parsed(imported: &Imported) -> Value {
    serde_saphyr::from_str(&imported.yaml).unwrap()
}

fn noted(imported: &Imported) -> Vec<&str> {
    imported.notes.iter().filter_map(|note| note.split('`').nth(1)).collect()
}

#[test]
fn a_cfg_becomes_a_configuration_and_what_did_not_is_named() {
    let imported = imported(&[CFG], None).unwrap();
    let root = parsed(&imported);
    let issuer = &root["issuers"][0];
    assert_eq!(
        (&issuer["preset"], &issuer["issuer"]),
        (&json!("keycloak"), &json!("https://id.example.com/realms/main"))
    );
    assert_eq!(issuer["login"]["kind"], "human", "oauth2-proxy has nobody else log in");
    assert_eq!(issuer["login"]["scopes"], json!(["openid", "email", "groups"]));
    assert_eq!(root["listeners"][0]["trusted_proxies"], json!(["10.0.0.0/8", "192.0.2.7/32"]));
    assert_eq!(root["upstreams"][0]["url"], "http://dashboard.tekton:9097");
    assert_eq!(root["routes"][1]["paths"], json!(["/docs/*"]));
    assert_eq!(root["routes"][0]["hosts"], json!(["tekton.example.com"]));
    let rule = &root["rules"][0];
    assert_eq!(rule["who"], json!({"issuers": ["main"], "groups": ["/dev", "/ops"]}));
    let when = r#"has(principal.email) && (principal.email.lowerAscii().endsWith("@example.com") || principal.email.lowerAscii().endsWith(".example.org"))"#;
    assert_eq!(rule["when"], when);
    assert_eq!(root["sessions"]["absolute"], "43200s");
    assert_eq!(
        noted(&imported),
        ["client_secret", "upstream", "cookie_domain", "cookie_secret", "pass_access_token", "banner"],
        "{:?}",
        imported.notes
    );
    assert!(!imported.yaml.contains("not-to-be-printed"));
}

/// Nothing said where, nor that it was read as TOML at all.
#[test]
fn a_cfg_that_is_not_valid_is_refused_with_the_line_and_without_its_content() {
    const SECRET: &str = "hunter2-not-to-be-printed";
    for (text, line) in [
        (format!("# A comment.\nclient_secret = \"{SECRET}\nprovider = \"oidc\"\n"), 2),
        (format!("provider = \"oidc\"\nclient_secret = \"a\"\n\nclient_secret = \"{SECRET}\"\n"), 4),
        (format!("provider = \"oidc\"\nclient_secret = {SECRET}: x\n"), 2),
    ] {
        let told = imported(&[&text], Some("a.example.com")).unwrap_err();
        assert!(told.starts_with(&format!("line {line}: this is not valid TOML")), "{text}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    let told = imported(&["neither: [\n"], Some("a.example.com")).unwrap_err();
    assert!(told.contains("neither flags, nor a `.cfg` (TOML), nor alpha YAML"), "{told}");
}

#[test]
fn durations_of_go_are_read() {
    for (text, expected) in [
        ("168h0m0s", Some(604_800)),
        ("12h", Some(43_200)),
        ("90m30s", Some(5_430)),
        ("1.5h", Some(5_400)),
        ("0", None),
        ("5", None),
    ] {
        assert_eq!(seconds(text), expected, "{text}");
    }
    for text in ["h", "500ms", "1d", "99999999999999999999h", "9999999999999999999h"] {
        assert_eq!(seconds(text), None, "{text}");
    }
}

/// Everybody who signs in, except people whose address the provider reports as unverified.
const ANYBODY: &str = "!has(principal.claims.email_verified) || principal.claims.email_verified == true";
/// The addresses of one domain.
const OF_EXAMPLE: &str = r#"has(principal.email) && principal.email.lowerAscii().endsWith("@example.com")"#;

const FLAGS: &str = "args:\n  - --provider=oidc\n  - --oidc-issuer-url=https://id.example.com\n  - --client-id=door\n  \
    - --client-secret-file=/s\n  - --upstream=http://a:1\n  - --email-domain=example.com\n";

/// An alpha YAML with an addition to its provider, and addresses of everybody.
fn alpha_with(more: &str) -> Imported {
    let alpha = format!(
        "upstreamConfig: {{upstreams: [{{id: a, path: /, uri: 'http://a:1'}}]}}\nproviders: [{{id: p, provider: keycloak-oidc, \
         clientID: door, clientSecretFile: /s, oidcConfig: {{issuerURL: 'https://id.example.com'}}, {more}}}]\n"
    );
    imported(&["email_domains = [\"*\"]\n", &alpha], Some("a.example.com")).unwrap()
}

#[test]
fn sign_in_rules_of_an_alpha_config_that_are_not_converted_admit_nobody() {
    for (more, name) in [
        ("keycloakConfig: {roles: [deployers]}", "allowed_role"),
        ("KeycloakConfig: {Roles: [deployers]}", "allowed_role"),
        ("keycloakConfig: {groups: [deployers]}", "keycloak_group"),
        ("googleConfig: {group: [deployers]}", "google_group"),
        ("gitlabConfig: {group: [deployers]}", "gitlab_group"),
        ("gitlabConfig: {projects: [a/b]}", "gitlab_project"),
        ("microsoftEntraIDConfig: {allowedTenants: [a]}", "entra_id_allowed_tenant"),
        ("azureConfig: {tenant: a}", "azure_tenant"),
        ("githubConfig: {repo: a/b}", "github_repo"),
        ("keycloakConfig: {people: [{name: a}]}", "providers[0].keycloakConfig.people"),
        ("allowedPeople: [a]", "providers[0].allowedPeople"),
    ] {
        let imported = alpha_with(more);
        let rule = &parsed(&imported)["rules"][0];
        assert_eq!(rule["mode"], "shadow", "{more}");
        let mut found = noted(&imported);
        found.sort_unstable();
        let mut expected = ["signed-in", name];
        expected.sort_unstable();
        assert_eq!(found, expected, "{more}: {:?}", imported.notes);
        let why = imported.notes.iter().find(|note| note.starts_with("`signed-in`")).unwrap();
        assert!(why.contains(name) && imported.yaml.contains(why), "{more}: {why}");
    }
    for converted in ["allowedGroups: [deployers]", "AllowedGroups: [deployers]"] {
        let imported = alpha_with(converted);
        assert_eq!(parsed(&imported)["rules"][0]["who"]["groups"], json!(["deployers"]));
        assert_eq!(noted(&imported), [""; 0], "{converted}");
    }
}

#[test]
fn sign_in_rules_of_a_cfg_file_that_are_not_converted_admit_nobody() {
    let cfg = |more: &str| {
        let base = "provider = \"oidc\"\noidc_issuer_url = \"https://id.example.com\"\nclient_id = \"a\"\n\
            client_secret_file = \"/s\"\nupstreams = [\"http://a:1\"]\n";
        imported(&[&format!("{base}{more}\n")], Some("a.example.com")).unwrap()
    };
    for (more, noticed) in [
        ("email_domains = [\"*\"]\nallowed_roles = [\"a\"]", &["signed-in", "allowed_role"][..]),
        ("email_domains = [\"*\"]\ngoogle_groups = [\"a\"]", &["signed-in", "google_group"]),
        ("email_domains = [\"*\"]\ngoogle_group = [\"a\"]", &["signed-in", "google_group"]),
        ("authenticated_emails_file = \"/emails\"", &["signed-in", "authenticated_emails_file"]),
        ("", &["email_domain", "signed-in"]),
    ] {
        let imported = cfg(more);
        assert_eq!(parsed(&imported)["rules"][0]["mode"], "shadow", "{more}");
        assert_eq!(noted(&imported), noticed, "{more}");
    }
    // The file lets in additional people, but an empty list lets in nobody else.
    for more in [
        "email_domains = [\"a.b\"]\nauthenticated_emails_file = \"/emails\"",
        "email_domains = [\"*\"]\ngoogle_groups = []",
    ] {
        assert_eq!(parsed(&cfg(more))["rules"][0]["mode"], json!(null), "{more}");
    }
}

#[test]
fn alpha_settings_without_a_counterpart_are_named() {
    let alpha = "
upstreamConfig:
  proxyRawPath: true
  upstreams:
    - {id: a, path: /, uri: 'http://a:1', insecureSkipTLSVerify: true, timeout: 5s, passHostHeader: false}
providers:
  - {id: p, provider: oidc, clientID: door, clientSecretFile: /s, loginURLParameters: [{name: prompt, default: [login]}],
     oidcConfig: {issuerURL: 'https://id.example.com', emailClaim: upn, insecureSkipIssuerVerification: true}}
server: {SecureBindAddress: '0.0.0.0:4443', TLS: {Key: {value: not-to-be-printed}, Cert: {fromFile: /c}, MinVersion: TLS1.3}}
";
    let imported = imported(&["email_domains = [\"*\"]\n", alpha], Some("a.example.com")).unwrap();
    assert_eq!(
        noted(&imported),
        [
            "tls_key_file",
            "oidc_email_claim",
            "providers[0].loginURLParameters",
            "providers[0].oidcConfig.insecureSkipIssuerVerification",
            "server.TLS.Key.value",
            "server.TLS.MinVersion",
            "upstreamConfig.proxyRawPath",
            "upstreamConfig.upstreams[].insecureSkipTLSVerify",
            "upstreamConfig.upstreams[].timeout",
        ]
    );
    assert!(parsed(&imported)["rules"][0].get("mode").is_none(), "none of it says who may sign in");
    assert_eq!(parsed(&imported)["upstreams"][0]["host"], "own", "`passHostHeader` has one");
    let listener = &parsed(&imported)["listeners"][0];
    assert_eq!(
        (&listener["address"], &listener["tls"]["certificates"][0]["chain"]),
        (&json!("0.0.0.0:4443"), &json!("/c"))
    );
    assert!(!imported.yaml.contains("not-to-be-printed"));
}

#[test]
fn defaults_written_by_the_alpha_converter_are_not_named() {
    let alpha = "
upstreamConfig:
  upstreams:
    - {id: a, path: /, uri: 'http://a:1', flushInterval: 1s, insecureSkipTLSVerify: false, passHostHeader: true,
       proxyWebSockets: true, timeout: 30s}
providers:
  - {id: p, provider: oidc, clientID: door, clientSecretFile: /s, keycloakConfig: {}, azureConfig: {tenant: common},
     googleConfig: {group: [], adminEmail: ''}, oidcConfig: {issuerURL: 'https://id.example.com', audienceClaims: [aud],
     emailClaim: email, groupsClaim: groups, userIDClaim: email, insecureSkipNonce: true, skipDiscovery: false}}
server: {BindAddress: '', SecureBindAddress: '0.0.0.0:4443', TLS: {Key: {fromFile: /k}, Cert: {fromFile: /c}, MinVersion: ''}}
";
    let imported = imported(&["email_domains = [\"*\"]\n", alpha], Some("a.example.com")).unwrap();
    assert_eq!(noted(&imported), [""; 0], "{:?}", imported.notes);
    let listener = &parsed(&imported)["listeners"][0];
    assert_eq!(listener["address"], "0.0.0.0:4443");
    assert_eq!(listener["tls"]["certificates"], json!([{"chain": "/c", "key": "/k"}]));
}

#[test]
fn defaults_that_are_written_out_are_not_named() {
    for (name, usual, other) in [
        ("azure-tenant", "common", "8f1c"),
        ("oidc-email-claim", "email", "upn"),
        ("proxy-prefix", "/oauth2", "/sso"),
        ("session-store-type", "cookie", "redis"),
        ("skip-jwt-bearer-tokens", "false", "true"),
        ("user-id-claim", "email", "upn"),
    ] {
        let option = name.replace('-', "_");
        let flags = |value: &str| format!("{FLAGS}  - --{name}={value}\n");
        for (texts, is_noted) in [
            (vec![flags(usual)], false),
            (vec![flags(other)], true),
            (vec![flags(other), format!("{option} = \"{usual}\"\n")], false),
        ] {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let imported = imported(&texts, Some("a.example.com")).unwrap();
            assert_eq!(noted(&imported).contains(&&*option), is_noted, "{texts:?}: {:?}", imported.notes);
        }
    }
}

#[test]
fn one_file_of_authorities_is_read_and_the_others_are_noted() {
    let one = imported(&[CFG, "provider_ca_files = [\"/a\"]\n"], None).unwrap();
    let two = imported(&[CFG, "provider_ca_files = [\"/a\", \"/b\"]\n"], None).unwrap();
    for (imported, is_noted) in [(one, false), (two, true)] {
        assert_eq!(parsed(&imported)["issuers"][0]["ca"], "/a");
        assert_eq!(noted(&imported).contains(&"provider_ca_file"), is_noted, "{:?}", imported.notes);
    }
}

#[test]
fn another_address_of_the_way_back_is_noted() {
    for (more, noticed) in [
        ("  - --redirect-url=https://a.example.com/oauth2/callback\n", &[""; 0][..]),
        ("  - --redirect-url=https://a.example.com\n", &[]),
        ("  - --redirect-url=http://localhost:4180/oauth2/callback\n", &[]),
        ("  - --redirect-url=http://a.example.com/oauth2/callback\n", &["redirect_url"]),
        (
            "  - --redirect-url=https://a.example.com/sso/callback\n  - --proxy-prefix=/sso\n",
            &["redirect_url", "proxy_prefix"],
        ),
    ] {
        let imported = imported(&[&format!("{FLAGS}{more}")], None).unwrap();
        assert_eq!(noted(&imported), noticed, "{more}");
    }
}

/// Without `reverse_proxy` it trusts no such header.
#[test]
fn proxies_are_trusted_only_behind_one() {
    for (behind, trusted, noticed) in [
        ("  - --reverse-proxy=true\n", json!(["10.0.0.1/32"]), &[""; 0][..]),
        ("  - --reverse-proxy=T\n", json!(["10.0.0.1/32"]), &[]),
        ("  - --reverse-proxy=false\n", json!(null), &["trusted_proxy_ip"]),
        ("  - --reverse-proxy=False\n", json!(null), &["trusted_proxy_ip"]),
        ("  - --reverse-proxy=f\n", json!(null), &["trusted_proxy_ip"]),
        ("  - --reverse-proxy=0\n", json!(null), &["trusted_proxy_ip"]),
        ("", json!(null), &["trusted_proxy_ip"]),
    ] {
        let flags = format!("{FLAGS}{behind}  - --trusted-proxy-ip=10.0.0.1\n");
        let imported = imported(&[&flags], Some("a.example.com")).unwrap();
        assert_eq!(parsed(&imported)["listeners"][0]["trusted_proxies"], trusted, "{behind}");
        assert_eq!(noted(&imported), noticed, "{behind}");
    }
}

/// With TLS it listens only at `https_address`, and without it only at `http_address`.
#[test]
fn the_listener_is_at_the_address_that_was_listened_at() {
    let tls = "  - --tls-cert-file=/c\n  - --tls-key-file=/k\n";
    for (more, tls, address, setting) in [
        ("", "", "127.0.0.1:4180", None),
        ("  - --https-address=:8443\n", "", "127.0.0.1:4180", None),
        ("  - --http-address=:8080\n", "", "0.0.0.0:8080", None),
        ("  - --http-address=HTTP://10.0.0.1:80\n", "", "10.0.0.1:80", None),
        ("  - --http-address=localhost:8080\n", "", "127.0.0.1:8080", None),
        ("  - --http-address=[::]:8080\n", "", "[::]:8080", None),
        ("  - --http-address=unix:///run/a.sock\n", "", "127.0.0.1:4180", Some("http_address")),
        ("", tls, "0.0.0.0:443", None),
        ("  - --http-address=127.0.0.1:4180\n", tls, "0.0.0.0:443", None),
        ("  - --https-address=10.0.0.1:8443\n", tls, "10.0.0.1:8443", None),
        ("  - --tls-cert-file=/c\n", "", "0.0.0.0:443", Some("tls_key_file")),
    ] {
        let imported = imported(&[&format!("{FLAGS}{more}{tls}")], Some("a.example.com")).unwrap();
        let listener = &parsed(&imported)["listeners"][0];
        assert_eq!(listener["address"], address, "{more}{tls}");
        assert_eq!(listener.get("tls").is_some(), address.ends_with("443"), "{more}{tls}");
        assert_eq!(noted(&imported), setting.as_slice(), "{more}{tls}");
    }
}

#[test]
fn a_name_cannot_break_a_comment_and_an_error_reveals_no_secret() {
    let found = imported(&[CFG, "\"a\\nrules\" = 1\n"], None).unwrap();
    assert!(found.yaml.contains("# Not converted: `a\\nrules`: "), "{}", found.yaml);
    for text in [
        "[a]\nsecret = \"hunter2\"\n",
        "cookie_secret = \"hunter2\n",
        "a: {b: hunter2\n",
        "providers: [{clientID: {a: hunter2}}]",
    ] {
        let why = imported(&[text], Some("h")).map(|_| ()).unwrap_err();
        assert!(!why.contains("hunter2"), "{why}");
    }
}

#[test]
fn alpha_yaml_goes_together_with_a_cfg() {
    let alpha = "
upstreamConfig:
  upstreams:
    - {id: a, path: /, uri: 'http://a:1'}
    - {id: b, path: '^/(x)$', rewriteTarget: /y, uri: 'http://b:1'}
injectRequestHeaders:
  - {name: X, values: [{claim: email}]}
providers:
  - {id: p, provider: oidc, clientID: door, clientSecretFile: /s, oidcConfig: {issuerURL: 'https://id.example.com'}}
server: {BindAddress: '0.0.0.0:4180'}
";
    let imported =
        imported(&["email_domains = [\"*\"]\ncookie_secure = true\n", alpha], Some("a.example.com")).unwrap();
    let root = parsed(&imported);
    assert_eq!(root["upstreams"], json!([{"name": "upstream-1", "url": "http://a:1"}]));
    assert_eq!(root["issuers"][0]["issuer"], "https://id.example.com");
    assert_eq!(noted(&imported), ["upstreamConfig.rewriteTarget", "injectRequestHeaders"]);
}

#[test]
fn a_proxy_without_upstreams_is_imported_as_forward_auth() {
    let text = "provider = \"oidc\"\noidc_issuer_url = \"https://id.example.com\"\nclient_id = \"a\"\n\
        client_secret_file = \"/s\"\nemail_domains = [\"*\"]\nupstreams = [\"static://202\"]\nuser_id_claim = \"upn\"\n";
    let imported = imported(&[text], Some("a.example.com")).unwrap();
    let root = parsed(&imported);
    assert_eq!(root["forward_auth"], "nginx");
    assert_eq!(root["routes"][0]["hosts"], json!(["a.example.com"]));
    assert_eq!(noted(&imported), ["upstream", "user_id_claim"], "{:?}", imported.notes);
}

#[test]
fn alpha_yaml_that_only_answers_an_ingress_says_the_same() {
    let alpha = "
upstreamConfig: {upstreams: [{id: s, path: /, static: true, staticCode: 202}]}
providers: [{id: p, provider: github, clientID: door, clientSecretFile: /s, githubConfig: {org: acme, team: dev}}]
";
    let imported = imported(&[alpha, "email_domains = [\"*\"]\n"], Some("a.example.com")).unwrap();
    let root = parsed(&imported);
    assert_eq!((&root["forward_auth"], &root["issuers"][0]["tenant"]), (&json!("nginx"), &json!("acme")));
    assert_eq!(root["rules"][0]["who"]["groups"], json!(["acme:dev"]));
}

#[test]
fn an_organisation_of_github_with_its_teams_signs_in() {
    let text = "provider = \"github\"\ngithub_org = \"acme\"\ngithub_team = \"platform, release\"\nclient_id = \"a\"\n\
        client_secret_file = \"/s\"\nemail_domains = [\"*\"]\nupstreams = [\"http://a:1\"]\n\
        login_url = \"https://github.acme.example/login/oauth/authorize\"\n\
        redeem_url = \"https://github.acme.example/login/oauth/access_token\"\n";
    let imported = imported(&[text], Some("a.example.com")).unwrap();
    let root = parsed(&imported);
    let issuer = &root["issuers"][0];
    assert_eq!((&issuer["preset"], &issuer["tenant"]), (&json!("github_oauth"), &json!("acme")));
    assert_eq!(issuer["issuer"], "https://github.acme.example");
    assert_eq!(root["rules"][0]["who"]["groups"], json!(["acme:platform", "acme:release"]));
    assert_eq!(noted(&imported), [""; 0], "{:?}", imported.notes);
}

/// Its ID tokens have no groups, and oauth2-proxy asks userinfo for them.
#[test]
fn groups_of_gitlab_are_those_of_userinfo() {
    let login =
        |cfg: &str| parsed(&imported(&[cfg], Some("tekton.example.com")).unwrap())["issuers"][0]["login"].clone();
    let gitlab = CFG.replace("keycloak-oidc", "gitlab").replace("/realms/main", "");
    assert_eq!((&login(&gitlab)["userinfo"], &login(CFG)["userinfo"]), (&json!(true), &Value::Null));
}

#[test]
fn an_incomplete_configuration_is_an_error() {
    let base = "provider = \"oidc\"\nclient_id = \"a\"\n";
    for (row, text, host, word) in [
        ("no host", format!("{base}oidc_issuer_url = \"https://i\"\nupstreams = [\"http://a\"]"), None, "--host"),
        ("no issuer", format!("{base}upstreams = [\"http://a\"]"), Some("h"), "oidc_issuer_url"),
        ("no upstream", format!("{base}oidc_issuer_url = \"https://i\""), Some("h"), "upstream"),
        ("everybody at GitHub", "provider = \"github\"\nclient_id = \"a\"".to_owned(), Some("h"), "github_org"),
        ("no OpenID", "provider = \"bitbucket\"\nclient_id = \"a\"".to_owned(), Some("h"), "bitbucket"),
        ("a table", "[a]\nb = 1".to_owned(), Some("h"), "option"),
        ("neither", "hello".to_owned(), Some("h"), "neither"),
        ("empty", String::new(), Some("h"), "client_id"),
    ] {
        let found = imported(&[&text], host).map(|_| ()).unwrap_err();
        assert!(found.contains(word), "{row}: {found}");
    }
}
