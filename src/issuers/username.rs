//! Templates that build Kubernetes user names from claims.
//!
//! A template must be injective: no two principals may share a name. So it has exactly one variable part: with two, as
//! in `{a}:{b}`, the pairs (`x`, `y:z`) and (`x:y`, `z`) would give the same text.

use serde_json::{Map, Value};

use super::{claim_path::ClaimPath, defaults::username_template, principal::service_account, tenants::Tenants};
use crate::{
    authn::principal::{InvalidName, check_name, check_users_name, is_own_name},
    config::raw::{self, Preset},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsernameTemplate {
    prefix: Box<str>,
    variable: Variable,
    suffix: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Variable {
    Subject,
    /// `namespace/name` of a Kubernetes service account.
    ServiceAccount,
    /// The complete user name in one of Doorward's own tokens.
    Given,
    Claim(ClaimPath),
}

/// How two templates of different issuers overlap, in order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlap {
    /// They never give the same name.
    None,
    /// A value that one issuer chooses could give a name of the other.
    Possible,
    /// The same value gives the same name.
    Same,
}

/// Why a principal gets no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUsername {
    #[error("the claim that the user name is made of is missing or not a text")]
    Missing,
    #[error("the email address is not verified (`email_verified` is not true)")]
    EmailNotVerified,
    #[error("the user name {0}")]
    Invalid(#[from] InvalidName),
}

impl UsernameTemplate {
    /// Parses a template for the issuer with the identifier `issuer`.
    pub fn parse(text: &str, issuer: &str, kubernetes: bool) -> Result<Self, String> {
        let mut fixed = [String::new(), String::new()];
        let mut variable = None;
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once('{') {
            let (name, tail) = tail.split_once('}').ok_or_else(|| format!("`{text}` has a `{{` without `}}`"))?;
            let [prefix, suffix] = &mut fixed;
            let current = if variable.is_none() { prefix } else { suffix };
            current.push_str(literal);
            let found = match name {
                "issuer" => {
                    current.push_str(issuer);
                    None
                }
                "sub" => Some(Variable::Subject),
                "service_account" if kubernetes => Some(Variable::ServiceAccount),
                _ => match name.strip_prefix("claim:") {
                    Some(path) => Some(Variable::Claim(
                        ClaimPath::parse(path).map_err(|why| format!("the claim in `{{{name}}}` {why}"))?,
                    )),
                    None => {
                        return Err(format!(
                            "`{{{name}}}` is not known; there are {{issuer}}, {{sub}} and {{claim:/path}}"
                        ));
                    }
                },
            };
            if let Some(found) = found
                && variable.replace(found).is_some()
            {
                return Err(format!(
                    "`{text}` has two variable parts, so that two principals could get the same name; use one, and \
                     {{issuer}} and fixed text around it"
                ));
            }
            rest = tail;
        }
        let [mut prefix, mut suffix] = fixed;
        if variable.is_none() { &mut prefix } else { &mut suffix }.push_str(rest);
        let Some(variable) = variable else {
            return Err(format!("`{text}` gives everybody the same name; add `{{sub}}`"));
        };
        if prefix.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("system:")) {
            return Err("user names that begin with `system:` belong to Kubernetes itself".to_owned());
        }
        if is_own_name(&prefix) {
            return Err(InvalidName::Own.to_string());
        }
        Ok(Self { prefix: prefix.into(), variable, suffix: suffix.into() })
    }

    /// The template of Doorward's own tokens, whose subject is a complete user name.
    pub fn given() -> Self {
        Self { prefix: Box::default(), variable: Variable::Given, suffix: Box::default() }
    }

    /// Whether names are built from the issuer's own key for a principal, which is never reassigned.
    pub fn is_stable(&self) -> bool {
        !matches!(self.variable, Variable::Claim(_))
    }

    /// How the names of `other`, a template of another issuer, overlap with these.
    pub fn overlap(&self, other: &Self) -> Overlap {
        if self == other {
            return Overlap::Same;
        }
        // Doorward's own tokens repeat the name of a principal of another issuer, which is intended.
        if self.variable == Variable::Given || other.variable == Variable::Given {
            return Overlap::None;
        }
        let prefixes = self.prefix.starts_with(&*other.prefix) || other.prefix.starts_with(&*self.prefix);
        let suffixes = self.suffix.ends_with(&*other.suffix) || other.suffix.ends_with(&*self.suffix);
        if prefixes && suffixes { Overlap::Possible } else { Overlap::None }
    }

    /// The raw value of the claim that names are built from; `None` if that is the subject.
    pub fn claimed<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c str> {
        match &self.variable {
            Variable::Claim(path) => path.find(claims)?.as_str(),
            Variable::Subject | Variable::ServiceAccount | Variable::Given => None,
        }
    }

    pub fn render(
        &self,
        subject: &str,
        service_account: Option<(&str, &str)>,
        claims: &Map<String, Value>,
    ) -> Result<String, NoUsername> {
        let value = match &self.variable {
            Variable::Given => {
                check_name(subject)?;
                return Ok(subject.to_owned());
            }
            Variable::Subject => subject,
            Variable::ServiceAccount => {
                let (namespace, name) = service_account.ok_or(NoUsername::Missing)?;
                &format!("{namespace}/{name}")
            }
            Variable::Claim(path) => {
                if path.claim() == "email" && claims.get("email_verified") != Some(&Value::Bool(true)) {
                    return Err(NoUsername::EmailNotVerified);
                }
                path.find(claims).and_then(Value::as_str).ok_or(NoUsername::Missing)?
            }
        };
        // Checked before the fixed text is added, which would hide that the value is blank.
        if value.trim().is_empty() {
            return Err(NoUsername::Invalid(InvalidName::Empty));
        }
        let name = [&*self.prefix, value, &*self.suffix].concat();
        check_users_name(&name)?;
        Ok(name)
    }
}

/// The user name of the principal of these claims, as in [`Mapping::principal`](super::principal::Mapping::principal),
/// from the raw configuration of the issuer alone. The error says what is missing.
pub fn username(raw: &raw::Issuer, subject: &str, claims: &Map<String, Value>) -> Result<String, String> {
    let mut claims = claims.clone();
    claims.entry("sub").or_insert_with(|| subject.into());
    let is_cluster = raw.preset == Some(Preset::Kubernetes);
    let template = match username_template(raw) {
        None => UsernameTemplate::given(),
        Some(template) => {
            let identifier = match Tenants::new(&raw.issuer, &raw.tenants) {
                None => raw.issuer.clone(),
                Some(tenants) => {
                    let tenant = claims.get("tid").and_then(Value::as_str);
                    let listed = tenant.filter(|tenant| tenants.ids().any(|id| id == *tenant));
                    tenants.issuer_of(listed.ok_or("the claim `tid` names no tenant of the issuer")?)
                }
            };
            UsernameTemplate::parse(template, &identifier, is_cluster)?
        }
    };
    let account = if is_cluster { Some(service_account(subject)) } else { None };
    if account == Some(None) {
        return Err("the subject is not a service account (`system:serviceaccount:NAMESPACE:NAME`)".to_owned());
    }
    template.render(subject, account.flatten(), &claims).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            _ => unreachable!(),
        }
    }

    #[test]
    fn names() {
        let claims = claims(json!({"email": "a@b", "email_verified": true, "upn": "", "n": 5}));
        for (template, expected) in [
            ("{issuer}#{sub}", Ok("https://a#alice")),
            ("corp:{sub}", Ok("corp:alice")),
            ("{claim:/email}", Ok("a@b")),
            ("{claim:email}", Ok("a@b")),
            ("x{claim:/upn}", Err(NoUsername::Invalid(InvalidName::Empty))),
            ("{claim:/n}", Err(NoUsername::Missing)),
            ("{claim:/none}", Err(NoUsername::Missing)),
        ] {
            let name = UsernameTemplate::parse(template, "https://a", false).unwrap().render("alice", None, &claims);
            assert_eq!(name.as_deref().map_err(|why| *why), expected, "{template}");
        }
        let email = UsernameTemplate::parse("{claim:/email}", "https://a", false).unwrap();
        for unverified in [json!({"email": "a@b"}), json!({"email": "a@b", "email_verified": "true"})] {
            let claims = self::claims(unverified);
            assert_eq!(email.render("alice", None, &claims), Err(NoUsername::EmailNotVerified));
        }
    }

    /// attacks:Z3, kubernetes:S1.
    #[test]
    fn templates_that_are_not_injective_or_reserved_are_refused() {
        for bad in [
            "{claim:/a}:{claim:/b}",
            "{sub}{sub}",
            "everybody",
            "{issuer}",
            "{name}",
            "{sub",
            "system:{sub}",
            "System:x{sub}",
        ] {
            assert!(UsernameTemplate::parse(bad, "https://a", false).is_err(), "{bad}");
        }
        let plain = UsernameTemplate::parse("{sub}", "https://a", false).unwrap();
        let none = Map::new();
        assert_eq!(plain.render("system:masters", None, &none), Err(NoUsername::Invalid(InvalidName::Reserved)));
        assert_eq!(plain.render("systemx:y", None, &none).as_deref(), Ok("systemx:y"));
        let split = UsernameTemplate::parse("sys{sub}", "https://a", false).unwrap();
        assert_eq!(split.render("tem:masters", None, &none), Err(NoUsername::Invalid(InvalidName::Reserved)));
    }

    #[test]
    fn templates_of_two_issuers_overlap_or_not() {
        let template = |text, issuer| UsernameTemplate::parse(text, issuer, false).unwrap();
        let standard = |issuer| template("{issuer}#{sub}", issuer);
        assert_eq!(standard("https://a").overlap(&standard("https://b")), Overlap::None);
        assert_eq!(template("{sub}", "https://a").overlap(&template("{sub}", "https://b")), Overlap::Same);
        assert_eq!(template("{sub}", "https://a").overlap(&standard("https://b")), Overlap::Possible);
        assert_eq!(template("a:{sub}", "x").overlap(&template("b:{sub}", "x")), Overlap::None);
    }
}
