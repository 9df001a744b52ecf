//! Agents that act for people, and what tokens and records say about the people.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{TARGET, World, introspected, part, trail::traced};
use crate::{fixture::Change, harness::Answer};

const TYPE: (&str, &str) = ("actor_token_type", "urn:ietf:params:oauth:token-type:access_token");

/// Asks for a token for a person who has authorized an agent.
pub async fn ask(world: &World, person: &str, actor: &str) -> Answer {
    let asked = [("subject_token", person), ("actor_token", actor), TYPE, ("audience", TARGET), ("scope", "plan")];
    world.ask(&asked).await
}

#[tokio::test]
async fn a_person_has_one_pseudonym_however_they_permit_an_agent_to_act() {
    let key = BASE64_STANDARD.encode([5; 32]);
    let world = World::with_files(
        |yaml| yaml.change("audit: {", "audit: {pseudonym_key: {file: pseudonyms}, "),
        &[("pseudonyms", &key)],
    )
    .await;
    let agent = world.person("planner-account", &json!({"client_id": "planner"}));
    for (what, more) in [
        ("`may_act`", json!({"may_act": {"sub": "planner-account"}})),
        ("their token was issued to the agent", json!({"client_id": "planner"})),
        ("both", json!({"client_id": "planner", "may_act": {"client_id": "planner"}})),
    ] {
        let own = ask(&world, &world.person("zoe-person", &more), &agent).await.token();
        let claims = part(&own, 1);
        assert_eq!((&claims["kind"], &claims["origin"]["sub"]), (&json!("human"), &json!("zoe-person")), "{what}");
        let used = world.doorward.get("/", &["Host: localhost", &format!("Authorization: Bearer {own}")]).await;
        assert_eq!(used.status, 200, "{what}: {}", used.text());
    }
    // An agent for whom another acts is still an agent.
    let may_act = json!({"client_id": "planner", "sub": "planner-account"});
    let itself = world.person("other", &json!({"may_act": may_act, "client_id": "other"}));
    assert_eq!(part(&ask(&world, &itself, &agent).await.token(), 1)["kind"], "agent");
    // A refusal does not reveal the name of another person, whose token the agent presents as its own.
    for more in [json!({"client_id": "planner"}), json!({})] {
        let bob = world.person("bob-person", &json!({"client_id": "planner"}));
        let refused = ask(&world, &world.person("zoe-person", &more), &bob).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    let ended = |line: &Value| {
        line["metadata"]["event_code"].as_str().is_some_and(|code| code == "request" || code == "request.completed")
    };
    // Four exchanges, three uses and two refusals.
    world.doorward.records(9, ended).await;
    let lines = world.doorward.audit();
    for line in &lines {
        let text = line.to_string();
        assert!(!text.contains("zoe-person") && !text.contains("bob-person"), "{line:#}");
    }
    let is_agents = |line: &Value| line.to_string().contains("planner-account");
    assert!(lines.iter().any(is_agents), "who acts has their name");
}

/// A rule for the planner matched any agent that acted for somebody whose token the planner had obtained.
#[tokio::test]
async fn the_client_of_a_rule_is_that_of_the_agent_and_not_of_whom_it_acts_for() {
    let world = World::start().await;
    let agents = [("planner-account", "planner"), ("other", "other")];
    for (subject, client) in agents {
        let agent = world.person(subject, &json!({"client_id": client}));
        for issued_to in ["planner", "web"] {
            let lets = world.person("bob", &json!({"client_id": issued_to, "may_act": {"sub": subject}}));
            let answer = ask(&world, &lets, &agent).await;
            let what = format!("{client} acts by a token of {issued_to}: {}", answer.text());
            match client {
                "planner" => assert_eq!(part(&answer.token(), 1)["act"]["client_id"], "planner", "{what}"),
                _ => assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_target")), "{what}"),
            }
        }
    }
}

#[tokio::test]
async fn a_person_whose_user_name_is_that_of_a_task_gets_no_token() {
    let template = "kind: human, username: '{claim:/preferred_username}',";
    let world = World::with(|yaml| yaml.change_first("kind: human,", template)).await;
    let agent =
        |name: &str| world.person("planner-account", &json!({"client_id": "planner", "preferred_username": name}));
    let lets =
        |name: &str| world.person("bob", &json!({"may_act": {"sub": "planner-account"}, "preferred_username": name}));
    ask(&world, &lets("bob"), &agent("planner")).await.token();
    for name in ["serviceaccount:ci:builder", "ServiceAccount:ci:builder"] {
        let refused = ask(&world, &lets(name), &agent("planner")).await;
        assert_eq!(refused.status, 400, "{name}: {}", refused.text());
        assert!(refused.text().contains("as only Doorward's own names may"), "{}", refused.text());
    }
}

/// A world, and the token of its agent.
async fn with_planner() -> (World, String) {
    let world = World::start().await;
    let planner = world.person("planner-account", &json!({"client_id": "planner"}));
    (world, planner)
}

/// Asserts that an actor gets no token for a person. Each row has a name, the tokens of both, and words of the refusal.
async fn assert_refused(world: &World, rows: &[(&str, String, &str, &str)]) {
    for (what, person, actor, said) in rows {
        let answer = ask(world, person, actor).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(answer.text().contains(said), "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn an_agent_gets_a_token_for_a_person_who_permits_it() {
    let (world, agent) = with_planner().await;
    let lets = world.person("alice", &json!({"may_act": {"sub": "planner-account"}}));
    let own = ask(&world, &lets, &agent).await.token();
    let claims = part(&own, 1);
    assert_eq!(claims["origin"], json!({"issuer": "people", "sub": "alice"}), "{claims:#}");
    let people = world.people.url();
    assert_eq!(claims["act"], json!({"iss": people, "sub": "planner-account", "client_id": "planner"}), "{claims:#}");
    assert_eq!(claims["client_id"], "planner");
    // On a route it counts as Alice through the agent, which rules for people do not match.
    let answer = world.doorward.get("/", &["Host: localhost", &format!("Authorization: Bearer {own}")]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // A token that was issued to the agent in the person's own login is equally sufficient.
    ask(&world, &world.person("alice", &json!({"client_id": "planner"})), &agent).await.token();
    let by_all = json!({"iss": people, "sub": "planner-account", "client_id": "planner"});
    for may_act in [
        json!({"client_id": "planner"}),
        json!({"iss": people, "sub": by_all["sub"]}),
        json!({"iss": people, "client_id": by_all["client_id"]}),
        by_all,
    ] {
        ask(&world, &world.person("alice", &json!({"may_act": may_act})), &agent).await.token();
    }
}

#[tokio::test]
async fn a_delegation_that_the_person_did_not_give_is_refused() {
    let (world, agent) = with_planner().await;
    let lets = |may_act: Value| world.person("alice", &json!({"may_act": may_act}));
    let job = world.job(&json!({}));
    let named_like_a_client = world.job(&json!({"client_id": "planner"}));
    assert_refused(
        &world,
        &[
            ("nobody was let", world.person("alice", &json!({})), &agent, "may_act"),
            ("somebody else was let", lets(json!({"sub": "somebody"})), &agent, "may_act"),
            ("nobody is named", lets(json!({})), &agent, "may_act"),
            ("nobody is named but an issuer", lets(json!({"iss": world.people.url()})), &agent, "may_act"),
            ("another client", lets(json!({"client_id": "other"})), &agent, "may_act"),
            (
                "another client of that subject",
                lets(json!({"sub": "planner-account", "client_id": "other"})),
                &agent,
                "may_act",
            ),
            (
                "what is not understood",
                lets(json!({"sub": "planner-account", "aud": "https://x.test"})),
                &agent,
                "may_act",
            ),
            ("another issuer's", lets(json!({"sub": "planner-account", "iss": "https://x.test"})), &agent, "may_act"),
            (
                "an actor of another issuer, of whom the person said nothing but the name",
                lets(json!({"sub": "repo:acme/app:environment:prod"})),
                &job,
                "without `iss`: somebody of its own issuer",
            ),
            (
                "a client of that name at another issuer",
                world.person("alice", &json!({"client_id": "planner"})),
                &named_like_a_client,
                "without `iss`: somebody of its own issuer",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_agent_that_a_person_permits_needs_a_rule_too() {
    let (world, agent) = with_planner().await;
    let lets = |may_act: Value| world.person("alice", &json!({"may_act": may_act}));
    let other = world.person("other-account", &json!({"client_id": "other"}));
    let itself = world.person("other", &json!({"client_id": "other"}));
    let (job, job_issuer) = (world.job(&json!({})), world.ci.url());
    assert_refused(
        &world,
        &[
            ("no rule for that agent", lets(json!({"sub": "other-account"})), &other, "no rule gives it"),
            (
                "a client by its id, for which no rule is",
                world.person("alice", &json!({"client_id": "other"})),
                &itself,
                "no rule gives it",
            ),
            (
                "an actor of another issuer that was let, and has no rule",
                lets(json!({"sub": "repo:acme/app:environment:prod", "iss": job_issuer})),
                &job,
                "no rule gives it",
            ),
            (
                "a deny",
                world.person("mallory", &json!({"may_act": {"sub": "planner-account"}})),
                &agent,
                "Mallory has left",
            ),
        ],
    )
    .await;
}

/// Regression: a client of another issuer passed for the client of the same name in the rule.
#[tokio::test]
async fn an_agent_of_another_issuer_needs_a_rule_that_names_its_issuer() {
    for (also, status) in [("", 400), (", ci", 200)] {
        let named = format!("{{issuers: [people{also}], clients: [planner]");
        let world = World::with(|yaml| yaml.replace("{issuers: [people], clients: [planner]", &named)).await;
        let may_act = json!({"sub": "repo:acme/app:environment:prod", "iss": world.ci.url()});
        let lets = world.person("alice", &json!({"may_act": may_act}));
        let answer = ask(&world, &lets, &world.job(&json!({"client_id": "planner"}))).await;
        assert_eq!(answer.status, status, "{also}: {}", answer.text());
        let said = "with client planner of issuer ci, on behalf of";
        assert!(status == 200 || answer.text().contains(said), "{}", answer.text());
    }
}

#[tokio::test]
async fn an_agent_acts_only_with_a_token_that_it_has_for_itself() {
    let (world, agent) = with_planner().await;
    let lets = |may_act: Value| world.person("alice", &json!({"may_act": may_act}));
    let hers = world.person("alice", &json!({"client_id": "planner"}));
    let of_bob = world.person("bob", &json!({"client_id": "planner"}));
    let other = world.person("other-account", &json!({"client_id": "other"}));
    let through_bot = world.person("planner-account", &json!({"client_id": "planner", "act": {"sub": "bot"}}));
    let person = world.person("bob", &json!({}));
    assert_refused(
        &world,
        &[
            ("no token", lets(json!({"sub": "planner-account"})), "x", "actor_token"),
            ("her own token, which the agent has, as the agent's", hers.clone(), &hers, "nobody acts for themselves"),
            (
                "the same, though she lets herself",
                world.person("alice", &json!({"may_act": {"sub": "alice"}, "client_id": "planner"})),
                &hers,
                "nobody acts for themselves",
            ),
            ("the token of another person that the agent has", hers.clone(), &of_bob, "that the client has for itself"),
            (
                "the same, for a client that is let by its name",
                lets(json!({"client_id": "planner"})),
                &of_bob,
                "that the client has for itself",
            ),
            (
                "a client whose own subject is not its id, and is not configured",
                world.person("alice", &json!({"client_id": "other"})),
                &other,
                "that the client has for itself",
            ),
            (
                "an actor by whose token another acts",
                lets(json!({"sub": "planner-account"})),
                &through_bot,
                "with a token of its own",
            ),
            ("a person, whom she lets act", lets(json!({"sub": "bob"})), &person, "it is a person's"),
        ],
    )
    .await;
    let lets = lets(json!({"sub": "planner-account"}));
    let alone = world.exchange(&lets, "plan").await;
    assert_eq!(alone.status, 400, "without one it gets nothing: {}", alone.text());
    ask(&world, &lets, &agent).await.token();
}

/// A chain of `count` actors.
fn actors(count: usize) -> Value {
    (1..=count).fold(Value::Null, |within, number| {
        let mut act = json!({"sub": format!("actor-{number}")});
        if !within.is_null() {
            act["act"] = within;
        }
        act
    })
}

#[tokio::test]
async fn at_most_four_actors_act_for_each_other() {
    let (world, agent) = with_planner().await;
    let lets = |count| world.person("alice", &json!({"may_act": {"sub": "planner-account"}, "act": actors(count)}));
    assert_refused(&world, &[("more than four actors", lets(4), &agent, "more than 4 would have acted")]).await;
    let act = part(&ask(&world, &lets(3), &agent).await.token(), 1)["act"].clone();
    let first = json!({"iss": world.people.url(), "sub": "actor-1"});
    assert_eq!(act["act"]["act"]["act"], first, "each with its issuer: {act:#}");
    // The same applies to actors named by the provider, if no others are added.
    for (count, is_too_many) in [(4, false), (5, true)] {
        let answer = world.exchange(&world.person("alice", &json!({"act": actors(count)})), "plan").await;
        assert_eq!(answer.text().contains("more than 4 would have acted"), is_too_many, "{count}: {}", answer.text());
    }
}

#[tokio::test]
async fn names_that_only_tasks_have_are_refused() {
    let world = World::start().await;
    for name in ["system:serviceaccount:ci:builder", "ServiceAccount:ci:builder"] {
        let person = world.person("alice", &json!({"may_act": {"sub": name}}));
        let actor = world.person(name, &json!({"client_id": "planner"}));
        assert_refused(&world, &[(name, person, &actor, "the name of a service account")]).await;
    }
    for (what, named) in [
        ("sub", json!({"act": {"sub": "system:serviceaccount:ci:builder"}})),
        ("sub within", json!({"act": {"sub": "x", "act": {"sub": "serviceaccount:ci:builder"}}})),
        ("client_id of an actor", json!({"act": {"sub": "x", "client_id": "serviceaccount:ci:builder"}})),
        ("client_id", json!({"client_id": "serviceaccount:ci:builder"})),
    ] {
        let answer = world.exchange(&world.person("alice", &named), "plan").await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(answer.text().contains("service account"), "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn an_agent_gets_no_token_for_a_person_who_was_revoked() {
    let (world, agent) = with_planner().await;
    let lets = world.person("alice", &json!({"may_act": {"sub": "planner-account"}}));
    ask(&world, &lets, &agent).await.token();
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", "people", "--subject", "alice", "--why", "left"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ask(&world, &lets, &agent).await.status, 400);
}

/// It still got tokens for people, as only the user name of the person was looked up.
#[tokio::test]
async fn an_agent_revoked_by_the_name_in_own_tokens_gets_none_for_a_person() {
    let (world, agent) = with_planner().await;
    let lets = world.person("alice", &json!({"may_act": {"sub": "planner-account"}}));
    ask(&world, &lets, &agent).await.token();
    let name = world.username("planner-account");
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", "own", "--subject", &name, "--why", "stolen"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_refused(&world, &[("revoked", lets, agent.as_str(), "actor_token: your access was revoked")]).await;
}

#[tokio::test]
async fn an_agents_tokens_for_a_person_end_when_the_agent_is_revoked() {
    let world = World::start().await;
    let agent = world.person("planner-account", &json!({"client_id": "planner"}));
    let person = world.person("alice", &json!({"may_act": {"sub": "planner-account"}}));
    let own = ask(&world, &person, &agent).await.token();
    let bearer = format!("Authorization: Bearer {own}");
    let is_active = async || introspected(&world, "target", &own).await["active"].clone();
    assert_eq!(world.doorward.get("/", &["Host: localhost", &bearer]).await.status, 200);
    assert_eq!(is_active().await, json!(true));
    // With the same name at another issuer.
    for (issuer, status) in [("ci", 200), ("people", 401)] {
        let (code, said) = world
            .doorward
            .operator(&["revoke", "--issuer", issuer, "--subject", "planner-account", "--why", "stolen"])
            .await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(world.doorward.get("/", &["Host: localhost", &bearer]).await.status, status, "{issuer}");
    }
    assert_eq!(is_active().await, json!(false));
    assert_eq!(ask(&world, &person, &agent).await.status, 400);
    // The trail has the reason for its end.
    let jti = part(&own, 1)["jti"].as_str().unwrap().to_owned();
    let traced = traced(&world, &jti).await;
    assert!(traced.contains("an operator revoked it: stolen"), "{traced}");
    let asked =
        format!("asked for by agent planner-account (client planner), on behalf of {} in", world.username("alice"));
    assert!(traced.starts_with(&asked), "{traced}");
}
