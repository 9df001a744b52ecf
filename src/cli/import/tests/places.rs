//! Which paths lead to which upstream.

use super::*;

/// With these upstreams in the alpha YAML.
fn alpha(upstreams: &str) -> Imported {
    let alpha = format!(
        "upstreamConfig:\n  upstreams:{upstreams}providers:\n  - {{id: p, provider: oidc, clientID: door, clientSecretFile: /s, \
         oidcConfig: {{issuerURL: 'https://id.example.com'}}}}\n"
    );
    imported(&["email_domains = [\"*\"]\n", &alpha], Some("a.example.com")).unwrap()
}

fn cfg(upstreams: &str) -> Imported {
    let text = format!(
        "provider = \"oidc\"\noidc_issuer_url = \"https://id.example.com\"\nclient_id = \"a\"\nclient_secret_file = \"/s\"\n\
         email_domains = [\"*\"]\nupstreams = [{upstreams}]\n"
    );
    imported(&[&text], Some("a.example.com")).unwrap()
}

/// Returns one field of each entry of a list.
fn all(root: &Value, list: &str, key: &str) -> Vec<Value> {
    root[list].as_array().unwrap().iter().map(|entry| entry[key].clone()).collect()
}

#[test]
fn an_upstream_of_alpha_yaml_is_served_at_its_path_or_left_out_by_name() {
    let imported = alpha(
        "
    - {id: a, path: /, uri: 'http://a:80/'}
    - {id: b, path: '^/b/v[0-9]/(.*)$', rewriteTarget: '/$1', uri: 'http://b:80'}
    - {id: c, path: /c/, uri: 'http://c:80', rewriteTarget: /x}
    - {id: d, path: /d, uri: 'http://d:80/deep'}
    - {id: e, path: '^/(x)$', uri: 'http://e:80'}
",
    );
    let root = parsed(&imported);
    assert_eq!(all(&root, "upstreams", "url"), ["http://a", "http://d"]);
    assert_eq!(all(&root, "routes", "paths"), [json!(["/*"]), json!(["/d"])]);
    assert_eq!(all(&root, "rules", "on")[1..], [json!({"paths": ["/b/*"]}), json!({"paths": ["/c/*"]})]);
    for left_out in ["`http://b:80` at the path `^/b/v[0-9]/(.*)$`", "`http://c:80` at", "`http://e:80` at"] {
        assert!(imported.notes.iter().any(|note| note.contains(left_out)), "{left_out}: {:?}", imported.notes);
    }
}

/// oauth2-proxy answered these itself, and the route of the shorter path would now send them to the app.
#[test]
fn a_path_that_was_answered_without_a_server_stays_shut() {
    let imported = alpha(
        "
    - {id: app, path: /, uri: 'http://app:8080'}
    - {id: shut, path: /metrics, static: true, staticCode: 403}
    - {id: files, path: /files/, uri: 'file:///var/www'}
    - {id: variable, path: '/users/{id}', uri: 'http://users:80'}
    - {id: longer, path: /files/api/, uri: 'http://api:80'}
",
    );
    let root = parsed(&imported);
    assert_eq!(all(&root, "routes", "paths"), [json!(["/*"]), json!(["/files/api/*"])]);
    let denied = ["/metrics", "/files/*", "/users/*"];
    assert_eq!(all(&root, "rules", "on")[1..], denied.map(|path| json!({"paths": [path]})));
    assert!(all(&root, "rules", "do")[1..].iter().all(|action| action == "deny"));
    let of = |text: &str| imported.notes.iter().find(|note| note.contains(text)).unwrap();
    assert!(of("`static://403` at the path `/metrics`").contains("`left-out-1` refuses all at `/metrics`"));
    assert!(of("`file:///var/www` at the path `/files/`").contains("the route `upstream-2`"));
    assert!(!of("`http://users:80` at").contains("the route"));
    let imported = cfg("\"http://app/\", \"file:///var/www#/files/\", \"unix:///run/a.sock\"");
    assert_eq!(all(&parsed(&imported), "rules", "on")[1..], [json!({"paths": ["/files/*"]})]);
    assert_eq!(noted(&imported), ["upstream", "upstream"]);
}

#[test]
fn a_path_without_a_slash_at_its_end_is_that_path_alone() {
    for (upstream, path) in [
        ("http://admin:9000/status", "/status"),
        ("http://admin:9000/status/", "/status/*"),
        ("http://admin:9000/status/x", "/status/x"),
    ] {
        let imported = cfg(&format!("\"http://app\", \"{upstream}\""));
        let root = parsed(&imported);
        assert_eq!(all(&root, "routes", "paths"), [json!(["/*"]), json!([path])], "{upstream}");
        assert_eq!(all(&root, "upstreams", "url"), ["http://app", "http://admin:9000"]);
        assert_eq!(noted(&imported), [""; 0], "{upstream}");
    }
}

#[test]
fn a_password_in_an_address_is_not_printed() {
    let served = cfg("\"http://user:hunter2@app/?key=hunter2\"");
    assert_eq!(all(&parsed(&served), "upstreams", "url"), ["http://app"]);
    assert_eq!(noted(&served), ["upstream"], "it is told of");
    let left_out = alpha(
        "
    - {id: app, path: /, uri: 'http://app'}
    - {id: b, path: /b/, uri: 'http://user:hunter2@b/', rewriteTarget: /}
    - {id: c, path: /c/, uri: 'ftp://user:hunter2@c/'}
    - {id: d, path: /d/, uri: 'user:hunter2@d:80/'}
    - {id: e, path: /e/, uri: 'http://user:hunter2@/'}
",
    );
    assert_eq!(all(&parsed(&left_out), "rules", "id").len(), 5);
    for imported in [served, left_out] {
        assert!(
            !imported.yaml.contains("hunter2") && !imported.notes.concat().contains("hunter2"),
            "{}",
            imported.yaml
        );
    }
}

#[test]
fn the_host_that_upstreams_saw_is_theirs_where_an_option_or_the_upstream_itself_said_so() {
    for (texts, expected) in [
        (vec![format!("{FLAGS}  - --pass-host-header=false\n")], json!("own")),
        (vec![format!("{FLAGS}  - --pass-host-header=true\n")], json!(null)),
        (vec![format!("{FLAGS}  - --pass-host-header\n")], json!(null)),
        (vec![FLAGS.to_owned(), "pass_host_header = false\n".to_owned()], json!("own")),
        (vec![FLAGS.to_owned(), "pass_host_header = true\n".to_owned()], json!(null)),
        (
            vec![
                format!("{FLAGS}  - --pass-host-header=false\n"),
                "upstreamConfig: {upstreams: [{id: a, path: /, uri: 'http://a:1'}]}\n".to_owned(),
            ],
            json!(null),
        ),
    ] {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let imported = imported(&texts, Some("a.example.com")).unwrap();
        assert_eq!(all(&parsed(&imported), "upstreams", "host"), [expected], "{texts:?}");
        assert_eq!(noted(&imported), [""; 0], "{texts:?}: {:?}", imported.notes);
    }
}
