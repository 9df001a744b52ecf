//! What an allow needs besides: a second factor, a kind of login, a login that is fresh.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    authn::LoginFacts,
    clock::Timestamp,
    config::{raw, values::Span},
};

use super::{names::Names, time_window::TOLERANCE};

/// What an allow needs besides.
#[derive(Clone, Debug, Default)]
pub(super) struct Need {
    mfa: Option<Duration>,
    acr: Names,
    fresh_login: Option<Duration>,
}

/// What is missing of a [`Need`]: what a login must bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmet {
    /// More than one factor, with a login not longer ago than this.
    pub mfa: Option<Duration>,
    /// One of these authentication context classes (`acr_values` of an authorization request).
    pub acr: Vec<Arc<str>>,
    /// A login not longer ago than this (`max_age` of an authorization request).
    pub fresh_login: Option<Duration>,
}

impl Unmet {
    fn is_empty(&self) -> bool {
        self.mfa.is_none() && self.acr.is_empty() && self.fresh_login.is_none()
    }
}

impl Need {
    pub(super) fn new(raw: &raw::Need) -> Self {
        Self {
            mfa: raw.mfa.map(|mfa| mfa.max_age.get()),
            acr: Names::new(&raw.acr),
            fresh_login: raw.fresh_login.map(|login| login.max_age.get()),
        }
    }

    /// What is missing; `None` if nothing is.
    pub(super) fn unmet(&self, login: &LoginFacts, now: Timestamp) -> Option<Unmet> {
        // A login in the future proves nothing about its age.
        let fresh =
            |max_age: Duration| login.auth_time.is_some_and(|at| at <= now + TOLERANCE && now.since(at) <= max_age);
        let mut unmet = Unmet {
            mfa: self.mfa.filter(|max_age| !(fresh(*max_age) && several_factors(&login.amr))),
            acr: Vec::new(),
            fresh_login: self.fresh_login.filter(|max_age| !fresh(*max_age)),
        };
        if !self.acr.is_empty() && !login.acr.as_deref().is_some_and(|acr| self.acr.contains(acr)) {
            unmet.acr = self.acr.iter().cloned().collect();
        }
        (!unmet.is_empty()).then_some(unmet)
    }
}

/// Whether a login used more than one factor: it says so (`mfa`), or names methods of two kinds (RFC 8176 section 2).
fn several_factors(amr: &[Arc<str>]) -> bool {
    let any = |methods: &[&str]| amr.iter().any(|method| methods.contains(&&**method));
    let knows = any(&["pwd", "pin", "kba"]);
    let has = any(&["otp", "hwk", "swk", "sc", "sms", "tel"]);
    let is = any(&["face", "fpt", "iris", "retina", "vbm"]);
    any(&["mfa"]) || u8::from(knows) + u8::from(has) + u8::from(is) >= 2
}

/// As the end of "the person needs".
impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(age) = self.mfa {
            parts.push(format!("a login with more than one factor in the last {}", Span(age)));
        }
        if !self.acr.is_empty() {
            parts.push(format!("a login of class {}", self.acr.join(" or ")));
        }
        if let Some(age) = self.fresh_login {
            parts.push(format!("a login in the last {}", Span(age)));
        }
        f.write_str(&parts.join(", and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_is_met_by_facts_of_the_login_only() {
        let now = Timestamp::from_secs(10_000);
        let quarter = Some(Duration::from_secs(900));
        let mfa = Need { mfa: quarter, ..Need::default() };
        let acr = Need { acr: Names::new(&["gold".to_owned()]), ..Need::default() };
        let fresh = Need { fresh_login: quarter, ..Need::default() };
        let login = |age: Option<i64>, acr: Option<&str>, amr: &[&str]| LoginFacts {
            auth_time: age.map(|age| Timestamp::from_secs(10_000 - age)),
            acr: acr.map(Arc::from),
            amr: amr.iter().map(|method| Arc::from(*method)).collect(),
        };
        for (need, login, met) in [
            (&mfa, login(Some(900), None, &["mfa"]), true),
            (&mfa, login(Some(901), None, &["mfa"]), false),
            (&mfa, login(None, None, &["mfa"]), false),
            (&mfa, login(Some(-61), None, &["mfa"]), false),
            (&mfa, login(Some(1), None, &["pwd"]), false),
            (&mfa, login(Some(1), None, &["pwd", "pin"]), false),
            (&mfa, login(Some(1), None, &["pwd", "otp"]), true),
            (&acr, login(None, Some("gold"), &[]), true),
            (&acr, login(None, Some("Gold"), &[]), false),
            (&acr, login(None, None, &[]), false),
            (&fresh, login(Some(900), None, &[]), true),
            (&fresh, login(Some(901), None, &[]), false),
            (&Need::default(), LoginFacts::default(), true),
        ] {
            assert_eq!(need.unmet(&login, now).is_none(), met, "{need:?} {login:?}");
        }
    }
}
