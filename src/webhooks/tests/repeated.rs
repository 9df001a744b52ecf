//! Senders that send identical bodies for different events.

use super::*;

fn bitbucket(webhook: &Webhook, event: &str, id: &str, body: &str) -> Delivery {
    let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
    let headers = head(&[
        ("content-type", "application/json"),
        ("x-event-key", event),
        ("x-request-uuid", id),
        ("x-hub-signature", &signature),
    ]);
    let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
    webhook.verify(expected, &Bytes::copy_from_slice(body.as_bytes()), Timestamp::from_secs(1_700_000_000)).unwrap()
}

/// Without the setting, the second event would be lost. With it only ids count, so anybody who has seen a delivery can
/// replay it.
#[test]
fn webhooks_18_an_identical_body_is_a_new_delivery_with_unique_bodies_off() {
    let dispatch = r#"{"action":"deploy","branch":"main","client_payload":{"to":"prod"},"repository":{"id":1234}}"#;
    for (unique, event, body, is_same) in [
        (None, "repository_dispatch", dispatch, true),
        (Some(true), "repository_dispatch", dispatch, true),
        (Some(false), "repository_dispatch", dispatch, false),
        (Some(false), "push", PUSH, true),
        (Some(false), "star", r#"{"action":"created"}"#, true),
        // These contain no time either.
        (Some(false), "check_run", r#"{"action":"rerequested","check_run":{"id":1}}"#, false),
        (Some(false), "check_run", r#"{"action":"requested_action","check_run":{"id":1}}"#, false),
        (Some(false), "check_run", r#"{"action":"completed","check_run":{"id":1}}"#, true),
        (Some(false), "check_suite", r#"{"action":"rerequested","check_suite":{"id":1}}"#, false),
        (
            Some(false),
            "pull_request_review_thread",
            r#"{"action":"resolved","pull_request":{"number":1},"thread":{}}"#,
            false,
        ),
        (Some(false), "org_block", r#"{"action":"blocked","blocked_user":{"id":1}}"#, false),
        (Some(false), "membership", r#"{"action":"added","member":{"id":1},"team":{"id":2}}"#, false),
        (None, "membership", r#"{"action":"added","member":{"id":1},"team":{"id":2}}"#, true),
        (Some(false), "organization", r#"{"action":"member_added","membership":{},"organization":{"id":1}}"#, false),
        (None, "organization", r#"{"action":"member_added","membership":{},"organization":{"id":1}}"#, true),
        (Some(false), "member", r#"{"action":"added","member":{"id":1},"repository":{"id":2}}"#, false),
        (Some(false), "team", r#"{"action":"added_to_repository","team":{"id":1}}"#, false),
        (Some(false), "team_add", r#"{"team":{"id":1},"repository":{"id":2}}"#, false),
        (
            Some(false),
            "installation_repositories",
            r#"{"action":"added","repositories_added":[],"repositories_removed":[]}"#,
            false,
        ),
        (
            Some(false),
            "installation_target",
            r#"{"action":"renamed","account":{"id":1},"target_type":"Organization"}"#,
            false,
        ),
        (Some(false), "github_app_authorization", r#"{"action":"revoked","sender":{"id":1}}"#, false),
        (
            Some(false),
            "github_app_authorization",
            r#"{"action":"revoked","sender":{"id":1},"repository":{"id":2}}"#,
            true,
        ),
        (Some(false), "label", r#"{"action":"edited","label":{"id":1},"repository":{"id":2}}"#, false),
        (Some(false), "label", r#"{"action":"created","label":{"id":1},"repository":{"id":2}}"#, true),
        (Some(false), "custom_property", r#"{"action":"created","definition":{}}"#, false),
        (Some(false), "custom_property_values", r#"{"new_property_values":[],"old_property_values":[]}"#, false),
        (Some(false), "sponsorship", r#"{"action":"edited","sponsorship":{}}"#, false),
        (Some(false), "sponsorship", r#"{"action":"tier_changed","sponsorship":{}}"#, false),
        (Some(false), "sponsorship", r#"{"action":"created","sponsorship":{}}"#, true),
        (Some(false), "security_and_analysis", r#"{"changes":{"from":{"security_and_analysis":{}}}}"#, false),
        // The event in the header does not make a body one that may repeat.
        (Some(false), "organization", r#"{"action":"deleted"}"#, true),
    ] {
        let entry = json!({"name": "hub", "sender": "github", "unique_bodies": unique});
        let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
        let keys = |id| deliver(&webhook, event, id, body).unwrap().replay.records();
        let (first, second) = (keys("1"), keys("2"));
        assert_eq!(first.iter().any(|key| second.contains(key)), is_same, "{event} {unique:?}");
        assert_eq!(first, keys("1"), "{event}: its id counts");
    }
    let push = r#"{"push":{"changes":[{"new":{"type":"tag","name":"v1","target":{"hash":"2"}}}]},"repository":{"uuid":"{7}"}}"#;
    let comment = r#"{"pullrequest":{"id":4},"comment":{"id":3},"repository":{"uuid":"{7}"}}"#;
    for (unique, event, body, is_same) in [
        (None, "repo:push", push, true),
        (Some(false), "repo:push", push, false),
        (Some(false), "pullrequest:comment_created", comment, true),
    ] {
        let entry = json!({"name": "bb", "sender": "bitbucket_cloud", "unique_bodies": unique});
        let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
        let keys = |id| bitbucket(&webhook, event, id, body).replay.records();
        let (first, second) = (keys("1"), keys("2"));
        assert_eq!(first.iter().any(|key| second.contains(key)), is_same, "{event} {unique:?}");
        assert_eq!(first, keys("1"), "{event}: its id counts");
    }
    for (unique, is_same) in [(None, true), (Some(false), false)] {
        let entry = json!({"name": "ci", "sender": "generic", "unique_bodies": unique,
            "signature": {"header": "x-hub-signature-256", "prefix": "sha256=", "id_header": "x-github-delivery"}});
        let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
        let keys = |id| deliver(&webhook, "any", id, r#"{"deploy":"prod"}"#).unwrap().replay.records();
        let (first, second) = (keys("1"), keys("2"));
        assert_eq!(first.iter().any(|key| second.contains(key)), is_same, "{unique:?}");
    }
}

/// Regression: a branch that a program creates, deletes and creates again within a second has one body, and the last
/// event was lost.
#[test]
fn webhooks_18_a_bitbucket_event_sent_twice_is_two_deliveries_if_only_ids_count() {
    let body = r#"{"eventKey":"repo:refs_changed","date":"2023-11-14T22:13:20+0000","repository":{"id":84},"changes":[{"ref":{"id":"refs/heads/a"},"type":"ADD"}]}"#;
    for (unique, is_same) in [(None, true), (Some(true), true), (Some(false), false)] {
        let entry = json!({"name": "dc", "sender": "bitbucket_data_center", "unique_bodies": unique});
        let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
        let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
        let keys = |id| {
            let headers = head(&[
                ("content-type", "application/json"),
                ("x-event-key", "repo:refs_changed"),
                ("x-request-id", id),
                ("x-hub-signature", &signature),
            ]);
            let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
            webhook.verify(expected, &Bytes::from_static(body.as_bytes()), NOW).unwrap().replay.records()
        };
        let (first, second) = (keys("1"), keys("2"));
        assert_eq!(first.iter().any(|key| second.contains(key)), is_same, "{unique:?}");
        assert_eq!(first, keys("1"), "its id counts");
    }
}

/// A delivery of Gitea, Forgejo or Gogs.
fn gitea(webhook: &Webhook, sender: &str, event: &str, id: &str, body: &str) -> Delivery {
    let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
    let headers = head(&[
        ("content-type", "application/json"),
        (&*format!("x-{sender}-event"), event),
        (&*format!("x-{sender}-delivery"), id),
        (&*format!("x-{sender}-signature"), signature.trim_start_matches("sha256=")),
    ]);
    let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
    webhook.verify(expected, &Bytes::copy_from_slice(body.as_bytes()), NOW).unwrap()
}

/// They write times in whole seconds: what is done, undone and done again within one second looks the same, including
/// the last event. Renaming a branch back and forth, creating a tag on a page and editing a wiki page change no time at
/// all.
#[test]
fn webhooks_18_an_event_that_gitea_or_its_kin_send_twice_is_two_if_only_ids_count() {
    let closed = r#"{"action":"closed","number":8,"pull_request":{"number":8,"updated_at":"2026-11-29T21:27:12Z"},"repository":{"id":71}}"#;
    let forced = r#"{"ref":"refs/heads/main","before":"1","after":"2","repository":{"id":71}}"#;
    let renamed_from = r#"{"ref":"env-a","ref_type":"branch","pusher_type":"user","repository":{"id":71}}"#;
    let renamed_to = r#"{"ref":"env-b","ref_type":"branch","sha":"2","repository":{"id":71}}"#;
    let tag = r#"{"ref":"v3","ref_type":"tag","sha":"2","repository":{"id":71}}"#;
    let release = r#"{"action":"updated","release":{"id":1,"tag_name":"v3"},"repository":{"id":71}}"#;
    for (event, body) in [
        ("pull_request", closed),
        ("push", forced),
        ("delete", renamed_from),
        ("create", renamed_to),
        ("create", tag),
        ("release", release),
    ] {
        for (sender, unique, is_same) in [
            ("gitea", Some(false), false),
            ("forgejo", Some(false), false),
            ("gogs", Some(false), false),
            // The id is not signed: anybody who has seen a delivery could send it under another id, within that second
            // too.
            ("gitea", None, true),
            ("forgejo", Some(true), true),
            ("gogs", None, true),
        ] {
            let entry = json!({"name": "tea", "sender": sender, "unique_bodies": unique});
            let webhook = resolve(entry, &secrets(&[SECRET])).0.unwrap();
            let keys = |id| gitea(&webhook, sender, event, id, body).replay.records();
            let (first, second) = (keys("1"), keys("2"));
            assert_eq!(first.iter().any(|key| second.contains(key)), is_same, "{sender} {event} {unique:?}");
            assert_eq!(first, keys("1"), "{sender} {event}: its id counts");
        }
    }
}
