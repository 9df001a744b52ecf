use super::*;

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
    let when = r#"principal.email.endsWith("@example.com") || principal.email.endsWith(".example.org")"#;
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

#[test]
fn durations_of_go_are_read() {
    for (text, expected) in
        [("168h0m0s", Some(604_800)), ("12h", Some(43_200)), ("90m30s", Some(5_430)), ("0", None), ("5", None)]
    {
        assert_eq!(seconds(text), expected, "{text}");
    }
    for text in ["h", "500ms", "1d", "99999999999999999999h", "9999999999999999999h"] {
        assert_eq!(seconds(text), None, "{text}");
    }
}

#[test]
fn flags_and_the_arguments_of_a_container_say_the_same() {
    let line = "oauth2-proxy --provider=oidc --oidc-issuer-url=https://id.example.com --client-id door \\\n  \
        --client-secret-file=/s --upstream=http://a:1 --email-domain=* --reverse-proxy";
    let list = "args:\n  - --provider=oidc\n  - --oidc-issuer-url=https://id.example.com\n  - \"--client-id=door\"\n  \
        - --client-secret-file=/s\n  - --upstream=http://a:1\n  - --email-domain=*\n  - --reverse-proxy\n";
    let [line, list] = [line, list].map(|text| imported(&[text], Some("a.example.com")).unwrap());
    assert_eq!(parsed(&line), parsed(&list));
    let root = parsed(&line);
    assert_eq!(root["issuers"][0]["login"]["client"], json!({"id": "door", "secret": {"file": "/s"}}));
    assert!(root["rules"][0].get("when").is_none(), "everybody who signs in");
    assert_eq!(noted(&line), ["reverse_proxy"]);
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
    assert_eq!(noted(&imported), ["injectRequestHeaders", "upstreamConfig.rewriteTarget"]);
}

#[test]
fn who_only_answers_an_ingress_is_asked_by_it() {
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

#[test]
fn what_leads_nowhere_is_an_error() {
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
