use super::*;

fn settings_of(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> (Vec<Setting>, Vec<Finding>) {
    let sources = Sources {
        path: PathBuf::new(),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        settings: flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let mut findings = Vec::new();
    let settings = settings(&schema(), &sources, &Node::parse(file, 0).unwrap(), &mut findings);
    (settings, findings)
}

#[test]
fn a_short_drain_shortens_the_time_for_new_connections() {
    let accept = |file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]| {
        let (settings, _) = settings_of(file, environment, flags);
        let merged = merge(&schema(), &Node::parse(file, 0).unwrap(), &settings, &mut Locations::default()).unwrap();
        merged.pointer("/limits/drain_accept").and_then(|accept| accept.as_str().map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(accept("{}", &[(GRACE_PERIOD, "8")], &[]), some("1500ms"));
    assert_eq!(accept("{}", &[(GRACE_PERIOD, "13")], &[]), some("4s"), "requests in flight have the other half");
    assert_eq!(accept("{}", &[(GRACE_PERIOD, "15")], &[]), None);
    assert_eq!(accept("limits: {drain_accept: 1s}", &[(GRACE_PERIOD, "8")], &[]), some("1s"));
    assert_eq!(accept("limits: {drain: 8s}", &[], &[]), some("4s"));
    assert_eq!(accept("limits: {drain: 8s}", &[("DOORWARD_LIMITS__DRAIN_ACCEPT", "5s")], &[]), some("5s"));
    assert_eq!(accept("{}", &[], &[("limits", "{drain: 8s}")]), some("4s"));
    assert_eq!(accept("limits: {drain: soon}", &[], &[]), None);
    // The one duration that may be a number.
    assert_eq!(accept("limits: {drain: 0}", &[], &[]), some("0s"));
    assert_eq!(accept("{}", &[("DOORWARD_LIMITS__DRAIN", "0")], &[]), some("0s"));
    assert_eq!(accept("{}", &[], &[("limits.drain", "0")]), some("0s"));
    assert_eq!(accept("limits: {drain: 8}", &[], &[]), None);
}

#[test]
fn the_grace_period_of_the_pod_gives_the_drain_where_nothing_else_does() {
    let drain = |file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]| {
        let (settings, findings) = settings_of(file, environment, flags);
        let merged = merge(&schema(), &Node::parse(file, 0).unwrap(), &settings, &mut Locations::default()).unwrap();
        let problems: Vec<String> = findings.iter().map(|finding| finding.message.clone()).collect();
        (merged.pointer("/limits/drain").and_then(|drain| drain.as_str().map(str::to_owned)), problems)
    };
    let some = |text: &str| (Some(text.to_owned()), Vec::new());
    assert_eq!(drain("workers: 1", &[(GRACE_PERIOD, "60")], &[]), some("55s"));
    assert_eq!(drain("limits: {connections: 9}", &[(GRACE_PERIOD, "60")], &[]), some("55s"));
    assert_eq!(drain("limits: {drain: 20s}", &[(GRACE_PERIOD, "60")], &[]), some("20s"));
    assert_eq!(drain("{}", &[(GRACE_PERIOD, "60"), ("DOORWARD_LIMITS__DRAIN", "20s")], &[]), some("20s"));
    assert_eq!(drain("{}", &[(GRACE_PERIOD, "60")], &[("limits.drain", "20s")]), some("20s"));
    assert_eq!(drain("{}", &[(GRACE_PERIOD, "60")], &[("limits", "{drain: 20s}")]), some("20s"));
    assert_eq!(drain("{}", &[(GRACE_PERIOD, "soon")], &[("limits.drain", "20s")]), some("20s"));
    for wrong in ["soon", "", "5", "-1"] {
        let (drain, problems) = drain("{}", &[(GRACE_PERIOD, wrong)], &[]);
        assert_eq!((drain, problems.len()), (None, 1), "{wrong}");
    }
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let file = "audit: {when_full: refuse, queue: 1}\nlog: {filter: a, format: text}\nworkers: 1\n";
    let (settings, findings) = settings_of(
        file,
        &[("DOORWARD_AUDIT__WHEN_FULL", "continue"), ("DOORWARD_WORKERS", "2"), ("HOME", "/")],
        &[("workers", "3"), ("log.filter", "debug")],
    );
    assert!(findings.is_empty(), "{findings:?}");
    let mut locations = Locations::default();
    let merged = merge(&schema(), &Node::parse(file, 0).unwrap(), &settings, &mut locations).unwrap();
    assert_eq!(
        merged,
        serde_json::json!({
            "audit": {"when_full": "continue", "queue": 1},
            "log": {"filter": "debug", "format": "text"},
            "workers": 3,
        })
    );
    let place = |pointer: [&str; 2]| locations.place(&At::root().key(pointer[0]).key(pointer[1]));
    assert_eq!(
        place(["audit", "when_full"]),
        Some(Location::Given(Giver::Variable("DOORWARD_AUDIT__WHEN_FULL".to_owned())))
    );
    assert_eq!(place(["log", "filter"]), Some(Location::Given(Giver::Flag("log.filter".to_owned()))));
    assert_eq!(place(["audit", "queue"]), Some(Location::File { file: 0, span: 34..35 }));
    assert_eq!(locations.place(&At::root().key("workers")), Some(Location::Given(Giver::Flag("workers".to_owned()))));
}

/// Both keys were present, and the file was blamed for it.
#[test]
fn of_mutually_exclusive_keys_the_later_layer_decides() {
    let file = "admin: {token: {file: t}}\naudit: {chain_key: {file: c}}\nstore: {redis: {cluster: [a], prefix: p, password: {file: r}}}\n";
    let merged = |environment: &[(&str, &str)], flags: &[(&str, &str)]| {
        let (settings, findings) = settings_of(file, environment, flags);
        assert!(findings.is_empty(), "{findings:?}");
        let mut locations = Locations::default();
        (merge(&schema(), &Node::parse(file, 0).unwrap(), &settings, &mut locations).unwrap(), locations)
    };
    let token = At::root().key("admin").key("token");
    let (whole, locations) = merged(
        &[("DOORWARD_ADMIN__TOKEN", "{env: A}"), ("DOORWARD_STORE__REDIS__SERVER", "b:1")],
        &[("audit.chain_key.env", "C"), ("store", "{redis: {password: {env: R}}}")],
    );
    assert_eq!(
        whole,
        serde_json::json!({
            "admin": {"token": {"env": "A"}},
            "audit": {"chain_key": {"env": "C"}},
            "store": {"redis": {"server": "b:1", "prefix": "p", "password": {"env": "R"}}},
        })
    );
    let variable = Some(Location::Given(Giver::Variable("DOORWARD_ADMIN__TOKEN".to_owned())));
    assert_eq!(locations.place(&token), variable);

    let (whole, _) = merged(&[("DOORWARD_ADMIN__TOKEN__FILE", "other")], &[("store.redis", "{sentinel: {master: m}}")]);
    assert_eq!(whole.pointer("/admin/token"), Some(&serde_json::json!({"file": "other"})));
    let redis = serde_json::json!({"sentinel": {"master": "m"}, "prefix": "p", "password": {"file": "r"}});
    assert_eq!(whole.pointer("/store/redis"), Some(&redis));
    let (whole, _) = merged(&[("DOORWARD_ADMIN__TOKEN", "{env: A}")], &[("admin.token", "{file: last}")]);
    assert_eq!(whole.pointer("/admin/token"), Some(&serde_json::json!({"file": "last"})));

    let both = [("DOORWARD_ADMIN__TOKEN__ENV", "A"), ("DOORWARD_ADMIN__TOKEN__FILE", "other")];
    let (whole, locations) = merged(&both, &[]);
    assert_eq!(whole.pointer("/admin/token"), Some(&serde_json::json!({"env": "A", "file": "other"})));
    assert!(matches!(locations.place(&token), Some(Location::Given(_))), "no file is blamed for it");
}

/// A section with a key from another layer was shown at that layer for all its problems.
#[test]
fn a_section_of_the_file_is_shown_there_where_another_layer_sets_what_it_chose() {
    let file = "store: {redis: {server: 'a:1'}}\n";
    let (settings, _) = settings_of(file, &[("DOORWARD_STORE__REDIS__SERVER", "b:1")], &[]);
    let mut locations = Locations::default();
    merge(&schema(), &Node::parse(file, 0).unwrap(), &settings, &mut locations).unwrap();
    let redis = At::root().key("store").key("redis");
    assert!(matches!(locations.place(&redis), Some(Location::File { .. })));
    assert!(matches!(locations.place(&redis.key("server")), Some(Location::Given(_))));
}

#[test]
fn a_list_that_is_set_takes_the_places_of_the_one_in_the_file_away() {
    let file = "policies: [a, b]\n";
    let (settings, _) = settings_of(file, &[("DOORWARD_POLICIES", "[c]")], &[]);
    let mut locations = Locations::default();
    let merged = merge(&schema(), &Node::parse(file, 0).unwrap(), &settings, &mut locations).unwrap();
    assert_eq!(merged, serde_json::json!({"policies": ["c"]}));
    let given = Some(Location::Given(Giver::Variable("DOORWARD_POLICIES".to_owned())));
    assert_eq!(locations.place(&At::root().key("policies").index(0)), given);
}

#[test]
fn a_variable_that_is_no_setting_is_an_error_unless_something_else_explains_it() {
    for (name, file, error) in [
        ("DOORWARD_AUDIT_WHEN_FULL", "", Some("did you mean `DOORWARD_AUDIT__WHEN_FULL`?")),
        ("DOORWARD_WORKRES", "", Some("did you mean `DOORWARD_WORKERS`?")),
        ("DOORWARD_ADMIN_TOKEN", "", Some("did you mean `DOORWARD_ADMIN__TOKEN`?")),
        ("DOORWARD_ADMIN_TOKEN", "admin: {token: {env: DOORWARD_ADMIN_TOKEN}}", None),
        ("DOORWARD_SOMETHING_ELSE_ENTIRELY", "", Some("variables that begin with")),
        ("DOORWARD_CONFIG", "", None),
        ("DOORWARD_TOKEN_FILE", "", None),
        ("DOORWARD_SERVICE_HOST", "", None),
        ("DOORWARD_SERVICE_PORT_HTTPS", "", None),
        ("DOORWARD_PORT", "", None),
        ("DOORWARD_PORT_443_TCP", "", None),
        ("DOORWARD_PORT_443_TCP_ADDR", "", None),
        ("DOORWARD_ADMIN_SERVICE_HOST", "", None),
        ("DOORWARD_PORT_443_TCP_NAME", "", Some("variables that begin with")),
    ] {
        let (settings, findings) = settings_of(file, &[(name, "hunter2")], &[]);
        assert!(settings.is_empty(), "{name}");
        match error {
            None => assert!(findings.is_empty(), "{name}: {findings:?}"),
            Some(help) => {
                assert_eq!(findings.len(), 1, "{name}");
                assert!(findings[0].help.as_deref().unwrap().starts_with(help), "{findings:?}");
                assert!(!format!("{findings:?}").contains("hunter2"));
            }
        }
    }
}

/// The variable was reported as unknown if another one or a flag named it by the whole path, but not if it was named
/// within a map.
#[test]
fn a_variable_that_another_one_or_a_flag_names_as_the_source_of_a_secret_is_no_stranger() {
    const SECRET: (&str, &str) = ("DOORWARD_ADMIN_TOKEN", "hunter2");
    for (environment, flags) in [
        (vec![("DOORWARD_ADMIN__TOKEN", "{env: DOORWARD_ADMIN_TOKEN}"), SECRET], vec![]),
        (vec![("DOORWARD_ADMIN__TOKEN__ENV", "DOORWARD_ADMIN_TOKEN"), SECRET], vec![]),
        (vec![SECRET], vec![("admin.token.env", "DOORWARD_ADMIN_TOKEN")]),
    ] {
        let (settings, findings) = settings_of("", &environment, &flags);
        assert!(settings.len() == 1 && findings.is_empty(), "{findings:?}");
    }
}

#[test]
fn a_path_into_a_list_or_a_value_that_is_no_yaml_is_refused() {
    for flag in
        [("listeners.0.address", "x"), ("", "x"), ("log..filter", "x"), ("workers", "["), ("log", "{a: 1, a: 2}")]
    {
        let (settings, findings) = settings_of("", &[], &[flag]);
        assert!(settings.is_empty() && findings.len() == 1, "{flag:?}");
    }
}
