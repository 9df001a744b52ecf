//! The facts of a delivery decide, and so do missing facts.

use super::*;

#[test]
fn deliveries_are_distinguished_by_the_facts_in_their_bodies() {
    decide_all(
        &GROUND.replace("webhooks:\n", "webhooks:\n  - {name: bb, sender: bitbucket_cloud, secrets: [{secret: {env: OTHER}}]}\n"),
        "
rules:
  - {id: all, who: {webhooks: [gh]}, do: allow}
  - {id: uuid, who: {webhooks: [gh], repositories: ['bitbucket:{7-a}']}, do: allow}
  - {id: fork, on: {event: [pull_request], fork: true}, do: deny}
  - {id: draft, on: {draft: true}, who: {webhooks: [gh]}, do: deny}
  - {id: closed, on: {action: [closed, deleted]}, do: deny}
  - {id: tags, on: {tag: ['v1*']}, do: deny}
  - {id: prod, on: {branch: [prod]}, do: deny}
  - {id: eve, who: {senders: ['github:7']}, do: deny}
tests:
  - {name: a push, principal: {}, request: {route: hooks, delivery: {event: push, branch: main, actor_id: '70'}}, expect: {outcome: allow}}
  - {name: a pull request, principal: {}, request: {route: hooks, delivery: {event: pull_request, fork: false, draft: false, action: opened, actor_id: '70'}}, expect: {outcome: allow}}
  - {name: one from a fork, principal: {}, request: {route: hooks, delivery: {event: pull_request, fork: true, actor_id: '70'}}, expect: {outcome: deny, rule: fork}}
  - {name: a draft, principal: {}, request: {route: hooks, delivery: {event: pull_request, draft: true, actor_id: '70'}}, expect: {outcome: deny, rule: draft}}
  - {name: a closed one, principal: {}, request: {route: hooks, delivery: {event: pull_request, action: closed, actor_id: '70'}}, expect: {outcome: deny, rule: closed}}
  - {name: a tag, principal: {}, request: {route: hooks, delivery: {event: push, tag: v1.2, actor_id: '70'}}, expect: {outcome: deny, rule: tags}}
  - {name: another tag, principal: {}, request: {route: hooks, delivery: {event: push, tag: v2, actor_id: '70'}}, expect: {outcome: allow}}
  - {name: several branches, principal: {}, request: {route: hooks, delivery: {event: push, several: true, actor_id: '70'}}, expect: {outcome: deny}}
  - {name: a merge queue of that branch, principal: {}, request: {route: hooks, delivery: {event: merge_group, branch: prod, actor_id: '70'}}, expect: {outcome: deny, rule: prod}}
  - {name: a merge queue of another, principal: {}, request: {route: hooks, delivery: {event: merge_group, branch: main, actor_id: '70'}}, expect: {outcome: allow}}
  - {name: a workflow, principal: {}, request: {route: hooks, delivery: {event: workflow_run, several: true, actor_id: '70'}}, expect: {outcome: deny}}
  - {name: several events, principal: {}, request: {route: hooks, delivery: {several: true, actor_id: '70'}}, expect: {outcome: deny, rule: closed}}
  - {name: a build that says nothing of forks, principal: {}, request: {route: hooks, delivery: {event: pull_request, build: true, branch: main, actor_id: '70'}}, expect: {outcome: deny, rule: fork}}
  - {name: by number, principal: {}, request: {route: hooks, delivery: {event: push, actor: x, actor_id: '7'}}, expect: {outcome: deny, rule: eve}}
  - {name: by name alone, principal: {}, request: {route: hooks, delivery: {event: push, actor: '7'}}, expect: {outcome: deny, rule: eve}}
  - {name: by another with this name, principal: {}, request: {route: hooks, delivery: {event: push, actor: '7', actor_id: '70'}}, expect: {outcome: allow}}
  - {name: by whom is not told, principal: {}, request: {route: hooks, delivery: {event: push}}, expect: {outcome: deny, rule: eve}}
",
    );
}

/// Every event that does not carry the number evaded such a deny.
#[test]
fn a_deny_of_numbers_applies_if_a_delivery_or_token_has_no_number() {
    decide_all(
        &GROUND.replace("webhooks:\n", "webhooks:\n  - {name: bb, sender: bitbucket_cloud, secrets: [{secret: {env: OTHER}}]}\n"),
        "
rules:
  - {id: all, who: {webhooks: [gh]}, do: allow}
  - {id: jobs, on: {routes: [web]}, who: {issuers: [actions]}, do: allow}
  - {id: closed, who: {repositories: ['github:1', 'bitbucket:{7-a}']}, do: deny}
  - {id: eve, on: {event: [push, member]}, who: {senders: ['github:7', 'bitbucket:{7-b}']}, do: deny}
tests:
  - {name: told, principal: {}, request: {route: hooks, delivery: {event: push, repository_id: '2', actor_id: '8'}}, expect: {outcome: allow}}
  - {name: a repository, principal: {}, request: {route: hooks, delivery: {event: push, repository_id: '1', actor_id: '8'}}, expect: {outcome: deny, rule: closed}}
  - {name: of which repository is not told, principal: {}, request: {route: hooks, delivery: {event: push, actor_id: '8'}}, expect: {outcome: deny, rule: closed}}
  - {name: by whom is not told, principal: {}, request: {route: hooks, delivery: {event: push, repository_id: '2'}}, expect: {outcome: deny, rule: eve}}
  - {name: of an event that the rule is not about, principal: {}, request: {route: hooks, delivery: {event: issues, repository_id: '2'}}, expect: {outcome: allow}}
  - {name: a job, principal: {issuer: actions, claims: {repository_id: '2'}}, request: {route: web}, expect: {outcome: allow}}
  - {name: of that repository, principal: {issuer: actions, claims: {repository_id: '1'}}, request: {route: web}, expect: {outcome: deny, rule: closed}}
  - {name: of none, principal: {issuer: actions}, request: {route: web}, expect: {outcome: deny, rule: closed}}
  - {name: of a list, principal: {issuer: actions, claims: {repository_id: ['2']}}, request: {route: web}, expect: {outcome: deny, rule: closed}}
  - {name: by a number in JSON, principal: {issuer: actions, claims: {repository_id: 2}}, request: {route: web}, expect: {outcome: allow}}
  - {name: of no whole number, principal: {issuer: actions, claims: {repository_id: 1.5}}, request: {route: web}, expect: {outcome: deny, rule: closed}}
  - {name: of one below zero, principal: {issuer: actions, claims: {repository_id: -1}}, request: {route: web}, expect: {outcome: deny, rule: closed}}
",
    );
    decide_all(
        &GROUND.replace(
            "webhooks:\n",
            "webhooks:\n  - {name: bb, sender: bitbucket_cloud, secrets: [{secret: {env: OTHER}}]}\n",
        ),
        "
rules:
  - {id: all, who: {webhooks: [gh]}, do: allow}
  - {id: people, on: {routes: [web]}, who: {issuers: [corp]}, do: allow}
  - {id: other, who: {repositories: ['bitbucket:{7-a}']}, do: deny}
  - {id: eve, who: {senders: ['bitbucket:{7-b}']}, do: deny}
  - {id: jobs, on: {routes: [web]}, who: {issuers: [actions]}, do: allow}
  - {id: mallory, on: {routes: [web]}, who: {senders: ['github:7']}, do: deny}
tests:
  - {name: a job is no delivery, principal: {issuer: actions, claims: {repository_id: '2', actor_id: '7'}}, request: {route: web}, expect: {outcome: allow, rule: jobs}}
  - {name: of another kind, principal: {}, request: {route: hooks, delivery: {event: push}}, expect: {outcome: allow}}
  - {name: of no delivery, principal: {issuer: corp}, request: {route: web}, expect: {outcome: allow}}
",
    );
}

/// As docs/webhooks.md describes it.
#[test]
fn a_push_that_deletes_is_denied_for_its_missing_commit() {
    decide_all(
        GROUND,
        "
rules:
  - {id: push, on: {event_listener: deploy, event: [push], branch: [main]}, who: {repositories: ['github:1234']}, when: has(delivery.commit), do: allow}
tests:
  - {name: a push, principal: {}, request: {route: hooks, delivery: {event: push, branch: main, commit: abc, repository_id: '1234'}}, expect: {outcome: allow}}
  - {name: a deletion, principal: {}, request: {route: hooks, delivery: {event: push, branch: main, repository_id: '1234'}}, expect: {outcome: deny}}
",
    );
}

/// Without a principal, it was always denied, whatever the rules said, and a case that expects a deny passed.
#[test]
fn a_delivery_in_a_case_without_a_principal_belongs_to_its_sender() {
    decide_all(
        &format!("{GROUND}interceptor: {{host: door.svc, kubernetes: api}}\n"),
        "
rules:
  - {id: push, on: {event_listener: deploy, event: [push]}, who: {webhooks: [gh], repositories: ['github:1234']}, do: allow}
  - {id: only-ci, on: {trigger: {names: ['prod/other']}}, do: deny}
tests:
  - {name: taken, request: {route: hooks, delivery: {event: push, repository_id: '1234'}}, expect: {outcome: allow, rule: push}}
  - {name: of another repository, request: {route: hooks, delivery: {event: push, repository_id: '1'}}, expect: {outcome: deny}}
  - {name: a Trigger, request: {route: hooks, delivery: {event: push, repository_id: '1234'}, trigger: {namespace: prod, name: build, service_account: build}}, expect: {outcome: allow, rule: push}}
  - {name: another Trigger, request: {route: hooks, delivery: {event: push, repository_id: '1234'}, trigger: {namespace: prod, name: other, service_account: build}}, expect: {outcome: deny, rule: only-ci}}
",
    );
    let root = root(GROUND, "");
    let of = |request: &str| {
        let request: raw::RequestFacts = serde_saphyr::from_str(request).unwrap();
        Scenario::new(None, &request, &root).unwrap().principal
    };
    assert_eq!(&*of("{route: hooks, delivery: {event: push}}").issuer, "webhook:gh");
    assert!(of("{route: hooks}").is_anonymous(), "nothing is delivered");
    assert!(of("{route: web}").is_anonymous());
}

/// The other name was shown nowhere, and the case was decided for the name that the delivery has.
#[test]
fn a_delivery_has_the_name_of_its_repository_and_no_other() {
    let root = root(GROUND, "");
    for (written, delivery, refused) in [
        (
            "subject: 'webhook:github:repo:7'",
            "{}",
            Some("this one is `webhook:github:hook:gh`, and not `webhook:github:repo:7`"),
        ),
        ("subject: 'webhook:github:repo:7'", "{repository_id: '7'}", None),
        (
            "subject: 'webhook:github:repo:7'",
            "{repository_id: '8'}",
            Some("this one is `webhook:github:repo:8`, and not"),
        ),
        ("username: octocat", "{repository_id: '7'}", Some("this one is `webhook:github:repo:7`, and not `octocat`")),
    ] {
        let facts: raw::PrincipalFacts =
            serde_saphyr::from_str(&format!("{{issuer: 'webhook:gh', {written}}}")).unwrap();
        let request: raw::RequestFacts =
            serde_saphyr::from_str(&format!("{{route: hooks, delivery: {delivery}}}")).unwrap();
        match (Scenario::new(Some(&facts), &request, &root), refused) {
            (Ok(_), None) => {}
            (Err(why), Some(refused)) => assert!(why.to_string().contains(refused), "{written} {delivery}: {why}"),
            (told, _) => panic!("{written} {delivery}: {told:?}"),
        }
    }
}

/// Another allow may have let the delivery in.
#[test]
fn an_allow_with_an_unsatisfied_need_names_no_trigger() {
    let ground = GROUND.replace("schemes: [webhook]", "schemes: [bearer, webhook]");
    let root = root(
        &format!("{ground}interceptor: {{host: door.svc, kubernetes: api}}\n"),
        "
rules:
  - {id: narrow, on: {routes: [hooks], trigger: {names: [test]}}, who: {issuers: [corp]}, do: allow}
  - {id: wide, on: {routes: [hooks], trigger: {names: ['*']}}, who: {issuers: [corp]}, need: {mfa: {max_age: 15m}}, do: allow}
",
    );
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: hooks}").unwrap();
    for (amr, expected) in [("pwd", vec!["test"]), ("mfa", vec!["test", "*"])] {
        let principal = format!("{{issuer: corp, kind: human, amr: [{amr}], login_age: 1m}}");
        let principal: raw::PrincipalFacts = serde_saphyr::from_str(&principal).unwrap();
        let scenario = Scenario::new(Some(&principal), &request, &root).unwrap();
        let limits = policy.trigger_limits(&scenario.principal, &scenario.request()).unwrap();
        let names: Vec<&str> = limits.allow.iter().flat_map(|allow| &allow.names).map(String::as_str).collect();
        assert_eq!(names, expected, "{amr}");
    }
}
