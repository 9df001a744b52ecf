//! Tests of the digest of a configuration.

use std::sync::Arc;

use super::{Case, GOOD};

fn case(main: &str, policy: &str) -> Case {
    Case::new(&format!("policies: [rules.yaml]\n{main}")).file("rules.yaml", policy)
}

fn digest(case: &Case) -> Arc<str> {
    case.load().unwrap().digest
}

#[test]
fn the_digest_follows_the_content_of_a_configuration_and_not_its_location() {
    let main = format!("{GOOD}workers: 1\n");
    let plain = digest(&case(&main, "grants: []\n"));
    assert_eq!(plain, digest(&case(&main, "# Nobody\ngrants: []\n")), "in another folder, with a comment");
    assert_eq!(plain, digest(&case(&main, "grants: []\n").env("DOORWARD_WORKERS", "3").set("workers", "2")));
    let more = format!("{main}limits: {{drain_accept: 0}}\n");
    assert_ne!(plain, digest(&case(&more, "grants: []\n")), "a setting that is no policy");
    assert_ne!(plain, digest(&case(&main, "grants: []\nrules: [{id: extra, do: deny}]\n")), "a file of the policy");
}

/// Text that looks like an address with a password was left out, so a change of who is admitted was reported as in
/// force at once, even where it was refused.
#[test]
fn the_digest_distinguishes_people_and_conditions_from_user_and_password() {
    let of_rule = |rule: &str| digest(&case(GOOD, &format!("rules: [{{id: extra, {rule}, do: allow}}]\n")));
    for (one, other) in [
        ("who: {users: ['corp:alice@example.com']}", "who: {users: ['corp:carol@example.com']}"),
        ("when: \"principal.email=='a:b@example.com'\"", "when: \"principal.email=='a:c@example.com'\""),
    ] {
        assert_ne!(of_rule(one), of_rule(other), "{one}");
    }
    let of_template = |username: &str| {
        let audiences = "audiences: [doorward]";
        digest(&case(&GOOD.replace(audiences, &format!("{audiences}\n    username: '{username}'")), "grants: []\n"))
    };
    assert_ne!(of_template("corp:{sub}@a"), of_template("corp:{sub}@b"));
}

/// Somebody who knows the rest could guess passwords until the digest matches.
#[test]
fn a_password_that_something_overlays_or_a_comment_holds_is_not_in_the_digest() {
    for written in [
        "store: {redis: {server: 'rediss://d:PASSWORD@valkey:6379'}}\n",
        "store: {redis: {cluster: ['d:PASSWORD@valkey:6379']}}\n",
        "# redis://d:PASSWORD@valkey:6379\n",
    ] {
        let with = |password: &str| case(&format!("{GOOD}{}", written.replace("PASSWORD", password)), "grants: []\n");
        let variable = |password: &str| digest(&with(password).env("DOORWARD_STORE__REDIS__SERVER", "valkey:6379"));
        assert_eq!(variable("one"), variable("two"), "{written}");
        let flag = |password: &str| digest(&with(password).set("store.redis", "{server: 'valkey:6379'}"));
        assert_eq!(flag("one"), flag("two"), "{written}");
        assert_eq!(variable("one"), flag("two"), "{written}");
    }
}

/// It is neither the path of a file nor a name, and nothing refuses it.
#[test]
fn a_secret_that_something_overlays_is_not_in_the_digest() {
    let of = |secret: &str, overlaid: bool| {
        let case = case(&format!("{GOOD}admin: {{token: {secret}}}\n"), "grants: []\n");
        digest(&if overlaid { case.env("DOORWARD_ADMIN__TOKEN", "{env: A}") } else { case })
    };
    assert_eq!(of("one", true), of("two", true));
    assert_eq!(of("[one]", true), of("[two]", true));
    assert_ne!(of("{file: one}", true), of("{file: two}", true), "a path is no secret");
    assert_eq!(of("{file: one}", true), of("{file: one}", false));
    let claims = "rules: [{id: r, who: {claims: {team: [a]}}, do: allow}]\n";
    let main = |rules: &str| GOOD.split_once("rules:").unwrap().0.to_owned() + rules;
    let plain = digest(&case(&main(claims), "grants: []\n"));
    assert_eq!(plain, digest(&case(&main(claims), "grants: []\n").env("DOORWARD_RULES", "[{id: s, do: deny}]")));
    let misspelt = |secret: &str| {
        let rules = format!("rules: [{{id: r, whyy: {secret}, do: allow}}]\n");
        digest(&case(&main(&rules), "grants: []\n").env("DOORWARD_RULES", "[{id: s, do: deny}]"))
    };
    assert_eq!(misspelt("one"), misspelt("two"));
}
