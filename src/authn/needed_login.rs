//! What an `allow` needs of a login: a second factor, a class of login, a fresh login. A caller whose login lacks it is
//! asked for it: a browser is sent to its provider with these requirements, a program is told by the challenge of RFC
//! 9470.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::LoginFacts;
use crate::{
    clock::Timestamp,
    config::{raw, values::Span},
};

/// How far ahead of ours the clock that `auth_time` comes from may be.
const TOLERANCE: Duration = Duration::from_secs(60);

/// How many authentication context classes are read from a URL, and how many bytes of each. The rest is ignored.
const MAX_CLASSES: usize = 16;
const MAX_CLASS: usize = 256;

/// The requirements for a login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeededLogin {
    /// More than one factor, at a login that is no older than this.
    pub mfa: Option<Duration>,
    /// One of these authentication context classes (`acr_values` of an authorization request); empty: any.
    pub acr: Vec<Arc<str>>,
    /// A login that is no older than this.
    pub fresh: Option<Duration>,
}

impl NeededLogin {
    pub fn of(raw: &raw::Need) -> Self {
        Self {
            mfa: raw.mfa.map(|mfa| mfa.max_age.get()),
            acr: raw.acr.iter().map(|acr| acr.as_str().into()).collect(),
            fresh: raw.fresh_login.map(|login| login.max_age.get()),
        }
    }

    fn is_empty(&self) -> bool {
        self.mfa.is_none() && self.acr.is_empty() && self.fresh.is_none()
    }

    /// Returns what `login` lacks, or `None` if it meets all requirements.
    pub fn missing(&self, login: &LoginFacts, now: Timestamp) -> Option<Self> {
        // A login in the future proves nothing about its age.
        let fresh =
            |max_age: Duration| login.auth_time.is_some_and(|at| at <= now + TOLERANCE && now.since(at) <= max_age);
        let has_class = self.acr.is_empty() || login.acr.as_ref().is_some_and(|acr| self.acr.contains(acr));
        let missing = Self {
            mfa: self.mfa.filter(|max_age| !(fresh(*max_age) && several_factors(&login.amr))),
            acr: if has_class { Vec::new() } else { self.acr.clone() },
            fresh: self.fresh.filter(|max_age| !fresh(*max_age)),
        };
        (!missing.is_empty()).then_some(missing)
    }

    /// The claims that these requirements need and that `login` lacks.
    pub fn unsaid(&self, login: &LoginFacts) -> Vec<&'static str> {
        let needs_time = self.mfa.is_some() || self.fresh.is_some();
        let claims = [
            ("auth_time", needs_time && login.auth_time.is_none()),
            ("amr", self.mfa.is_some() && login.amr.is_empty()),
            ("acr", !self.acr.is_empty() && login.acr.is_none()),
        ];
        claims.into_iter().filter(|(_, is_unsaid)| *is_unsaid).map(|(claim, _)| claim).collect()
    }

    /// The moments from which a login is too old for each requirement on its age.
    pub fn too_old(&self, login: &LoginFacts) -> impl Iterator<Item = Timestamp> {
        let ages = self.mfa.into_iter().chain(self.fresh);
        let at = login.auth_time;
        // At exactly that age it still meets the requirement.
        ages.filter_map(move |age| Some(at? + age + Duration::from_millis(1)))
    }

    /// The greatest age that the login may have (`max_age` of an authorization request).
    pub fn max_age(&self) -> Option<Duration> {
        self.mfa.into_iter().chain(self.fresh).min()
    }

    /// As parameters of a URL or form of the login, which [`from_query`](Self::from_query) reads.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let seconds = |age: Duration| age.as_secs().to_string();
        let ages = [("mfa", self.mfa.map(seconds)), ("max_age", self.fresh.map(seconds))];
        let acr = (!self.acr.is_empty()).then(|| self.acr.join(" "));
        let all = ages.into_iter().chain([("acr_values", acr)]);
        all.filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// As options of `doorward login`.
    pub fn options(&self) -> String {
        let mut options = String::new();
        for (name, age) in [("mfa", self.mfa), ("max-age", self.fresh)] {
            options.extend(age.map(|age| format!(" --{name} {}", Span(age))));
        }
        options.extend(self.acr.iter().map(|acr| format!(" --acr {acr}")));
        options
    }

    /// Reads the parameters of a URL, which anybody may have written: they can only add requirements. `None` if they
    /// require nothing or are invalid.
    pub fn from_query<'q>(parameter: impl Fn(&str) -> Option<&'q str>) -> Option<Self> {
        let age =
            |name| parameter(name).and_then(|text| text.parse::<u32>().ok()).map(|age| Duration::from_secs(age.into()));
        let classes = parameter("acr_values").unwrap_or_default().split(' ');
        let is_class = |class: &&str| {
            !class.is_empty() && class.len() <= MAX_CLASS && class.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let acr = classes.filter(is_class).take(MAX_CLASSES).map(Into::into).collect();
        let needed = Self { mfa: age("mfa"), acr, fresh: age("max_age") };
        (!needed.is_empty()).then_some(needed)
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

/// Completes "the person needs ...".
impl fmt::Display for NeededLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(age) = self.mfa {
            parts.push(format!("a login with more than one factor in the last {}", Span(age)));
        }
        if !self.acr.is_empty() {
            parts.push(format!("a login of class {}", self.acr.join(" or ")));
        }
        if let Some(age) = self.fresh {
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
        let mfa = NeededLogin { mfa: quarter, ..NeededLogin::default() };
        let acr = NeededLogin { acr: vec!["gold".into()], ..NeededLogin::default() };
        let fresh = NeededLogin { fresh: quarter, ..NeededLogin::default() };
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
            (&NeededLogin::default(), LoginFacts::default(), true),
        ] {
            assert_eq!(need.missing(&login, now).is_none(), met, "{need:?} {login:?}");
        }
    }

    #[test]
    fn a_needed_login_survives_a_url_and_invalid_parameters_are_ignored() {
        let needed = NeededLogin {
            mfa: Some(Duration::from_secs(900)),
            acr: ["gold", "urn:okta:loa:2fa:any"].map(Arc::from).to_vec(),
            fresh: Some(Duration::from_secs(60)),
        };
        assert_eq!(needed.options(), " --mfa 15m --max-age 1m --acr gold --acr urn:okta:loa:2fa:any");
        let pairs: std::collections::HashMap<&str, String> = needed.parameters().into_iter().collect();
        assert_eq!(NeededLogin::from_query(|name| pairs.get(name).map(String::as_str)), Some(needed));
        let long = "x".repeat(300);
        for (mfa, acr) in [("", ""), ("-1", "  "), ("1e3", "\u{7f}"), ("99999999999", "ä"), ("x", &*long)] {
            let parameter = |name: &str| match name {
                "mfa" | "max_age" => Some(mfa),
                _ => Some(acr),
            };
            assert_eq!(NeededLogin::from_query(parameter), None, "{mfa} {acr}");
        }
    }
}
