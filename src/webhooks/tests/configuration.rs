//! Configuration errors, and defaults.

use super::*;
use crate::config::values::Size;

/// A generic sender with this signature.
fn generic(signature: Value) -> Value {
    let mut webhook = json!({"name": "ci", "sender": "generic"});
    webhook["signature"] = signature;
    webhook
}

/// GitHub with further settings.
fn hub(extra: Value) -> Value {
    let mut webhook = json!({"name": "hub", "sender": "github"});
    let Value::Object(extra) = extra else { panic!("settings are an object") };
    webhook.as_object_mut().unwrap().extend(extra);
    webhook
}

/// A name, a sender and its secrets, and words of the problem.
type Row = (&'static str, Value, Vec<&'static str>, &'static str);

fn assert_refused(rows: impl IntoIterator<Item = Row>) {
    for (row, webhook, values, message) in rows {
        let (webhook, resolver) = resolve(webhook, &secrets(&values));
        assert!(webhook.is_none(), "{row}");
        let problems = resolver.report.problems();
        assert!(problems.iter().any(|problem| problem.message.contains(message)), "{row}: {problems:?}");
    }
}

#[test]
fn a_sender_without_a_secret_that_can_verify_is_refused() {
    assert_refused([
        ("webhooks:7 no secret", hub(json!({})), vec![], "there is no secret"),
        ("webhooks:7 empty secret", hub(json!({})), vec![""], "is empty"),
        ("webhooks:7 empty signing token", json!({"name": "l", "sender": "gitlab"}), vec!["whsec_"], "24 to 64 bytes"),
        ("webhooks:7 broken signing token", json!({"name": "l", "sender": "gitlab"}), vec!["whsec_!"], "not base64"),
        (
            "webhooks:23 only a plain token, signature required",
            json!({"name": "l", "sender": "gitlab", "require_signature": true}),
            vec![SECRET],
            "no secret can verify",
        ),
        ("no password", json!({"name": "az", "sender": "azure_devops"}), vec![SECRET], "USER:PASSWORD"),
        ("empty password", json!({"name": "az", "sender": "azure_devops"}), vec!["user:"], "no password after"),
        ("nothing but a colon", json!({"name": "az", "sender": "azure_devops"}), vec![":"], "no password after"),
        (
            "key of Standard Webhooks",
            json!({"name": "s", "sender": "standard_webhooks"}),
            vec![SECRET],
            "begins neither",
        ),
        ("public key", json!({"name": "s", "sender": "standard_webhooks"}), vec!["whpk_AAAA"], "32 bytes"),
    ]);
}

#[test]
fn a_signature_that_could_prove_nothing_is_refused() {
    assert_refused([
        ("generic without signature", json!({"name": "ci", "sender": "generic"}), vec![SECRET], "needs `signature`"),
        ("signature of github", hub(json!({"signature": {"header": "x-a"}})), vec![SECRET], "is known"),
        ("require_signature of github", hub(json!({"require_signature": true})), vec![SECRET], "only `gitlab`"),
        ("header name", generic(json!({"header": "x y"})), vec![SECRET], "not the name of a header"),
        ("header meaning", generic(json!({"header": "Authorization"})), vec![SECRET], "another meaning"),
        (
            "header of a proxy",
            generic(json!({"header": "X-Forwarded-Signature"})),
            vec![SECRET],
            "no delivery can have",
        ),
        (
            "header of ours",
            generic(json!({"header": "x-a", "id_header": "Doorward-Id"})),
            vec![SECRET],
            "no delivery can have",
        ),
        (
            "header of a connection",
            generic(json!({"header": "x-a", "timestamp_header": "TE"})),
            vec![SECRET],
            "no delivery can have",
        ),
        ("header that two read", generic(json!({"header": "x_signature"})), vec![SECRET], "no delivery can have"),
        ("header twice", generic(json!({"header": "x-a", "id_header": "X-A"})), vec![SECRET], "named twice"),
        (
            "plain and signed",
            generic(json!({"header": "x-a", "plain": true, "algorithm": "sha512"})),
            vec![SECRET],
            "nothing is signed",
        ),
        ("tolerance", generic(json!({"header": "x-a", "tolerance": "5m"})), vec![SECRET], "needs `timestamp_header`"),
    ]);
    // The counterparts.
    for signature in [
        json!({"header": "x-a"}),
        json!({"header": "x-a", "id_header": "X-Request-Id"}),
        // The secret itself is not forwarded.
        json!({"header": "X-Gitlab-Token", "plain": true}),
    ] {
        let (webhook, resolver) = resolve(generic(signature), &secrets(&[SECRET]));
        assert!(webhook.is_some() && resolver.report.problems().is_empty(), "{:?}", resolver.report.problems());
    }
}

#[test]
fn an_identity_that_another_sender_could_have_is_refused() {
    assert_refused([
        ("identity of another", hub(json!({"identity": "gitlab"})), vec![SECRET], "another kind of sender"),
        ("identity with a colon", hub(json!({"identity": "a:b"})), vec![SECRET], "part of an identity"),
        ("name", json!({"name": "Hub", "sender": "github"}), vec![SECRET], "part of an identity"),
    ]);
}

#[test]
fn settings_by_which_deliveries_could_be_replayed_are_refused() {
    assert_refused([
        ("window", hub(json!({"replay_window": "1m"})), vec![SECRET], "shorter than 10m"),
        (
            "a window that ends before a signature does",
            json!({"name": "ci", "sender": "generic", "replay_window": "1h",
                "signature": {"header": "x-sig", "timestamp_header": "x-time", "tolerance": "45m"}}),
            vec![SECRET],
            "shorter than 90m",
        ),
        ("unique", json!({"name": "l", "sender": "gitlab", "unique_bodies": false}), vec![SECRET], "signs their ids"),
        (
            "nothing tells them apart",
            json!({"name": "ci", "sender": "generic", "unique_bodies": false, "signature": {"header": "x-a"}}),
            vec![SECRET],
            "by their bodies alone",
        ),
        (
            "nothing signs the bodies",
            json!({"name": "ci", "sender": "generic", "unique_bodies": false,
                "signature": {"header": "x-a", "plain": true, "id_header": "x-id"}}),
            vec![SECRET],
            "ids alone count",
        ),
    ]);
}

#[test]
fn facts_topics_and_holding_that_do_not_fit_the_sender_are_refused() {
    assert_refused([
        (
            "fact",
            {
                let mut webhook = generic(json!({"header": "x-a"}));
                webhook["facts"] = json!({"branch": "ref"});
                webhook
            },
            vec![SECRET],
            "not a JSON pointer",
        ),
        ("facts of github", hub(json!({"facts": {"branch": "/ref"}})), vec![SECRET], "are known"),
        ("topics of nobody", json!({"name": "commits", "sender": "aws_sns"}), vec![], "needs `sns`"),
        ("topics of github", hub(json!({"sns": {"topics": []}})), vec![SECRET], "only `aws_sns` has topics"),
        ("time held", hub(json!({"held": {"try_for": "1s"}})), vec![SECRET], "between 1m and 30d"),
        ("nothing held", hub(json!({"held": {"max": 0}})), vec![SECRET], "is zero"),
        (
            "hold is off",
            hub(json!({"hold": false, "held": {"max": 5}})),
            vec![SECRET],
            "nothing of this sender is held",
        ),
        ("people wait", json!({"name": "s", "sender": "slack", "hold": true}), vec![SECRET], "what the EventListener"),
    ]);
}

/// Each with a twin that is just within the limit.
#[test]
fn settings_beyond_their_limits_are_refused() {
    let hub = |key: &str, value: Value| json!({"name": "hub", "sender": "github", key: value});
    let pointer = |length: usize| {
        let facts = json!({"branch": format!("/{}", "a".repeat(length - 1))});
        json!({"name": "ci", "sender": "generic", "signature": {"header": "x-a"}, "facts": facts})
    };
    let tolerance = |tolerance: &str| {
        let signature = json!({"header": "x-a", "timestamp_header": "x-time", "tolerance": tolerance});
        json!({"name": "ci", "sender": "generic", "signature": signature})
    };
    let sns = |topics: Value, hosts: Value| json!({"name": "commits", "sender": "aws_sns", "sns": {"topics": topics, "hosts": hosts}});
    let topic = || json!(["arn:aws:sns:us-east-1:123456789012:commits"]);
    for (within, beyond, message) in [
        (pointer(256), pointer(257), "is not a JSON pointer"),
        (hub("redeliveries", json!(10)), hub("redeliveries", json!(11)), "more than 10"),
        (hub("answer_within", json!("100ms")), hub("answer_within", json!("99ms")), "between 100ms and 1m"),
        (hub("answer_within", json!("60s")), hub("answer_within", json!("61s")), "between 100ms and 1m"),
        (hub("max_body", json!(1)), hub("max_body", json!(0)), "`max_body` is zero"),
        (hub("held", json!({"max_size": 1})), hub("held", json!({"max_size": 0})), "`max_size` is zero"),
        (tolerance("1h"), tolerance("61m"), "`tolerance` is longer than 1 h"),
        (sns(topic(), json!([])), sns(json!([]), json!([])), "there is no topic"),
        (sns(topic(), json!([])), sns(json!(["x"]), json!([])), "`x` is not the ARN of a topic"),
        (sns(topic(), json!(["a.test:1"])), sns(topic(), json!(["a.test:1/"])), "`a.test:1/` is neither a host"),
    ] {
        let resolved = |webhook: &Value| {
            let given = if webhook["sender"] == "aws_sns" { vec![] } else { secrets(&[SECRET]) };
            let (webhook, resolver) = resolve(webhook.clone(), &given);
            let told = resolver.report.problems().iter().map(|problem| problem.message.clone());
            (webhook.is_some(), told.collect::<Vec<_>>())
        };
        assert_eq!(resolved(&within), (true, vec![]), "{within}");
        let (is_good, told) = resolved(&beyond);
        assert!(!is_good && told.iter().any(|told| told.contains(message)), "{beyond}: {told:?}");
    }
}

/// Regression: topics of other partitions were refused even with `hosts`, and names that no topic has were accepted.
#[test]
fn topics_and_hosts_that_sns_cannot_have_are_refused_and_hosts_of_other_partitions_are_listed() {
    let (topic, european) = ("arn:aws:sns:us-east-1:123456789012:a", "arn:aws-eusc:sns:eusc-de-east-1:123456789012:a");
    let any = "arn:aws:sns:us-east-1:123456789012:*";
    let ordered = "arn:aws:sns:us-east-1:123456789012:a.fifo";
    for (topic, host, refused) in [
        (topic, None, None),
        (european, Some("sns.eusc-de-east-1.amazonaws.eu"), None),
        (european, None, Some(("topics", "in the partition `aws-eusc` are not known"))),
        (any, None, Some(("topics", "is not the ARN of a topic"))),
        (any, Some("a.test"), Some(("topics", "is not the ARN of a topic"))),
        (ordered, None, Some(("topics", "is a FIFO topic"))),
        (topic, Some("*.amazonaws.com"), Some(("hosts", "is neither a host"))),
    ] {
        let hosts: Vec<&str> = host.into_iter().collect();
        let entry = json!({"name": "commits", "sender": "aws_sns", "sns": {"topics": [topic], "hosts": hosts}});
        let (webhook, resolver) = resolve(entry, &[]);
        let problems = resolver.report.problems();
        assert_eq!((webhook.is_none(), problems.len()), (refused.is_some(), usize::from(refused.is_some())), "{topic}");
        if let (Some((key, message)), [problem]) = (refused, problems) {
            assert!(problem.at.as_str().ends_with(&format!("/sns/{key}/0")), "{topic}: {problem:?}");
            assert!(problem.message.contains(message), "{topic}: {problem:?}");
        }
    }
}

/// Regression: a form that could not be read was also reported for the secrets, in terms of GitLab.
#[test]
fn an_impossible_header_is_reported_once() {
    for signature in [json!({"header": "X Bad"}), json!({"header": "x-a", "timestamp_header": "X Bad"})] {
        let webhook = json!({"name": "ci", "sender": "generic", "signature": signature});
        let (_, resolver) = resolve(webhook, &secrets(&[SECRET]));
        let [problem] = resolver.report.problems() else { panic!("{signature}: {:?}", resolver.report.problems()) };
        assert!(problem.message.contains("not the name of a header"), "{problem:?}");
    }
}

#[test]
fn facts_are_pointed_at_by_the_names_that_rules_have_for_them() {
    let facts = told(&json!({"actor": "/who", "actor_id": "/by"}), &json!({"who": "amy", "by": 7}));
    assert_eq!((facts.actor.as_deref(), facts.actor_id.as_deref()), (Some("amy"), Some("7")));
}

/// The facts of a body for a `generic` sender with these pointers.
fn told(facts: &Value, body: &Value) -> Arc<Facts> {
    let signature = json!({"header": "x-sig", "prefix": "sha256=", "id_header": "x-id"});
    let entry = json!({"name": "ci", "sender": "generic", "facts": facts, "signature": signature});
    let (webhook, resolver) = resolve(entry, &secrets(&[SECRET]));
    let webhook = webhook.unwrap_or_else(|| panic!("{:?}", resolver.report.problems()));
    let body = body.to_string();
    let signature = github_signature(SECRET.as_bytes(), body.as_bytes());
    let headers = head(&[("content-type", "application/json"), ("x-sig", &signature), ("x-id", "1")]);
    let expected = webhook.precheck(&Method::POST, &headers, None, None).unwrap();
    webhook.verify(expected, &Bytes::from(body), NOW).unwrap().facts
}

/// Regression: CI names both for a build of a tag, and only the branch was read, so a deny of the tag did not match.
#[test]
fn a_tag_at_its_pointer_is_read_even_if_a_branch_is_named_too() {
    let pointers = json!({"branch": "/build/branch", "tag": "/build/tag"});
    for (build, branch, tag) in [
        (json!({"branch": "v1.2", "tag": "v1.2"}), Some("v1.2"), Some("v1.2")),
        (json!({"branch": "main", "tag": null}), Some("main"), None),
        (json!({"branch": "main", "tag": false}), Some("main"), None),
        (json!({"branch": "main"}), Some("main"), None),
        (json!({"tag": "v1.2"}), None, Some("v1.2")),
    ] {
        let facts = told(&pointers, &json!({"build": build}));
        assert_eq!((facts.branch.as_deref(), facts.tag.as_deref(), facts.several), (branch, tag, false), "{build}");
    }
}

/// Regression: a second event beside that of a tag hid the tag from every deny.
#[test]
fn what_has_several_elements_where_a_branch_or_a_tag_is_pointed_at_is_several() {
    let event = |tags: &[&str]| json!({"tags": tags.iter().map(|tag| json!({"name": tag})).collect::<Vec<_>>()});
    let pointers = json!({"tag": "/events/*/tags/*/name", "actor": "/by/*/name"});
    for (events, tag, several) in [
        (json!([event(&["prod-1"])]), Some("prod-1"), false),
        (json!([event(&["prod-1", "prod-2"])]), None, true),
        (json!([event(&["prod-1"]), event(&[])]), None, true),
        (json!([]), None, false),
    ] {
        let body = json!({"events": events, "by": [{"name": "amy"}, {"name": "bob"}]});
        let facts = told(&pointers, &body);
        assert_eq!((facts.tag.as_deref(), facts.several), (tag, several), "{events}");
    }
    // Regression: a second action hid the first from denies, too.
    for (actions, action, several) in [(vec!["push"], Some("push"), false), (vec!["push", "delete"], None, true)] {
        let events: Vec<Value> = actions.into_iter().map(|action| json!({"action": action})).collect();
        let facts = told(&json!({"action": "/events/*/action"}), &json!({"events": events}));
        assert_eq!((facts.action.as_deref(), facts.several), (action, several), "{events:?}");
    }
    // Regression: with an event beside them, no deny of one of the actions matched.
    for (actions, event) in [(json!([{"action": "push"}]), Some("changed")), (json!([{"action": "push"}, {}]), None)] {
        let pointers = json!({"event": "/kind", "action": "/items/*/action"});
        let facts = told(&pointers, &json!({"kind": "changed", "items": actions}));
        assert_eq!((facts.event.as_deref(), facts.several), (event, event.is_none()), "{actions}");
    }
    let lists = |facts: Value| {
        let facts: raw::FactPointers = serde_json::from_value(facts).unwrap();
        senders::configured_lists(&facts).map(|(_, list)| list.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lists(json!({"ref": "/a/*/b/*/c", "event": "/d/*/e"})), ["/d", "/a", "/a/*/b"]);
    assert_eq!(lists(json!({"branch": "/a/*b/*", "tag": "/a~1*"})), ["/a/*b"]);
}

/// Regression: nothing was said of secrets that are all yet to begin, nor by a check that reads no secrets.
#[test]
fn a_sender_without_a_secret_for_now_is_warned_about_whether_or_not_the_secrets_are_read() {
    let (past, ahead, later) = ("2023-11-14T22:13:20Z", "2023-11-14T22:13:21Z", "2023-11-14T22:13:22Z");
    let (from, until) = (|time| [Some(time), None], |time| [None, Some(time)]);
    let (expired, unbegun) =
        (Some("all secrets have expired"), Some("no secret is accepted before 2023-11-14T22:13:21"));
    for (periods, warned) in [
        (vec![until(past), until(past)], expired),
        (vec![until(past), until(ahead)], None),
        (vec![until(past), [None, None]], None),
        (vec![until(past)], expired),
        (vec![from(past)], None),
        (vec![from(later), from(ahead)], unbegun),
        (vec![until(past), from(ahead)], unbegun),
        (vec![from(ahead), [None, None]], None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), SECRET).unwrap();
        let secrets = periods
            .iter()
            .map(|[from, until]| json!({"secret": {"file": "secret"}, "not_before": from, "not_after": until}));
        let secrets: Vec<Value> = secrets.collect();
        let raw: raw::Webhook =
            serde_json::from_value(json!({"name": "hub", "sender": "github", "secrets": secrets})).unwrap();
        for is_read in [true, false] {
            let mut resolver = Resolver::new(folder.path());
            if !is_read {
                resolver.elsewhere();
            }
            let at = At::root().key("webhooks").index(0);
            assert!(Webhook::resolve(&raw, &at, &egress(), NOW, &mut resolver).is_some());
            let problems = resolver.report.problems();
            assert_eq!(problems.len(), usize::from(warned.is_some()), "{secrets:?}: {problems:?}");
            let is_told = |message: &str| problems.iter().all(|problem| problem.message.contains(message));
            assert!(warned.is_none_or(is_told), "{secrets:?}: {problems:?}");
        }
    }
}

/// Every delivery was refused for its signature, and nothing said why.
#[test]
fn a_secret_with_a_blank_at_an_end_is_warned_about_except_for_one_line_end() {
    for (before, after, warned) in [
        ("", "", false),
        ("", "\n", false),
        ("", "\r\n", false),
        ("", "\n\n", true),
        ("", " ", true),
        (" ", "\n", true),
    ] {
        let value = format!("{before}{SECRET}{after}");
        let (webhook, resolver) = resolve(json!({"name": "hub", "sender": "github"}), &secrets(&[&value]));
        assert!(webhook.is_some(), "{value:?}");
        let problems = resolver.report.problems();
        assert_eq!(problems.len(), usize::from(warned), "{value:?}: {problems:?}");
        assert!(problems.iter().all(|problem| problem.message.contains("begins or ends with a blank")), "{value:?}");
    }
}

#[test]
fn attacks_z17_generic_headers_that_interceptors_interpret_are_refused() {
    for (key, signature) in [
        ("header", json!({"header": "x-gitlab-token"})),
        ("header", json!({"header": "Ce-Signature"})),
        ("id_header", json!({"header": "x-a", "id_header": "ce-id"})),
        ("id_header", json!({"header": "x-a", "plain": true, "id_header": "X-Gitlab-Token"})),
        ("timestamp_header", json!({"header": "x-a", "timestamp_header": "ce-time"})),
        ("timestamp_header", json!({"header": "x-a", "timestamp_header": "X-GitHub-Enterprise-Host"})),
    ] {
        let webhook = json!({"name": "ci", "sender": "generic", "signature": signature});
        let (webhook, resolver) = resolve(webhook, &secrets(&[SECRET]));
        assert!(webhook.is_none(), "{signature}");
        let [problem] = resolver.report.problems() else { panic!("{signature}: {:?}", resolver.report.problems()) };
        assert!(problem.at.as_str().ends_with(&format!("/signature/{key}")), "{signature}: {problem:?}");
        assert!(problem.message.contains("would be forwarded to the EventListener, and"), "{signature}: {problem:?}");
        assert_eq!(problem.help.as_deref(), Some("name another header"), "{signature}");
    }
}

#[test]
fn attacks_z21_deliveries_of_senders_that_never_retry_are_held_by_default() {
    for (sender, held) in [
        ("github", true),
        ("gitea", true),
        ("forgejo", true),
        ("gogs", true),
        ("bitbucket_data_center", true),
        ("gitlab", true),
        ("bitbucket_cloud", false),
    ] {
        let entry = |hold: Option<bool>| json!({"name": "hub", "sender": sender, "hold": hold});
        let (webhook, resolver) = resolve(entry(None), &secrets(&[SECRET]));
        assert_eq!(webhook.unwrap().hold().is_some(), held, "{sender}");
        assert!(resolver.report.problems().is_empty(), "{sender}");
        let (webhook, resolver) = resolve(entry(Some(false)), &secrets(&[SECRET]));
        assert!(webhook.unwrap().hold().is_none(), "{sender}");
        assert_eq!(resolver.report.problems().len(), usize::from(held), "{sender} is warned of");
        let (webhook, _) = resolve(entry(Some(true)), &secrets(&[SECRET]));
        assert!(webhook.unwrap().hold().is_some(), "{sender}");
    }
}

#[test]
fn times_of_secrets_are_checked() {
    for (from, until, message) in [
        (Some("tomorrow"), None, "not a time"),
        (Some("2026-01-02T00:00:00Z"), Some("2026-01-01T00:00:00Z"), "not after"),
    ] {
        let secret = SecretText {
            value: SECRET.to_owned(),
            not_before: from.map(str::to_owned),
            not_after: until.map(str::to_owned),
        };
        let (webhook, resolver) = resolve(json!({"name": "hub", "sender": "github"}), &[secret]);
        assert!(webhook.is_none());
        assert!(resolver.report.problems()[0].message.contains(message));
    }
}

#[test]
fn forbidden_sharing_between_two_senders_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), SECRET).unwrap();
    fs::write(folder.path().join("b"), "another secret than that").unwrap();
    fs::write(folder.path().join("c"), SECRET).unwrap();
    let entry = |name: &str, file: &str, identity: Option<&str>| json!({"name": name, "sender": "github", "identity": identity, "secrets": [{"secret": {"file": file}}]});
    let own = Some("ghes");
    for (row, second, problem) in [
        ("twin: all their own", entry("two", "b", own), None),
        ("twin: one source, which is told of unread", entry("two", "a", own), None),
        ("attacks:Z16 a secret", entry("two", "c", own), Some(("/webhooks/1/secrets", "have a secret in common"))),
        ("an identity", entry("two", "b", None), Some(("/webhooks/1", "have the identity `github`"))),
        ("twin: an identity on purpose", entry("two", "b", Some("github")), None),
    ] {
        let entries: Vec<raw::Webhook> = serde_json::from_value(json!([entry("one", "a", None), second])).unwrap();
        let mut resolver = Resolver::new(folder.path());
        resolve_all(&entries, &At::root().key("webhooks"), &egress(), NOW, &mut resolver);
        let problems = resolver.report.problems();
        assert_eq!(problems.len(), usize::from(problem.is_some()), "{row}: {problems:?}");
        if let Some((at, message)) = problem {
            assert_eq!(problems[0].at.as_str(), at, "{row}");
            assert!(problems[0].message.contains(message), "{row}: {problems:?}");
        }
    }
}

#[test]
fn a_secret_shared_by_three_senders_is_reported_once_for_each_after_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let entry = |name: &str| {
        fs::write(folder.path().join(name), SECRET).unwrap();
        json!({"name": name, "sender": "github", "identity": name, "secrets": [{"secret": {"file": name}}]})
    };
    let entries: Vec<raw::Webhook> =
        serde_json::from_value(json!([entry("one"), entry("two"), entry("three")])).unwrap();
    let mut resolver = Resolver::new(folder.path());
    resolve_all(&entries, &At::root().key("webhooks"), &egress(), NOW, &mut resolver);
    let places: Vec<&str> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
    assert_eq!(places, ["/webhooks/1/secrets", "/webhooks/2/secrets"]);
}

/// Less than the sender's timeout, so that it still gets 503.
#[test]
fn webhooks_33_the_answer_deadline_is_shorter_than_the_timeout_of_the_sender() {
    for kind in raw::Sender::ALL {
        let told = match kind {
            raw::Sender::Slack => Duration::from_millis(2500),
            raw::Sender::Gitea | raw::Sender::Forgejo | raw::Sender::Gogs => Duration::from_secs(4),
            _ => Duration::from_secs(8),
        };
        assert_eq!(senders::sender(kind).answer_within.get(), told, "{kind:?}");
    }
}

/// Regression: the reference had the default of other senders for Amazon SNS.
#[test]
fn the_largest_body_of_each_sender_is_what_the_reference_says() {
    let name = |kind| match kind {
        raw::Sender::Github => "GitHub",
        raw::Sender::Gitlab => "GitLab",
        raw::Sender::BitbucketCloud => "Bitbucket Cloud",
        raw::Sender::Slack => "Slack",
        raw::Sender::AwsSns => "Amazon SNS",
        other => panic!("{other:?} is one of the others"),
    };
    let named = |size: Size| {
        let kinds = raw::Sender::ALL.into_iter().filter(|kind| senders::sender(*kind).max_body == size);
        let names: Vec<&str> = kinds.map(name).collect();
        let (last, others) = names.split_last().unwrap();
        format!("{} and {last}", others.join(", "))
    };
    let (large, small, usual) = (Size::mib(26), Size::kib(512), Size::mib(10));
    let said = format!("Default: 26 MiB for {}, 512 KiB for {}, 10 MiB for others.", named(large), named(small));
    assert!(include_str!("../../../docs/configuration.md").contains(&said), "{said}");
    let all = raw::Sender::ALL.map(|kind| senders::sender(kind).max_body);
    assert!(all.iter().all(|size| [large, small, usual].contains(size)));
}
