//! Tests of the sources of a configuration, and of reading it again.

use std::{fs, path::Path};

use super::{Case, GOOD, load};
use crate::config::{
    raw::{self, WhenFull},
    report::At,
    values::SecretSource,
};

#[test]
fn the_environment_and_flags_win_over_the_file() {
    let loaded = Case::new(GOOD)
        .env("DOORWARD_AUDIT__WHEN_FULL", "continue")
        .env("DOORWARD_WORKERS", "3")
        .env("DOORWARD_SERVICE_HOST", "10.0.0.1")
        .set("workers", "4")
        .set("listeners", "[{name: other, address: '127.0.0.1:1'}]")
        .load()
        .unwrap();
    assert_eq!(loaded.raw.audit.when_full, WhenFull::Continue);
    assert_eq!(loaded.raw.workers, Some(4));
    assert_eq!(loaded.raw.listeners[0].name, "other");
    // Neighbours keep their values, and unset keys have their defaults.
    assert_eq!(loaded.raw.audit.queue, raw::Audit::default().queue);
    assert_eq!(loaded.raw.sessions.keys.len(), 1);
}

#[test]
fn a_variable_or_a_flag_chooses_another_source_of_a_secret_than_the_file() {
    let case = || Case::new(&format!("{GOOD}admin: {{token: {{file: admin.token}}}}\n"));
    for case in [
        case().env("DOORWARD_ADMIN__TOKEN", "{env: ADMIN_TOKEN}"),
        case().env("DOORWARD_ADMIN__TOKEN__ENV", "ADMIN_TOKEN"),
        case().set("admin.token", "{env: ADMIN_TOKEN}"),
    ] {
        let loaded = case.load().unwrap();
        assert_eq!(loaded.raw.admin.token, Some(SecretSource::Env("ADMIN_TOKEN".to_owned())));
    }
    let misspelt = case().env("DOORWARD_ADMIN__TOKEN", "{enf: ADMIN_TOKEN}").printed();
    assert!(misspelt.contains("environment variable DOORWARD_ADMIN__TOKEN"), "{misspelt}");
}

/// The variable was blamed for a key that it does not set.
#[test]
fn a_missing_setting_is_reported_in_its_file_section_despite_a_variable_beside_it() {
    for (section, variable, missing) in [
        ("interceptor:\n  settle: 5s\n", ("DOORWARD_INTERCEPTOR__SETTLE", "6s"), "`host` is missing"),
        ("break_glass: {certificates: []}\n", ("DOORWARD_BREAK_GLASS__CERTIFICATES", "[]"), "`until` is missing"),
    ] {
        let printed = Case::new(&format!("{section}{GOOD}")).env(variable.0, variable.1).printed();
        let told = format!("error: {missing}\n --> doorward.yaml:1:1\n");
        assert!(printed.contains(&told), "{printed}");
    }
    let printed = Case::new(GOOD).env("DOORWARD_INTERCEPTOR__SETTLE", "6s").printed();
    assert!(printed.contains("`host` is missing\n--> environment variable DOORWARD_INTERCEPTOR__SETTLE"), "{printed}");
}

/// The file was blamed for its content.
#[test]
fn a_choice_spread_over_layers_or_incomplete_is_replaced_by_a_later_one() {
    let redis = |sentinel: &str| Case::new(&format!("{GOOD}store: {{redis: {{sentinel: {sentinel}}}}}\n"));
    for case in [
        redis("{servers: ['a:1'], master: m}").env("DOORWARD_STORE__REDIS__SENTINEL__MASTER", "n"),
        redis("{master: m}").env("DOORWARD_STORE__REDIS__SENTINEL__SERVERS", "['a:1']"),
        redis("{master: m}"),
    ] {
        let redis = case.set("store.redis.server", "'r:1'").load().unwrap().raw.store.redis.unwrap();
        assert_eq!((redis.server.as_deref(), redis.sentinel), (Some("r:1"), None));
    }
}

/// The file was blamed for a second key that it does not have.
#[test]
fn an_empty_variable_that_would_choose_is_named() {
    let printed =
        Case::new(&format!("{GOOD}admin: {{token: {{file: t}}}}\n")).env("DOORWARD_ADMIN__TOKEN__ENV", "").printed();
    assert!(
        printed.contains("expected text, found nothing\n--> environment variable DOORWARD_ADMIN__TOKEN__ENV"),
        "{printed}"
    );
    assert!(printed.ends_with("\n1 error\n"), "{printed}");
}

/// A chart whose value is not set removed the only server.
#[test]
fn an_empty_list_of_a_layer_chooses_nothing() {
    let case = || Case::new(&format!("{GOOD}store: {{redis: {{server: 'r:1'}}}}\n"));
    for case in [
        case().env("DOORWARD_STORE__REDIS__CLUSTER", "[]"),
        case().set("store.redis", "{cluster: [], prefix: p}"),
        Case::new(&format!("{GOOD}store: {{redis: {{sentinel: {{servers: ['s:1'], master: m}}, cluster: []}}}}\n"))
            .set("store.redis.server", "'r:1'"),
    ] {
        let redis = case.load().unwrap().raw.store.redis.unwrap();
        assert_eq!((redis.server.as_deref(), redis.sentinel, redis.cluster), (Some("r:1"), None, Vec::new()));
    }
}

#[test]
fn rules_of_policy_files_follow_those_of_the_main_file() {
    let case = Case::new(&format!("policies: [a.yaml, b.yaml]\n{GOOD}"))
        .file("a.yaml", "rules: [{id: a, do: deny}]\ngrants: [{id: g, who: {}, kubernetes_groups: [x]}]")
        .file("b.yaml", "rules: [{id: b, do: allow}]")
        .folder();
    let loaded = case.load().unwrap();
    let ids: Vec<&str> = loaded.raw.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!(ids, ["developers", "a", "b"]);
    assert_eq!(loaded.raw.grants.len(), 1);
    assert_eq!(loaded.warnings.findings(), []);
    let files: Vec<&Path> = loaded.fingerprint.files().collect();
    assert_eq!(files, ["a.yaml", "b.yaml", "doorward.yaml"].map(|name| case.folder.path().join(name)));
}

#[test]
fn files_that_change_while_they_are_read_are_read_again() {
    let case = Case::new(GOOD).file("extra", "old");
    let mut calls = 0;
    let (loaded, read) = load(&case.sources, |_, resolver| {
        calls += 1;
        let read = resolver.read(&At::root(), Path::new("extra"));
        if calls == 1 {
            fs::write(case.folder.path().join("extra"), "new").unwrap();
        }
        read
    })
    .unwrap();
    assert_eq!((calls, read.as_deref()), (2, Some(&b"new"[..])));
    assert!(loaded.fingerprint.is_current());

    let refused = load(&case.sources, |_, resolver| {
        calls += 1;
        _ = resolver.read(&At::root(), Path::new("extra"));
        fs::write(case.folder.path().join("extra"), calls.to_string()).unwrap();
    })
    .unwrap_err();
    assert!(refused.to_string().contains("changed again and again"), "{refused}");
}

#[test]
fn a_problem_that_a_component_reports_refuses_the_whole() {
    let case = Case::new(GOOD);
    assert!(load(&case.sources, |_, _| 7).is_ok_and(|(_, result)| result == 7));
    let refused = load(&case.sources, |_, resolver| {
        resolver.error(&At::root().key("issuers").index(0).key("issuer"), "no");
    })
    .unwrap_err();
    assert_eq!(refused.diagnosis.errors(), 1);
    let json = refused.diagnosis.to_json();
    assert_eq!(json["findings"][0]["line"], 7);
    assert_eq!(json["findings"][0]["column"], 13);
    assert_eq!(json["findings"][0]["at"], "/issuers/0/issuer");
}
