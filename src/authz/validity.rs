//! How long rules would keep giving a token: no token must outlast the rules that gave it.

use std::time::Duration;

use super::{Policy, TOKEN_ENDPOINT, rule::Rule};
use crate::{authn::LoginFacts, clock::Timestamp};

/// The interval at which an expression is evaluated for times to come.
const STEP: Duration = Duration::from_secs(60);
/// At most this many evaluations: one for each minute of the twelve hours that a token of another provider may last.
const MAX_STEPS: u32 = 720;

impl Policy {
    /// Returns how long rules keep giving a token that they give at `from`, up to `until`. `gives` decides for a point
    /// in time.
    ///
    /// Windows and ages of logins have known times of change. An expression that reads the time can only be sampled:
    /// every minute, or less often if that would be too many samples, and then to the second between two samples that
    /// differ.
    pub fn token_given_until(
        &self,
        login: &LoginFacts,
        from: Timestamp,
        until: Timestamp,
        gives: impl Fn(Timestamp) -> bool,
    ) -> Timestamp {
        let next_change = |after| {
            let changes = |rule: &Rule| rule.next_change(after).into_iter().chain(rule.too_old(login, after));
            self.enforced(TOKEN_ENDPOINT).flat_map(changes).min()
        };
        let mut change = next_change(from).filter(|at| *at < until);
        while let Some(at) = change {
            if !gives(at) {
                return self.read_until(from, at, gives);
            }
            change = next_change(at).filter(|at| *at < until);
        }
        self.read_until(from, until, gives)
    }

    /// Returns how long rules give it according to expressions that read the time.
    fn read_until(&self, from: Timestamp, until: Timestamp, gives: impl Fn(Timestamp) -> bool) -> Timestamp {
        if !self.enforced(TOKEN_ENDPOINT).any(Rule::reads_time) {
            return until;
        }
        // Expressions see whole seconds.
        let gives = |second| gives(Timestamp::from_secs(second));
        let last = Timestamp::from_millis(until.as_millis().saturating_sub(1)).as_secs();
        let steps = STEP.max(until.since(from) / MAX_STEPS).as_secs();
        let step = i64::try_from(steps).unwrap_or(i64::MAX);
        let mut given = from.as_secs();
        while given < last {
            let mut refused = given.saturating_add(step).min(last);
            if gives(refused) {
                given = refused;
                continue;
            }
            while given + 1 < refused {
                let middle = given + (refused - given) / 2;
                if gives(middle) { given = middle } else { refused = middle }
            }
            return Timestamp::from_secs(refused);
        }
        until
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::Method;

    use super::*;
    use crate::{
        authn::{Principal, Scheme},
        authz::{RequestView, TokenView},
        config::{
            raw::{self, RouteKind},
            resolver::Resolver,
        },
    };

    const NOW: i64 = 1_700_000_000;

    fn policy(rules: &str) -> Policy {
        let head = "
external_host: door.test
issuers: [{name: corp, issuer: 'https://corp.test'}]
tokens: {exchange: [{issuer: corp}]}
rules:
";
        let root: raw::Root = serde_saphyr::from_str(&format!("{head}{rules}")).unwrap();
        Policy::compile(&root, &mut Resolver::default()).unwrap()
    }

    /// Returns how many seconds a token lasts that may last `most`, and how often rules were evaluated for that.
    fn lasts(rules: &str, most: u64) -> (u64, usize) {
        let policy = policy(rules);
        let login = LoginFacts { auth_time: Some(Timestamp::from_secs(NOW - 890)), acr: None, amr: vec!["mfa".into()] };
        let alice = Principal { login, ..Principal::new(Scheme::Bearer, "corp", "1", "alice") };
        let asked = std::cell::Cell::new(0);
        let gives = |now| {
            asked.set(asked.get() + 1);
            let view = RequestView {
                route: TOKEN_ENDPOINT,
                kind: RouteKind::Http,
                host: "door.test",
                path: "/oauth2/token",
                method: &Method::POST,
                upgrade: false,
                address: IpAddr::from([192, 0, 2, 1]),
                event_listener: None,
                kubernetes: None,
                run: None,
                delivery: None,
                trigger: None,
                token: Some(TokenView { audience: "x", scope: None, task: None }),
                now,
            };
            policy.decide(&alice, &view).is_allow()
        };
        let from = Timestamp::from_millis(NOW * 1000 + 250);
        assert!(gives(from), "{rules}");
        let until = policy.token_given_until(&alice.login, from, from + Duration::from_secs(most), gives);
        // As `exp` of a token is rounded.
        (u64::try_from(until.as_secs() - NOW).unwrap(), asked.get())
    }

    fn rule(id: &str, more: &str, action: &str) -> String {
        format!("  - {{id: {id}, on: {{token: {{audiences: [x]}}}}, who: {{issuers: [corp]}}, {more}do: {action}}}\n")
    }

    #[test]
    fn no_token_outlasts_the_login_that_its_rule_needs() {
        let plain = rule("plain", "", "allow");
        for (need, most, expected) in [
            ("mfa: {max_age: 15m}", 600, 10),
            ("fresh_login: {max_age: 15m}", 600, 10),
            ("mfa: {max_age: 20m}, fresh_login: {max_age: 16m}", 600, 70),
            ("fresh_login: {max_age: 16m}, mfa: {max_age: 1h}", 43200, 70),
            ("mfa: {max_age: 1h}", 600, 600),
        ] {
            let needs = rule("needs", &format!("need: {{{need}}}, "), "allow");
            assert_eq!(lasts(&needs, most).0, expected, "{need}");
            assert_eq!(lasts(&(needs + &plain), most).0, most, "{need}, while another rule goes on");
        }
    }

    #[test]
    fn no_token_outlasts_what_an_expression_makes_of_the_time() {
        let when = |id: &str, when: &str, action: &str| rule(id, &format!("when: \"{when}\", "), action);
        let plain = rule("plain", "", "allow");
        let before = |seconds: i64| format!("request.time < {}", NOW + seconds);
        for (what, rules, most, expected) in [
            ("an end", when("a", &before(77), "allow"), 600, 77),
            ("an end in the last moment", when("a", &before(600), "allow"), 600, 600),
            ("an end after that", when("a", &before(601), "allow"), 600, 600),
            ("a deny that begins", plain.clone() + &when("b", &format!("!({})", before(1)), "deny"), 600, 1),
            (
                "an error that begins",
                plain.clone() + &when("b", &format!("!({} || request.time / 0 > 0)", before(9)), "deny"),
                600,
                9,
            ),
            ("a long one", when("a", &before(43_000), "allow"), 43_200, 43_000),
            (
                "ten minutes in the midst of a long one",
                when("a", &format!("{} || !({})", before(7_000), before(7_600)), "allow"),
                43_200,
                7_000,
            ),
            ("another rule that goes on", plain.clone() + &when("a", &before(77), "allow"), 600, 600),
            (
                "a login before that",
                when("a", &before(77), "allow").replace("do:", "need: {mfa: {max_age: 15m}}, do:"),
                600,
                10,
            ),
            (
                "a login after that",
                when("a", &before(7), "allow").replace("do:", "need: {mfa: {max_age: 15m}}, do:"),
                600,
                7,
            ),
        ] {
            let (lasted, asked) = lasts(&rules, most);
            assert_eq!(lasted, expected, "{what}");
            assert!(u64::try_from(asked).unwrap() < most / 60 + 20, "{what}: rules were asked {asked} times");
        }
        assert_eq!(lasts(&plain, 600), (600, 1), "rules that say nothing of time are not asked again");
    }
}
