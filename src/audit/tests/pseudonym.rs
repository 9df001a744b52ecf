//! A trail in which people have pseudonyms.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;
use crate::{
    audit::PseudonymKey,
    authn::{Actor, KnownAs},
    error::{PresentedIdentity, Reason, Rejection},
    runs::Cause,
};

fn key() -> PseudonymKey {
    PseudonymKey::from_base64(STANDARD.encode([3; 32]).as_bytes()).unwrap()
}

/// Returns the lines of requests in a trail with pseudonyms.
fn written(records: impl IntoIterator<Item = Record>) -> Vec<Value> {
    let sink = Memory::default();
    let trail = start(&Settings { pseudonym_key: Some(key()), ..settings() }, &sink, &clock());
    for record in records {
        trail.write(record);
    }
    trail.shutdown();
    let lines = sink.lines();
    lines.into_iter().filter(|line| kind(line).starts_with("request")).collect()
}

fn person() -> Principal {
    let claims = [("email", "alice@corp.example"), ("preferred_username", "alice"), ("department", "payments")];
    Principal {
        claims: Arc::new(claims.map(|(name, value)| (name.to_owned(), json!(value))).into_iter().collect()),
        actor: Some(Actor { issuer: None, subject: "bob".into(), client: None }),
        ..principal()
    }
}

/// Creates a record that names a person wherever it can.
fn of(principal: &Arc<Principal>) -> Record {
    let full = full_record();
    let facts = full.delivery.as_deref().unwrap().clone();
    let mut record = Record {
        principal: Some(Arc::clone(principal)),
        claims: Some(Arc::from(["email", "preferred_username", "department"].map(Arc::from))),
        delivery: Some(Arc::new(Facts { actor: Some("octoalice".into()), actor_id: Some("583231".into()), ..facts })),
        ..full
    };
    record.refuse(&Rejection::new(Reason::PolicyDenied, "corp:alice may not, and 00u1 is their subject"));
    record
}

#[test]
fn no_name_of_a_person_reaches_a_line_and_all_else_does() {
    let principal = Arc::new(person());
    let lines = written([of(&principal), of(&principal)]);
    for line in &lines {
        let text = line.to_string();
        for name in ["alice", "00u1", "bob", "octoalice", "583231", "CN=ops", "corp.example"] {
            assert!(!text.contains(name), "{name}: {text}");
        }
        for kept in ["payments", "acme/app", "deploy-prod", "tekton-deployers", "192.0.2.7", "jti-1"] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
    }
    let [first, second] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(first["actor"]["user"], second["actor"]["user"]);
    assert_eq!(first["actor"]["user"]["name"], json!(key().pseudonym("corp:alice")));
    assert_eq!(first["actor"]["user"]["uid"], json!(key().pseudonym("00u1")));
    assert_eq!(first["unmapped"]["identity"]["user"], first["actor"]["user"]["name"]);
    assert_eq!(first["unmapped"]["webhook"]["actor"], json!(key().pseudonym("octoalice")));
    let said = format!("{} may not, and {} is their subject", key().pseudonym("corp:alice"), key().pseudonym("00u1"));
    assert_eq!(first["status_detail"], said);
}

/// The two together revealed whose the pseudonym is, in every other line too.
#[test]
fn the_name_of_a_personal_repository_does_not_reveal_its_owner() {
    for (actor, owner, repository, hidden) in [
        ("octoalice", "octoalice", "octoalice/app", true),
        ("octoalice", "OctoAlice", "OctoAlice/app", true),
        ("octoalice", "octoalice-inc", "octoalice-inc/app", false),
    ] {
        let facts = Facts {
            actor: Some(actor.into()),
            owner: Some(owner.into()),
            repository: Some(repository.into()),
            ..full_record().delivery.as_deref().unwrap().clone()
        };
        let sender = Principal { kind: Kind::Workload, ..principal() };
        let record = Record { principal: Some(Arc::new(sender)), delivery: Some(Arc::new(facts)), ..full_record() };
        let [line] = &written([record])[..] else { panic!() };
        let webhook = &line["unmapped"]["webhook"];
        let pseudonym = key().pseudonym(actor);
        let (shown, name) =
            if hidden { (&*pseudonym, format!("{pseudonym}/app")) } else { (owner, repository.to_owned()) };
        assert_eq!((&webhook["owner"], &webhook["repository"]), (&json!(shown), &json!(name)), "{line}");
        assert_eq!((&webhook["actor"], &webhook["repository_id"]), (&json!(pseudonym), &json!("42")), "{line}");
        // Rules about repositories and their pushers may decide differently.
        assert!(ReplayInputs::parse(line.to_string().as_bytes()).unwrap().is_pseudonymous(), "{line}");
    }
}

#[test]
fn a_caller_refused_before_authentication_is_pseudonymized_too() {
    let named = |subject: &str| {
        let mut record = record(1);
        let presented = PresentedIdentity {
            issuer: "corp".into(),
            subject: subject.into(),
            user: Some("alice@corp.example\t".into()),
            group: Some("system:masters".into()),
            credential: CredentialId::None,
        };
        record.refuse(&Rejection::new(Reason::IdentityRefused, "no name").with_presented(presented));
        let [line] = &written([record])[..] else { panic!() };
        line["unmapped"]["presented"].clone()
    };
    let [subject, user] = ["00u1", "alice@corp.example\t"].map(|name| key().pseudonym(name));
    let expected = json!({"issuer": "corp", "subject": subject, "user": user, "group": "system:masters"});
    assert_eq!(named("00u1"), expected);
    assert_eq!(named(TASK)["subject"], TASK, "no person");
}

/// A task as an actor.
const TASK: &str = "serviceaccount:ci:builder";

/// The actor makes the principal an agent, whose subject is still a person.
#[test]
fn a_person_on_whose_behalf_a_task_acts_is_pseudonymized_too() {
    let own = || Some(Box::new(KnownAs { issuer: "corp".into(), subject: "00u1".into() }));
    for (what, on_behalf_of, claims, hidden) in [
        ("a token of ours for a person", own(), json!({"kind": "human", "act": {}}), true),
        ("a token of ours for a bot", own(), json!({"kind": "agent", "act": {"sub": TASK}}), false),
        (
            "the same, of a task that another task made",
            own(),
            json!({"kind": "agent", "act": {"sub": TASK, "act": {"sub": TASK}}}),
            false,
        ),
        (
            "a token of ours for a person's agent, in a task",
            own(),
            json!({"kind": "agent", "act": {"sub": TASK, "act": {"sub": "planner"}}}),
            true,
        ),
        (
            "a token of ours for a person's agent itself",
            own(),
            json!({"kind": "agent", "act": {"sub": "planner"}}),
            true,
        ),
        ("a token of ours for a job", own(), json!({"kind": "workload"}), false),
        ("a token of ours of which nobody knows whom it is for", own(), json!({"act": {}}), true),
        ("another's, of nobody knows whom", None, json!({"act": {}}), true),
        ("another's, that says what it likes", None, json!({"act": {}, "kind": "agent"}), true),
        ("a bot whose task asks for a token", None, json!({}), false),
    ] {
        let principal = Principal {
            kind: Kind::Agent,
            claims: Arc::new(claims.as_object().unwrap().clone()),
            actor: Some(Actor::service_account(None, "ci", "builder")),
            on_behalf_of,
            ..principal()
        };
        let [line] = &written([Record { principal: Some(Arc::new(principal)), ..record(1) }])[..] else { panic!() };
        assert_eq!(line["actor"]["user"]["uid"] != "00u1", hidden, "{what}: {line}");
    }
}

#[test]
fn workloads_bots_agents_and_break_glass_keep_their_names() {
    let task = Actor::service_account(None, "ci", "builder");
    let agent = Actor { issuer: None, subject: "agent-7".into(), client: Some("agents".into()) };
    let kinds = [
        Principal { kind: Kind::Workload, ..principal() },
        Principal { kind: Kind::Agent, ..principal() },
        Principal { issuer: "break-glass".into(), ..principal() },
    ];
    for principal in kinds {
        let [line] = &written([Record { principal: Some(Arc::new(principal)), ..record(1) }])[..] else { panic!() };
        assert_eq!(line["actor"]["user"]["uid"], "00u1", "{line}");
    }
    for actor in [task, agent] {
        let principal = Principal { actor: Some(actor.clone()), ..principal() };
        let [line] = &written([Record { principal: Some(Arc::new(principal)), ..record(1) }])[..] else { panic!() };
        assert_eq!(line["unmapped"]["principal"]["actor"]["subject"], *actor.subject, "{line}");
    }
}

/// The name beside the pseudonym would reveal for ever whose that is.
#[test]
fn an_actor_is_pseudonymized_in_a_refusal_too() {
    let bob = Actor { issuer: None, subject: "bob".into(), client: None };
    let agent = Actor { issuer: None, subject: "agent-7".into(), client: Some("agents".into()) };
    for (actor, kind, said) in [
        (&bob, Kind::Human, format!("{} for {}", key().pseudonym("bob"), key().pseudonym("corp:alice"))),
        // The account of a program for which somebody acts.
        (&bob, Kind::Agent, format!("{} for corp:alice", key().pseudonym("bob"))),
        (&agent, Kind::Human, format!("agent-7 for {}", key().pseudonym("corp:alice"))),
    ] {
        let principal = Principal { kind, claims: Arc::default(), actor: Some(actor.clone()), ..principal() };
        let mut record = Record { principal: Some(Arc::new(principal)), ..record(1) };
        record.refuse(&Rejection::new(Reason::PolicyDenied, format!("{} for corp:alice", actor.subject)));
        let [line] = &written([record])[..] else { panic!() };
        assert_eq!(line["status_detail"], said, "{line}");
    }
}

/// Their agent has a token of another issuer, and starts the run.
#[test]
fn a_person_behind_the_agent_that_caused_a_run_is_pseudonymized_in_token_requests() {
    for (what, claims, hidden) in
        [("an agent that acts for somebody", json!({"act": {"sub": "planner"}}), true), ("a bot", json!({}), false)]
    {
        let caused = Principal {
            kind: Kind::Agent,
            claims: Arc::new(claims.as_object().unwrap().clone()),
            actor: claims.get("act").map(|_| Actor { issuer: None, subject: "planner".into(), client: None }),
            ..principal()
        };
        let behind = Cause::new(&caused, Some("https://idp.test"), Uuid::nil(), NOW, &[]).principal();
        let asks = Principal { actor: Some(Actor::service_account(None, "ci", "builder")), ..behind };
        let [line] = &written([Record { principal: Some(Arc::new(asks)), ..record(1) }])[..] else { panic!() };
        assert_eq!(line["actor"]["user"]["uid"] != "00u1", hidden, "{what}: {line}");
    }
}

/// A policy can name any claim, which is then written. The list repeats that of the code, so that a claim which is
/// removed there is missed here.
#[test]
fn no_personal_claim_that_the_policy_names_reaches_a_line() {
    let personal = [
        "sub",
        "name",
        "given_name",
        "family_name",
        "middle_name",
        "nickname",
        "preferred_username",
        "profile",
        "picture",
        "website",
        "email",
        "gender",
        "birthdate",
        "phone_number",
        "address",
        "upn",
        "unique_name",
        "oid",
        "mail",
        "emails",
        "emailaddress",
        "verified_primary_email",
        "verified_secondary_email",
        "login_hint",
        "ipaddr",
        "onprem_sid",
        "puid",
        "username",
        "user_name",
        "user_email",
        "display_name",
        "displayname",
        "givenname",
        "surname",
        "samaccountname",
        "phone",
        // As Auth0 and AD FS write them.
        "https://corp.example/Email",
    ];
    let mut claims = json!({"department": "payments"});
    for claim in personal {
        claims[claim] = json!(format!("alice-{claim}"));
    }
    // OpenID Connect Core section 5.1.1.
    claims["address"] = json!({"formatted": "alice-address"});
    let principal = Principal { claims: Arc::new(claims.as_object().unwrap().clone()), ..principal() };
    let named = personal.into_iter().chain(["department"]).map(Arc::from).collect();
    let record = Record { principal: Some(Arc::new(principal)), claims: Some(named), ..record(1) };
    let [line] = &written([record])[..] else { panic!() };
    assert!(!line.to_string().contains("alice-"), "{line}");
    let written = &line["unmapped"]["principal"]["claims"];
    assert_eq!(written["department"], "payments");
    for claim in personal {
        assert!(written[claim].as_str().unwrap().starts_with("pseudonym-"), "{claim}: {line}");
    }
}

/// They stood in clear beside the pseudonym: in lists, below the name that the policy has, and under names of the
/// issuer's own.
#[test]
fn no_claim_has_a_name_of_its_person_at_any_depth() {
    let address = "alice@example.com";
    let claims = json!({
        "emails": [address, {"value": address}],
        "ext": {"upn": address, "n": 1, "list": [{"mail": address}, "payments"]},
        "legacy": "00u1",
        "contact": ["Alice@Example.com"],
        "account": {"of": "corp:alice"},
        "verified_primary_email": [address],
        "kubernetes.io": {"namespace": "ci", "pod": {"name": "build-1"}},
    });
    let names: Vec<Arc<str>> = claims.as_object().unwrap().keys().map(|name| name.as_str().into()).collect();
    let principal = Principal { claims: Arc::new(claims.as_object().unwrap().clone()), ..principal() };
    assert_eq!(principal.email.as_deref(), Some(address));
    let record = Record { principal: Some(Arc::new(principal)), claims: Some(names.into()), ..record(1) };
    let [line] = &written([record])[..] else { panic!() };
    let text = line.to_string().to_ascii_lowercase();
    assert!(!text.contains("alice") && !text.contains("00u1"), "{line}");
    let (written, hidden) = (&line["unmapped"]["principal"]["claims"], key().pseudonym(address));
    // The same name has the same pseudonym wherever it is.
    for place in ["/emails/0", "/ext/upn", "/ext/list/0/mail", "/contact/0", "/verified_primary_email/0"] {
        assert_eq!(written.pointer(place), Some(&json!(hidden)), "{place}: {line}");
    }
    assert_eq!((&written["ext"]["n"], &written["ext"]["list"][1]), (&json!(1), &json!("payments")));
    assert_eq!(written["kubernetes.io"]["pod"]["name"], "build-1");
}

#[test]
fn the_email_address_of_a_person_is_hidden_in_a_refusal() {
    let mut record = Record { principal: Some(Arc::new(person())), ..record(1) };
    record.refuse(&Rejection::new(Reason::PolicyDenied, "alice@example.com may not"));
    let [line] = &written([record])[..] else { panic!() };
    assert_eq!(line["status_detail"], format!("{} may not", key().pseudonym("alice@example.com")));
}
