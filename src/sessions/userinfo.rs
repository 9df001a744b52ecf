//! Claims from a provider's userinfo endpoint (OpenID Connect Core 1.0 section 5.3), among those of a session.
//!
//! A session remembers the names of these claims, so that those that are no longer returned are removed.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Claims about a token or the login, not about the person.
const PROTOCOL: [&str; 20] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "iat",
    "nbf",
    "jti",
    "sid",
    "auth_time",
    "nonce",
    "acr",
    "amr",
    "azp",
    "at_hash",
    "c_hash",
    "s_hash",
    "client_id",
    "act",
    "may_act",
    "cnf",
];

/// Adds the claims of the userinfo endpoint that the ID token lacks, replacing those that it returned before.
pub fn complete(claims: &mut Map<String, Value>, names: &mut BTreeSet<String>, userinfo: &Map<String, Value>) {
    for name in std::mem::take(names) {
        claims.remove(&name);
    }
    if userinfo.contains_key("email") && !claims.contains_key("email") {
        // `email_verified` belongs to the address from the same source.
        claims.remove("email_verified");
    }
    let is_another_address = claims.get("email").is_some_and(|ours| Some(ours) != userinfo.get("email"));
    for (name, value) in userinfo {
        let is_about_the_token = PROTOCOL.contains(&name.as_str());
        if is_about_the_token || claims.contains_key(name) || (name == "email_verified" && is_another_address) {
            continue;
        }
        claims.insert(name.clone(), value.clone());
        names.insert(name.clone());
    }
}

/// The names of claims that both the userinfo endpoint and the ID token have.
pub fn known<'a>(claims: &Map<String, Value>, userinfo: &'a Map<String, Value>) -> impl Iterator<Item = &'a String> {
    userinfo.keys().filter(move |name| !PROTOCOL.contains(&name.as_str()) && claims.contains_key(*name))
}

/// Updates from the userinfo endpoint only claims that the login had as well: a claim from another source never
/// replaces one that the policy was written for. Claims that it returned before, according to `names` or, for other
/// people, `in_both`, are removed if it no longer returns them. Many providers have groups in the ID token only.
pub(super) fn follow(
    claims: &mut Map<String, Value>,
    names: &mut BTreeSet<String>,
    in_both: &BTreeSet<String>,
    userinfo: &Map<String, Value>,
) {
    names.extend(known(claims, userinfo).cloned());
    names.extend(in_both.iter().filter(|name| claims.contains_key(*name)).cloned());
    let email = claims.get("email").cloned();
    for name in names.iter() {
        match userinfo.get(name) {
            Some(value) => drop(claims.insert(name.clone(), value.clone())),
            None => drop(claims.remove(name)),
        }
    }
    // The login had this for another address.
    if claims.get("email") != email.as_ref() && !userinfo.contains_key("email_verified") {
        claims.remove("email_verified");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_verified_only_by_the_source_that_gives_it() {
        for (row, ours, userinfo, verified) in [
            ("userinfo alone", json!({}), json!({"email": "a@b.c", "email_verified": true}), true),
            ("the same", json!({"email": "a@b.c"}), json!({"email": "a@b.c", "email_verified": true}), true),
            ("another", json!({"email": "a@b.c"}), json!({"email": "boss@b.c", "email_verified": true}), false),
            ("of no address", json!({"email": "a@b.c"}), json!({"email_verified": true}), false),
            ("before it is told", json!({"email_verified": true}), json!({"email": "a@b.c"}), false),
        ] {
            let mut claims = ours.as_object().unwrap().clone();
            complete(&mut claims, &mut BTreeSet::new(), userinfo.as_object().unwrap());
            assert_eq!(claims["email"], "a@b.c", "{row}");
            assert_eq!(claims.contains_key("email_verified"), verified, "{row}");
        }
    }

    /// `groups` were returned both for the login and for others; the session was not rechecked in between.
    #[test]
    fn a_claim_that_userinfo_omits_is_removed_and_returns_when_it_is_named_again() {
        let userinfo = |userinfo: Value| userinfo.as_object().unwrap().clone();
        let mut claims = userinfo(json!({"groups": ["dev"], "team": "a"}));
        let mut names = BTreeSet::new();
        let in_both = BTreeSet::from(["groups".to_owned(), "nickname".to_owned()]);
        for (row, tells, groups) in [
            ("not any more", json!({}), None),
            ("again", json!({"groups": ["release"], "nickname": "al"}), Some(json!(["release"]))),
            ("nor later", json!({}), None),
        ] {
            follow(&mut claims, &mut names, &in_both, &userinfo(tells));
            assert_eq!(claims.get("groups"), groups.as_ref(), "{row}");
            assert_eq!(
                (&claims["team"], claims.get("nickname")),
                (&json!("a"), None),
                "{row}: of these it said nothing"
            );
        }
    }

    #[test]
    fn userinfo_does_not_replace_claims_about_the_token_and_the_login() {
        let mut claims = Map::new();
        let mut names = BTreeSet::new();
        let userinfo =
            PROTOCOL.iter().map(|name| ((*name).to_owned(), json!("x"))).chain([("nickname".to_owned(), json!("x"))]);
        complete(&mut claims, &mut names, &userinfo.collect());
        assert_eq!(claims.keys().collect::<Vec<_>>(), ["nickname"]);
        assert_eq!(names.iter().collect::<Vec<_>>(), ["nickname"]);
    }
}
