use proptest::prelude::*;

use super::*;
use crate::{
    audit::{
        caller::Callers,
        chain::SEAL,
        line::{write_note, write_record},
    },
    authn::{KnownAs, principal::MAX_NAME},
    authz::{AskedToken, TOKEN_ENDPOINT, TaskView, claims_named},
    error::{PresentedIdentity, Reason, Rejection},
    oidc::Outcome,
};

/// Returns the line of a record as it is written, without the seal.
fn written(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    write_record(record, &mut Callers::default(), &mut out);
    out.push(b'}');
    out
}

/// Whether there is room for the seal.
fn fits(line: &[u8]) -> bool {
    line.len() - 1 + SEAL <= MAX_LINE
}

#[test]
fn a_line_contains_everything_in_the_record() {
    let line: Value = serde_json::from_slice(&written(&full_record())).unwrap();
    for (pointer, value) in [
        ("/class_uid", json!(4002)),
        ("/type_uid", json!(400_206)),
        ("/time", json!(1_700_000_000_123_i64)),
        ("/metadata/event_code", json!("request")),
        ("/metadata/correlation_uid", json!("01900000-0000-7000-8000-000000000001")),
        ("/action_id", json!(1)),
        ("/status_id", json!(1)),
        ("/actor/user/uid", json!("00u1")),
        ("/actor/user/name", json!("corp:alice")),
        ("/actor/idp/name", json!("corp")),
        ("/actor/session/uid", json!("jti-1")),
        ("/src_endpoint/ip", json!("192.0.2.7")),
        ("/http_request/http_method", json!("POST")),
        ("/http_response/code", json!(201)),
        ("/authorizations/0/decision", json!("allow")),
        ("/authorizations/0/policy/uid", json!("deploy-prod")),
        ("/authorizations/0/policy/version", json!("sha256:0123")),
        ("/tls/certificate/fingerprints/0/value", json!("01".repeat(32))),
        ("/traffic/bytes_out", json!(20)),
        ("/unmapped/latency_us", json!(4321)),
        ("/unmapped/trace_id", json!("ab".repeat(16))),
        ("/unmapped/principal/actor/issuer", json!("bots")),
        ("/unmapped/principal/actor/subject", json!("agent-7")),
        ("/unmapped/shadow/0", json!("shadow-1")),
        ("/unmapped/kubernetes/resource", json!("pipelineruns")),
        ("/unmapped/identity/groups/0", json!("tekton-deployers")),
        ("/unmapped/identity/extras/0/0", json!("doorward.dev/client")),
        ("/unmapped/webhook/repository_id", json!("42")),
        ("/unmapped/upstream/status", json!(201)),
        ("/unmapped/body_sha256", json!("cd".repeat(32))),
        ("/unmapped/event_id", json!("event-1")),
    ] {
        assert_eq!(line.pointer(pointer), Some(&value), "{pointer}");
    }
    assert_eq!(line.get("truncated"), None);
}

#[test]
fn a_refusal_is_recorded_with_its_reason() {
    let mut record = record(1);
    record.refuse(&Rejection::new(Reason::TokenExpired, "the token ended an hour ago"));
    let line: Value = serde_json::from_slice(&written(&record)).unwrap();
    assert_eq!(line["action_id"], 2);
    assert_eq!(line["status_code"], "token_expired");
    assert_eq!(line["status_detail"], "the token ended an hour ago");
    assert_eq!(line["http_response"]["code"], 401);
}

/// The record named nobody.
#[test]
fn a_refused_identity_is_recorded_with_the_subject_that_its_credential_named() {
    let mut record = record(1);
    let names = PresentedIdentity {
        issuer: "corp".into(),
        subject: "00u1\r\ninjected".into(),
        user: None,
        group: Some("g".repeat(10_000).into()),
        credential: CredentialId::Token("jti-1".into()),
    };
    record.refuse(&Rejection::new(Reason::IdentityRefused, "a group cannot be used").with_presented(names));
    let text = written(&record);
    assert!(!text.contains(&b'\n') && !text.contains(&b'\r'));
    let line: Value = serde_json::from_slice(&text).unwrap();
    let presented = &line["unmapped"]["presented"];
    assert_eq!((&presented["issuer"], &presented["subject"]), (&json!("corp"), &json!("00u1\r\ninjected")));
    assert!(presented["group"].as_str().unwrap().len() < 1_000, "{presented}");
    assert_eq!((presented.get("user"), line.get("actor")), (None, None));
    assert_eq!(presented["credential_uid"], "jti-1", "an operator can revoke it");
}

#[test]
fn a_failed_login_is_recorded_with_its_outcome_and_its_issuer() {
    for (issuer, expected) in [
        (Some("corp".into()), json!({"outcome": "provider_error", "issuer": "corp"})),
        (None, json!({"outcome": "provider_error"})),
    ] {
        let failed_login = Some(FailedLogin { outcome: Outcome::provider_error, issuer });
        let line: Value = serde_json::from_slice(&written(&Record { failed_login, ..record(1) })).unwrap();
        assert_eq!(line["unmapped"]["login"], expected);
        assert_eq!((&line["status_code"], &line["severity_id"]), (&json!("provider_error"), &json!(2)));
    }
}

#[test]
fn a_permitted_request_that_failed_upstream_is_distinguished_from_a_refused_one() {
    for (outcome, reason, action) in [
        (Some(Effect::Allow), None, 1),
        (Some(Effect::Allow), Some(Reason::UpstreamTimeout), 1),
        (Some(Effect::Allow), Some(Reason::UpstreamFailed), 1),
        (Some(Effect::Allow), Some(Reason::AuditUnavailable), 2),
        (Some(Effect::Deny), Some(Reason::PolicyDenied), 2),
        (Some(Effect::StepUp), None, 2),
        (Some(Effect::Approve), Some(Reason::ApprovalRequired), 2),
        (None, None, 1),
        (None, Some(Reason::UpstreamFailed), 2),
    ] {
        let decision = outcome.map(|outcome| Decision { outcome, rule: None, shadow: Vec::new(), grants: Vec::new() });
        let mut record = Record { decision, ..record(1) };
        if let Some(reason) = reason {
            record.refuse(&Rejection::new(reason, "why"));
        }
        let line: Value = serde_json::from_slice(&written(&record)).unwrap();
        assert_eq!(line["action_id"], action, "{outcome:?} {reason:?}");
    }
}

#[test]
fn the_inputs_of_a_decision_can_be_read_back() {
    let record = full_record();
    let inputs = ReplayInputs::parse(&written(&record)).unwrap();
    assert_eq!(inputs.id, record.id);
    assert_eq!(inputs.decision, record.decision);
    assert_eq!(inputs.policy.as_deref(), record.policy.as_deref());
    assert_eq!(inputs.kubernetes.as_ref(), record.kubernetes.as_deref());
    assert_eq!(inputs.run.as_ref(), record.run.as_deref());
    assert_eq!(inputs.event_listener.as_ref(), record.event_listener.as_deref());
    assert_eq!(inputs.delivery, record.delivery);
    let view = inputs.view().unwrap();
    assert_eq!((view.route, view.host, view.path), ("kube", &*record.host, &*record.path));
    assert_eq!((view.method, view.upgrade, view.now), (&record.method, true, NOW));
    assert_eq!(Some(view.address), record.address);

    let mut expected = principal();
    expected.delivery = record.delivery;
    expected.email = None;
    let kept = |name: &String| ["aud", "iss", "department"].contains(&name.as_str());
    expected.claims =
        Arc::new(expected.claims.iter().filter(|(name, _)| kept(name)).map(|(k, v)| (k.clone(), v.clone())).collect());
    assert_eq!(format!("{:?}", inputs.principal.unwrap()), format!("{expected:?}"));
    assert!(inputs.truncated.is_empty());
}

/// An issuer that says there are no groups has not withheld them.
#[test]
fn an_empty_list_of_groups_is_distinguished_from_an_absent_one() {
    for says in [true, false] {
        let principal =
            Principal { groups: Vec::new(), says_groups: says, scopes: Vec::new(), says_scopes: says, ..principal() };
        let line = written(&Record { principal: Some(Arc::new(principal)), ..full_record() });
        let read = ReplayInputs::parse(&line).unwrap().principal.unwrap();
        assert_eq!((read.says_groups, read.says_scopes), (says, says));
        assert!(read.groups.is_empty() && read.scopes.is_empty());
    }
}

/// Otherwise a decision about an agent that acts for a person may differ when it is repeated.
#[test]
fn the_kind_of_the_person_behind_an_actor_can_be_read_back() {
    for subject in [Kind::Human, Kind::Agent] {
        let (kind, subject_kind) = Principal::kinds(subject, true);
        let principal = Principal { kind, subject_kind, ..principal() };
        let line = written(&Record { principal: Some(Arc::new(principal)), ..full_record() });
        let read = ReplayInputs::parse(&line).unwrap().principal.unwrap();
        assert_eq!((read.kind, read.kind_of_subject()), (Kind::Agent, subject));
    }
}

#[test]
fn a_requested_token_can_be_read_back() {
    let task = TaskView {
        cluster: "cluster".to_owned(),
        namespace: "ci".to_owned(),
        service_account: "builder".to_owned(),
        pipeline: Some("release".to_owned()),
        pipeline_task: Some("push".to_owned()),
        task: None,
    };
    for (scopes, partly, task) in [
        (None, false, None),
        (Some(Vec::new()), true, None),
        (Some(vec!["pull:app".to_owned(), "push:app".to_owned()]), false, Some(task)),
    ] {
        let asked = AskedToken { audience: "https://api.test".to_owned(), scopes, partly, task };
        let record = Record { asked: Some(Box::new(asked.clone())), route: None, kind: None, ..full_record() };
        let inputs = ReplayInputs::parse(&written(&record)).unwrap();
        assert_eq!(inputs.asked, Some(asked));
        assert_eq!(inputs.view().unwrap().route, TOKEN_ENDPOINT);
        let refused = ReplayInputs::parse(&written(&Record { decision: None, ..record })).unwrap();
        assert!(refused.view().is_none(), "no rule was asked");
    }
}

/// A pointer into a claim whose name is a URL is written with its slashes escaped.
#[test]
fn a_claim_with_a_slash_in_its_name_can_be_read_back() {
    let rules =
        json!({"grants": [{"id": "g", "who": {"claims": {"/https:~1~1x/roles": ["a"]}}, "kubernetes_groups": ["x"]}]});
    let claims = claims_named(&serde_json::from_value(rules).unwrap());
    let held = json!({"https://x": {"roles": ["a"]}}).as_object().unwrap().clone();
    let principal = Arc::new(Principal { claims: Arc::new(held.clone()), ..principal() });
    let line = written(&Record { principal: Some(principal), claims, ..full_record() });
    assert_eq!(*ReplayInputs::parse(&line).unwrap().principal.unwrap().claims, held);
}

/// E-mail addresses are recorded only under a policy that uses them.
#[test]
fn an_email_address_that_the_policy_uses_can_be_read_back() {
    let claims = json!({"email": "alice@example.com", "email_verified": true});
    let principal = Arc::new(Principal { claims: Arc::new(claims.as_object().unwrap().clone()), ..principal() });
    let email = |names: Option<&[&str]>| {
        let claims = names.map(|names| names.iter().map(|name| Arc::from(*name)).collect());
        let record = Record { principal: Some(Arc::clone(&principal)), claims, ..full_record() };
        ReplayInputs::parse(&written(&record)).unwrap().principal.unwrap().email
    };
    assert_eq!(email(Some(&["email", "email_verified"])).as_deref(), Some("alice@example.com"));
    assert_eq!(email(Some(&["email"])), None, "nobody has verified it");
    assert_eq!(email(None), None);
}

#[test]
fn every_credential_id_and_request_without_a_resource_reads_back() {
    for credential in [
        CredentialId::Token("t".into()),
        CredentialId::Session("s".into()),
        CredentialId::Delivery("d".into()),
        CredentialId::Certificate("c".into()),
        CredentialId::None,
    ] {
        let attributes = Attributes { verb: "get".into(), path: "/version".into(), ..Attributes::default() };
        let record = Record {
            path: "/version".into(),
            principal: Some(Arc::new(Principal { credential: credential.clone(), ..principal() })),
            kubernetes: Some(Arc::new(attributes.clone())),
            ..full_record()
        };
        let inputs = ReplayInputs::parse(&written(&record)).unwrap();
        assert_eq!(inputs.principal.unwrap().credential, credential);
        assert_eq!(inputs.kubernetes, Some(attributes));
    }
}

/// A receiver that validates lines against the OCSF schema may drop those that do not match.
#[test]
fn a_line_has_the_profile_of_its_actor_and_only_what_ocsf_knows_of_actor_and_policy() {
    let read = |line: &[u8]| serde_json::from_slice::<Value>(line).unwrap();
    let line = read(&written(&full_record()));
    assert_eq!(line["metadata"]["profiles"], json!(["host", "security_control"]));
    assert_eq!(line["actor"]["session"].get("credential"), None);
    assert_eq!(line["unmapped"]["principal"]["credential"], "token");
    let nobody = read(&written(&Record { principal: None, ..full_record() }));
    assert_eq!((&nobody["metadata"]["profiles"], nobody.get("actor")), (&json!(["security_control"]), None));

    // An anonymous caller has a session with an empty name otherwise.
    let anonymous = written(&Record { principal: Some(Arc::new(Principal::anonymous())), ..full_record() });
    assert_eq!(read(&anonymous)["actor"].get("session"), None);
    assert_eq!(ReplayInputs::parse(&anonymous).unwrap().principal.unwrap().credential, CredentialId::None);

    let undecided = read(&written(&Record { decision: None, ..full_record() }));
    assert_eq!(undecided["authorizations"][0]["policy"], json!({"name": "policy", "version": "sha256:0123"}));
    let decision = Decision { outcome: Effect::Deny, rule: None, shadow: Vec::new(), grants: Vec::new() };
    let bare = read(&written(&Record { decision: Some(decision), policy: None, ..full_record() }));
    assert_eq!(bare["authorizations"][0], json!({"decision": "deny"}));

    let operator = Operator {
        uid: Some(1000),
        user: Some("olga".to_owned()),
        command: "status".to_owned(),
        why: None,
        outcome: Ok(()),
        deliveries: None,
    };
    for (note, profiles) in [
        (Note::Operator(operator), json!(["host"])),
        (Note::PolicyLoaded { digest: "sha256:1".into(), cause: "start", problems: Vec::new() }, Value::Null),
    ] {
        let mut line = Vec::new();
        write_note(&note, NOW, &mut line);
        line.push(b'}');
        assert_eq!(read(&line)["metadata"]["profiles"], profiles);
    }
}

#[test]
fn lines_that_hold_no_inputs_say_so() {
    let completed = Record { phase: Phase::Completed, ..full_record() };
    let mut note = Vec::new();
    write_note(&Note::PolicyLoaded { digest: "sha256:1".into(), cause: "start", problems: Vec::new() }, NOW, &mut note);
    note.push(b'}');
    for (line, kind) in [(written(&completed), "request.completed"), (note, "policy.loaded")] {
        let Err(ReplayError::Kind(found)) = ReplayInputs::parse(&line) else { panic!("{kind}") };
        assert_eq!(found, kind);
    }
    let decided = Record { phase: Phase::Decided, ..full_record() };
    assert!(ReplayInputs::parse(&written(&decided)).is_ok());
}

/// Row kubernetes:L1: no token, no line break of a caller's, no query.
#[test]
fn kubernetes_l1_no_secret_and_no_line_break_reaches_a_line() {
    let record =
        Record { path: "/a\r\n{\"class_uid\":6002}".into(), user_agent: Some("x\n\u{1b}[2J".into()), ..full_record() };
    let line = written(&record);
    assert!(!line.iter().any(|byte| *byte < b' '));
    let text = String::from_utf8(line).unwrap();
    for secret in ["rt-secret", "the-nonce-of-a-login", "a-hash", "alice@example.com"] {
        assert!(!text.contains(secret), "{secret}");
    }
    assert!(text.contains("\"department\":\"platform\""), "a claim that the policy names is there");
    let unnamed = Record { claims: None, ..record };
    assert!(!String::from_utf8(written(&unnamed)).unwrap().contains("platform"), "and not without");
}

/// Creates a record in which every text is as long and as hostile as `text`.
fn hostile(text: &str, many: usize) -> Record {
    let shared: Arc<str> = text.into();
    let list = vec![Arc::clone(&shared); many];
    let some = || Some(Arc::clone(&shared));
    let deep = (0..100).fold(json!(text), |value, _| json!([value]));
    let claims = CLAIMS.into_iter().map(|name| (name.to_owned(), deep.clone())).collect();
    let named = || [(Arc::clone(&shared), Arc::clone(&shared))].into();
    Record {
        host: text.into(),
        path: text.into(),
        user_agent: Some(text.into()),
        route: some(),
        method: Method::from_bytes("M".repeat(2000).as_bytes()).unwrap(),
        tls: Some(Arc::new(Tls {
            version: "1.3",
            server_name: Some(text.into()),
            certificate: Some([1; 32]),
            subject: Some(text.into()),
        })),
        principal: Some(Arc::new(Principal {
            issuer: Arc::clone(&shared),
            subject: Arc::clone(&shared),
            username: Arc::clone(&shared),
            groups: list.clone(),
            scopes: list.clone(),
            client: some(),
            actor: Some(Actor { issuer: some(), subject: Arc::clone(&shared), client: some() }),
            login: LoginFacts { auth_time: Some(NOW), acr: some(), amr: list.clone() },
            claims: Arc::new(claims),
            credential: CredentialId::Token(Arc::clone(&shared)),
            ..principal()
        })),
        decision: Some(Decision { outcome: Effect::Deny, rule: some(), shadow: list.clone(), grants: list.clone() }),
        refusal: Some(Refusal { reason: Reason::PolicyDenied, detail: text.into() }),
        kubernetes: Some(Arc::new(Attributes {
            is_resource: true,
            follow: false,
            verb: text.into(),
            api_group: text.into(),
            api_version: text.into(),
            namespace: text.into(),
            resource: text.into(),
            subresource: text.into(),
            name: text.into(),
            path: text.into(),
            apply: true,
        })),
        run: Some(Arc::new(Run {
            references: list.clone(),
            service_accounts: list.clone(),
            params: named(),
            labels: named(),
            ..Run::clone(full_record().run.as_ref().unwrap())
        })),
        impersonated_groups: Some(list.into()),
        event_listener: Some(Arc::new(EventListener { namespace: text.into(), name: text.into() })),
        delivery: Some(Arc::new(Facts {
            webhook: Arc::clone(&shared),
            sender_kind: Arc::clone(&shared),
            delivery: Arc::clone(&shared),
            event: some(),
            action: some(),
            repository: some(),
            repository_id: some(),
            owner: some(),
            branch: some(),
            tag: some(),
            commit: some(),
            actor: some(),
            actor_id: some(),
            fork: Some(true),
            pull_request: some(),
            draft: Some(true),
            several: true,
            build: true,
        })),
        upstream: Some(Upstream { name: Arc::clone(&shared), status: None }),
        event_id: Some(text.into()),
        policy: some(),
        ended: Some(text.to_owned().into()),
        ..full_record()
    }
}

#[test]
fn a_line_is_bounded_whatever_its_content() {
    let long = "x".repeat(100_000);
    let control = "\u{1}".repeat(100_000);
    let quotes = "\"\\".repeat(10_000);
    let door = "🚪".repeat(10_000);
    for (text, many) in [(&*long, 10), (&control, 10), (&quotes, 10), (&door, 10), ("", 100_000), ("g", 100_000)] {
        let line = written(&hostile(text, many));
        assert!(fits(&line), "{} bytes", line.len());
        let line: Value = serde_json::from_slice(&line).unwrap();
        assert!(!line["truncated"].as_array().unwrap().is_empty());
    }
}

/// The last ones were left out, and a token that an operator had revoked through one of them was reported as not ended.
#[test]
fn a_line_names_every_party_whose_revocation_ends_a_token_even_with_longest_names() {
    let (namespace, account) = ("n".repeat(63), "a".repeat(253));
    let account = |cluster| (cluster, format!("system:serviceaccount:{namespace}:{account}"));
    // A task whose run three agents caused for somebody, and the name in the token.
    let parties = [
        ("company", "s".repeat(255)),
        account("one"),
        account("two"),
        account("three"),
        account("four"),
        ("own", "u".repeat(MAX_NAME)),
    ];
    let known =
        |(issuer, subject): &(&str, String)| KnownAs { issuer: (*issuer).into(), subject: subject.as_str().into() };
    let issued = Issued {
        token: "t".to_owned(),
        issuer: "own".into(),
        audience: "https://api.test".to_owned(),
        scopes: Vec::new(),
        expires: NOW,
        rules: Vec::new(),
        cause: None,
        task: None,
        parties: parties.iter().map(known).collect(),
        exchanged: Vec::new(),
        onward: None,
    };
    let line = written(&Record { issued: Some(Box::new(issued)), ..full_record() });
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&line["unmapped"]["issued"]["parties"], line.get("truncated")), (&json!(parties), None));
}

#[test]
fn a_line_that_fits_is_not_cut_and_the_least_important_fields_are_cut_first() {
    let groups: Vec<Arc<str>> = (0..200).map(|n| format!("6f1c{n:04}-0000-4000-8000-000000000000").into()).collect();
    let with = |count: usize, agent: usize| {
        let principal = Principal { groups: groups[..count].to_vec(), ..principal() };
        let agent = "x".repeat(agent).into();
        let record = Record { principal: Some(Arc::new(principal)), user_agent: Some(agent), ..full_record() };
        ReplayInputs::parse(&written(&record)).unwrap()
    };
    let all = with(200, 10);
    assert_eq!((all.principal.unwrap().groups.len(), all.truncated), (200, Vec::<String>::new()));
    let agent = with(200, 5000);
    assert_eq!((agent.principal.unwrap().groups.len(), agent.truncated), (200, vec!["user_agent".to_owned()]));
}

#[test]
fn a_repeated_caller_is_written_as_the_first_time() {
    let line = |record: &Record, callers: &mut Callers| {
        let mut line = Vec::new();
        write_record(record, callers, &mut line);
        String::from_utf8(line).unwrap()
    };
    let few = full_record();
    let many = Record { user_agent: None, ..hostile("g", 10_000) };
    let wide = Record { claims: Some(Arc::from([Arc::from("department"), Arc::from("site")])), ..few.clone() };
    let ended = Record { phase: Phase::Completed, ..few.clone() };
    let _cache = many.principal.clone();
    let mut callers = Callers::default();
    for _ in 0..2 {
        for record in [&few, &many, &wide, &ended, &few] {
            assert_eq!(line(record, &mut callers), line(record, &mut Callers::default()));
        }
    }
    assert!(line(&many, &mut callers).contains(r#""truncated":["#));
}

#[test]
fn notes_are_bounded_too() {
    let long = "y\n".repeat(50_000);
    let notes = [
        Note::PolicyLoaded { digest: long.as_str().into(), cause: "files", problems: vec![long.clone(); 1000] },
        Note::PolicyRefused { digest: None, cause: "files", problems: vec!["short".to_owned(); 100_000] },
        Note::Operator(Operator {
            command: long.clone(),
            uid: Some(1000),
            user: Some(long.clone()),
            why: Some(long.clone()),
            outcome: Err(long.clone()),
            deliveries: Some(vec![HeldDelivery::Known { request: long.clone(), delivery: long.clone() }; 1000]),
        }),
        Note::SessionEnded { session: long.clone(), why: "signed_out" },
        Note::Key { of: "tokens", id: long.clone(), change: KeyChange::Removed },
        Note::Alarm { what: "break_glass", detail: long },
    ];
    for note in notes {
        let mut line = Vec::new();
        write_note(&note, NOW, &mut line);
        line.push(b'}');
        assert!(fits(&line));
        assert!(serde_json::from_slice::<Value>(&line).unwrap()["truncated"].is_array());
    }
}

#[test]
fn deliveries_that_an_operator_dropped_are_all_counted_and_named_as_far_as_there_is_room() {
    let of = |count: u32| {
        let named = |at| HeldDelivery::Known { request: format!("request {at:0>28}"), delivery: format!("{at:0>36}") };
        let note = Note::Operator(Operator {
            command: r#"drop-hook {"parked":false,"webhook":"github"}"#.to_owned(),
            uid: Some(0),
            user: None,
            why: None,
            outcome: Ok(()),
            deliveries: Some((0..count).map(named).collect()),
        });
        let mut line = Vec::new();
        write_note(&note, NOW, &mut line);
        line.push(b'}');
        assert!(fits(&line));
        serde_json::from_slice::<Value>(&line).unwrap()
    };
    let few = of(2);
    assert_eq!(few["unmapped"]["delivery_count"], 2);
    let second = json!({"request": format!("request {:0>28}", 1), "delivery": format!("{:0>36}", 1)});
    assert_eq!(few["unmapped"]["deliveries"][1], second);
    assert_eq!(few.get("truncated"), None);
    let many = of(5000);
    assert_eq!(many["unmapped"]["delivery_count"], 5000);
    let named = many["unmapped"]["deliveries"].as_array().unwrap().len();
    assert!((90..5000).contains(&named), "{named}");
    assert_eq!(many["truncated"], json!(["deliveries"]));
}

proptest! {
    #[test]
    fn any_text_gives_one_line_of_json(text in "\\PC{0,300}|[\\x00-\\x1f\"\\\\]{0,2000}", many in 0_usize..40) {
        let line = written(&hostile(&text, many));
        prop_assert!(fits(&line));
        prop_assert!(!line.contains(&b'\n'));
        prop_assert!(serde_json::from_slice::<Value>(&line).is_ok());
        prop_assert!(ReplayInputs::parse(&line).is_ok());
    }
}
