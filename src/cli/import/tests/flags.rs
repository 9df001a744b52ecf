//! Flags on a command line and in the arguments of a container, and variables that are written as flags.

use super::*;

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
    assert_eq!(root["rules"][0]["when"], ANYBODY);
    assert_eq!(noted(&line), ["reverse_proxy"]);
}

/// By the command in the documentation, with names that are plural there. One version worked only with GNU `sed`, and
/// an apostrophe made its entry invalid YAML.
#[test]
fn variables_that_are_written_as_flags_say_the_same() {
    let page = include_str!("../../../../docs/migrate-from-oauth2-proxy.md");
    let (_, command) = page.split_once("kubectl set env deployment/oauth2-proxy --list | ").unwrap();
    let (command, _) = command.split_once(" > variables.yaml\n").unwrap();
    let listed = tempfile::NamedTempFile::new().unwrap();
    let variables = "# Deployment oauth2-proxy, container oauth2-proxy\n# OAUTH2_PROXY_CLIENT_SECRET from secret a, key b\n\
        OAUTH2_PROXY_PROVIDER=oidc\nOAUTH2_PROXY_OIDC_ISSUER_URL=https://id.example.com\nOAUTH2_PROXY_CLIENT_ID=door's=1\n\
        OAUTH2_PROXY_CLIENT_SECRET_FILE=/s\nOAUTH2_PROXY_UPSTREAMS=http://a:1\nOAUTH2_PROXY_EMAIL_DOMAINS=example.com\nPATH=/bin\n";
    std::fs::write(listed.path(), variables).unwrap();
    let written = std::process::Command::new("sh")
        .args(["-c", command])
        .stdin(std::fs::File::open(listed.path()).unwrap())
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    let variables = String::from_utf8(written.stdout).unwrap();
    let flags = FLAGS.replace("--client-id=door", "\"--client-id=door's=1\"");
    let [variables, flags] = [variables, flags].map(|text| imported(&[&text], Some("a.example.com")).unwrap());
    assert_eq!(parsed(&variables), parsed(&flags));
    let more = format!("{FLAGS}  - '--skip_auth_routes=/a'\n  - '--cookie_domains=example.com'\n");
    assert_eq!(noted(&imported(&[&more], Some("a.example.com")).unwrap()), ["cookie_domain", "skip_auth_route"]);
}

#[test]
fn a_command_on_one_line_is_read_as_flags() {
    const LINE: &str = "--provider=oidc --oidc-issuer-url=https://id.example.com --client-id door --client-secret-file=/s \
        --upstream=http://a:1 --email-domain=*";
    let plain = parsed(&imported(&[LINE], Some("a.example.com")).unwrap());
    for program in
        ["oauth2-proxy", "exec oauth2-proxy", "./oauth2_proxy", "/bin/oauth2-proxy", "./oauth2-proxy", "'oauth2-proxy'"]
    {
        let imported = imported(&[&format!("{program} {LINE}\n")], Some("a.example.com")).unwrap();
        assert_eq!((parsed(&imported), noted(&imported)), (plain.clone(), Vec::new()), "{program}");
    }
}

#[test]
fn lists_between_commas_are_lists() {
    let both = r#"has(principal.email) && (principal.email.lowerAscii().endsWith("@example.com") || principal.email.lowerAscii().endsWith("@a.test"))"#;
    let one = OF_EXAMPLE;
    for (more, when, groups) in [
        ("  - --email-domain=a.test\n", both, json!(null)),
        ("  - --allowed-group=dev,ops\n", one, json!(["dev", "ops"])),
        ("  - --allowed-group\n  - dev,ops\n", one, json!(["dev", "ops"])),
        ("  - --allowed-group=dev,ops\n  - --allowed-group=root\n", one, json!(["dev", "ops", "root"])),
        ("  - --allowed-group=\"cn=a,dc=b\",ops\n", one, json!(["cn=a,dc=b", "ops"])),
        ("--allowed-group 'dev,ops'\n", one, json!(["dev", "ops"])),
    ] {
        let imported = imported(&[&format!("{FLAGS}{more}")], Some("a.example.com")).unwrap();
        let rule = &parsed(&imported)["rules"][0];
        assert_eq!((&rule["when"], &rule["who"]["groups"]), (&json!(when), &groups), "{more}");
    }
    let flags = FLAGS.replace("=example.com", "=example.com,a.test");
    let flags = parsed(&imported(&[&flags], Some("a.example.com")).unwrap());
    assert_eq!(flags["rules"][0]["when"], both);
    // Everybody, as oauth2-proxy understood it.
    let cfg = CFG.replace("email_domains = [\"example.com\", \".example.org\"]", "email_domains = \"example.com,*\"");
    assert_eq!(parsed(&imported(&[&cfg], Some("a.example.com")).unwrap())["rules"][0]["when"], ANYBODY);
}

/// An entry that was disabled with `#` let everybody in again.
#[test]
fn access_settings_in_comments_are_ignored() {
    let when = OF_EXAMPLE;
    for (row, more, groups) in [
        ("a domain", "  # - --email-domain=*\n", json!(null)),
        ("a domain, at once", "  #- --email-domain=*\n", json!(null)),
        ("a group", "  - --allowed-group=dev\n  # - --allowed-group=interns\n", json!(["dev"])),
        ("behind an entry", "  - --allowed-group=dev # team\n", json!(["dev"])),
        ("behind an entry in quotes", "  - \"--allowed-group=dev\" # \"team\"\n", json!(["dev"])),
        ("an entry alone", "  - --allowed-group\n  - dev # team\n  - # --email-domain=*\n", json!(["dev"])),
        ("a line of a shell", "--allowed-group=dev # --allowed-group=interns --email-domain=*\n", json!(["dev"])),
        ("twin: no comment", "  - --allowed-group=dev#team\n", json!(["dev#team"])),
        ("twin: in quotes", "  - '--allowed-group=dev # team'\n", json!(["dev # team"])),
        ("twin: in quotes of a shell", "--allowed-group=\"dev # team\"\n", json!(["dev # team"])),
    ] {
        let imported = imported(&[&format!("{FLAGS}{more}")], Some("a.example.com")).unwrap();
        let rule = &parsed(&imported)["rules"][0];
        assert_eq!((&rule["when"], &rule["who"]["groups"]), (&json!(when), &groups), "{row}");
        assert_eq!(noted(&imported), [""; 0], "{row}: {:?}", imported.notes);
    }
}

#[test]
fn flags_in_brackets_are_refused_and_not_left_out() {
    for list in [
        "args: [\"--allowed-group=dev\",\n  \"--email-domain=*\"]\n",
        "args: [--allowed-group=dev,\n  --email-domain=*]\n",
        "args: [\n  '--allowed-group=dev',\n  ]\n",
        "args:\n  - ['--allowed-group=dev']\n",
    ] {
        let why = imported(&[&format!("{FLAGS}{list}")], Some("a.example.com")).unwrap_err();
        assert!(why.contains("brackets"), "{list}: {why}");
    }
}

/// The flag was left out silently, and the rule let in everybody of the domain.
#[test]
fn an_entry_with_unbalanced_quotes_is_refused_and_not_skipped() {
    for entry in
        ["'--allowed-group=o'brien'", "'--allowed-group=dev", "\"--allowed-group=dev", "\"--allowed-group=a\"b"]
    {
        let why = imported(&[&format!("{FLAGS}  - {entry}\n")], Some("a.example.com")).unwrap_err();
        assert!(why.starts_with("line 8: the quotes"), "{entry}: {why}");
        assert!(!why.contains("allowed-group"), "{entry}: {why}");
    }
}
