//! Agents that act for people: what is said of the people.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{TARGET, World, part, token};
use crate::harness::{Answer, within};

const TYPE: (&str, &str) = ("actor_token_type", "urn:ietf:params:oauth:token-type:access_token");

async fn ask(world: &World, person: &str, actor: &str) -> Answer {
    let asked = [("subject_token", person), ("actor_token", actor), TYPE, ("audience", TARGET), ("scope", "plan")];
    world.ask(&asked).await
}

#[tokio::test]
async fn a_person_is_one_however_they_let_an_agent_act_and_has_no_name_in_a_trail_of_pseudonyms() {
    let key = BASE64_STANDARD.encode([5; 32]);
    let world = World::with_files(
        |yaml| yaml.replace("audit: {", "audit: {pseudonym_key: {file: pseudonyms}, "),
        &[("pseudonyms", &key)],
    )
    .await;
    let agent = world.person("planner-account", &json!({"client_id": "planner"}));
    for (what, more) in [
        ("`may_act`", json!({"may_act": {"sub": "planner-account"}})),
        ("their token was issued to the agent", json!({"client_id": "planner"})),
        ("both", json!({"client_id": "planner", "may_act": {"client_id": "planner"}})),
    ] {
        let own = token(&ask(&world, &world.person("zoe-person", &more), &agent).await);
        let claims = part(&own, 1);
        assert_eq!((&claims["kind"], &claims["origin"]["sub"]), (&json!("human"), &json!("zoe-person")), "{what}");
        let used = world.doorward.get("/", &["Host: localhost", &format!("Authorization: Bearer {own}")]).await;
        assert_eq!(used.status, 200, "{what}: {}", used.text());
    }
    // An agent that another acts for stays one.
    let may_act = json!({"client_id": "planner", "sub": "planner-account"});
    let itself = world.person("other", &json!({"may_act": may_act, "client_id": "other"}));
    assert_eq!(part(&token(&ask(&world, &itself, &agent).await), 1)["kind"], "agent");
    // Neither does a refusal tell the name of another person, whose token the agent sends as its own.
    for more in [json!({"client_id": "planner"}), json!({})] {
        let bob = world.person("bob-person", &json!({"client_id": "planner"}));
        let refused = ask(&world, &world.person("zoe-person", &more), &bob).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    let lines = within(async {
        loop {
            let lines = world.doorward.audit();
            let ended = |line: &&Value| {
                line["metadata"]["event_code"]
                    .as_str()
                    .is_some_and(|code| code == "request" || code == "request.completed")
            };
            // Four exchanges, three uses and two refusals.
            if lines.iter().filter(ended).count() >= 9 {
                return lines;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for line in &lines {
        let text = line.to_string();
        assert!(!text.contains("zoe-person") && !text.contains("bob-person"), "{line:#}");
    }
    let is_agents = |line: &Value| line.to_string().contains("planner-account");
    assert!(lines.iter().any(is_agents), "who acts has their name");
}

/// A rule for the planner was met by any agent that acted for somebody whose token the planner had got.
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
                "planner" => assert_eq!(part(&token(&answer), 1)["act"]["client_id"], "planner", "{what}"),
                _ => assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_target")), "{what}"),
            }
        }
    }
}

#[tokio::test]
async fn nobody_whose_user_name_is_that_of_a_task_gets_a_token() {
    let template = "kind: human, username: '{claim:/preferred_username}',";
    let world = World::with(|yaml| yaml.replacen("kind: human,", template, 1)).await;
    let agent =
        |name: &str| world.person("planner-account", &json!({"client_id": "planner", "preferred_username": name}));
    let lets =
        |name: &str| world.person("bob", &json!({"may_act": {"sub": "planner-account"}, "preferred_username": name}));
    token(&ask(&world, &lets("bob"), &agent("planner")).await);
    for name in ["serviceaccount:ci:builder", "ServiceAccount:ci:builder"] {
        let refused = ask(&world, &lets(name), &agent("planner")).await;
        assert_eq!(refused.status, 400, "{name}: {}", refused.text());
        assert!(refused.text().contains("as only names do that Doorward gives itself"), "{}", refused.text());
    }
}
