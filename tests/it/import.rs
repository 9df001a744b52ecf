//! `doorward import`: its output is a configuration that passes `doorward check`.

use std::process::{Command, Output};

fn doorward(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doorward")).args(arguments).output().unwrap()
}

#[test]
fn a_configuration_of_oauth2_proxy_becomes_one_that_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("secret"), "client-secret").unwrap();
    let common = format!(
        "client_id = \"tekton\"\nclient_secret_file = \"{}\"\nupstreams = [\"http://dashboard.tekton:9097/\", \
         \"http://docs.tekton:8080/docs/\"]\nreverse_proxy = true\ntrusted_proxy_ips = [\"10.0.0.0/8\"]\n\
         cookie_expire = \"12h0m0s\"\nscope = \"openid email\"\n",
        path("secret")
    );
    let keycloak = "provider = \"keycloak-oidc\"\noidc_issuer_url = \"https://id.example.com/realms/a\"\n\
        email_domains = [\"example.com\", \".example.org\"]\nallowed_groups = [\"/dev\"]\n";
    let google = "provider = \"google\"\nemail_domains = [\"example.com\"]\n";
    let github = "provider = \"github\"\ngithub_org = \"acme\"\nemail_domains = [\"*\"]\n";
    let oidc = "provider = \"oidc\"\noidc_issuer_url = \"https://id.example.com\"\nemail_domains = [\"*\"]\n";
    for written in [keycloak, google, github, oidc] {
        std::fs::write(path("oauth2-proxy.cfg"), format!("{common}{written}")).unwrap();
        let converted = doorward(&["import", "oauth2-proxy", "--host", "a.example.com", &path("oauth2-proxy.cfg")]);
        let notes = String::from_utf8(converted.stderr).unwrap();
        assert_eq!((converted.status.code(), &*notes), (Some(0), ""), "{written}");
        std::fs::write(path("doorward.yaml"), converted.stdout).unwrap();
        let checked = doorward(&["check", &path("doorward.yaml")]);
        let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        assert_eq!(checked.status.code(), Some(0), "{written}{said}");
    }

    let asked =
        common.replace("[\"http://dashboard.tekton:9097/\", \"http://docs.tekton:8080/docs/\"]", "[\"static://202\"]");
    std::fs::write(path("asked.cfg"), format!("{asked}{oidc}")).unwrap();
    let converted = doorward(&["import", "oauth2-proxy", "--host", "a.example.com", &path("asked.cfg")]);
    assert_eq!(converted.status.code(), Some(2), "{}", String::from_utf8_lossy(&converted.stderr));
    std::fs::write(path("doorward.yaml"), converted.stdout).unwrap();
    let checked = doorward(&["check", &path("doorward.yaml")]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));

    std::fs::write(path("roles.cfg"), format!("{common}{keycloak}allowed_roles = [\"deployers\"]\n")).unwrap();
    let converted = doorward(&["import", "oauth2-proxy", "--host", "a.example.com", &path("roles.cfg")]);
    let notes = String::from_utf8(converted.stderr).unwrap();
    assert!(converted.status.code() == Some(2) && notes.contains("the rule lets nobody in yet"), "{notes}");
    std::fs::write(path("doorward.yaml"), converted.stdout).unwrap();
    let checked = doorward(&["check", &path("doorward.yaml")]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));

    std::fs::write(path("more.cfg"), format!("{common}{oidc}cookie_domains = [\".example.com\"]\n")).unwrap();
    let converted = doorward(&["import", "oauth2-proxy", "--host", "a.example.com", &path("more.cfg")]);
    let notes = String::from_utf8(converted.stderr).unwrap();
    assert_eq!(converted.status.code(), Some(2));
    assert!(notes.contains("`cookie_domain`: a session belongs to one host"), "{notes}");
    let missing = doorward(&["import", "oauth2-proxy", &path("nowhere.cfg")]);
    assert_eq!(missing.status.code(), Some(1));
}
