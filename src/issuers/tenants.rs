//! Several tenants of Entra ID behind one address. The `issuer` of their discovery document is a template, and each
//! tenant's tokens have the tenant's own issuer. Without a check of the tenant, all organisations in the world would be
//! accepted.

use uuid::Uuid;

/// Entra ID's placeholder for the id of a tenant.
const PLACE: &str = "{tenantid}";

/// The tenants of one entry, by directory id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenants {
    before: Box<str>,
    after: Box<str>,
    ids: Box<[Box<str>]>,
}

impl Tenants {
    /// `issuer` is the address of all tenants. `None` for any other address.
    pub fn new(issuer: &str, ids: &[String]) -> Option<Self> {
        let (before, after) = ["/organizations/", "/common/"].iter().find_map(|all| issuer.split_once(all))?;
        Some(Self {
            before: format!("{before}/").into(),
            after: format!("/{after}").into(),
            ids: ids.iter().map(|id| id.as_str().into()).collect(),
        })
    }

    /// Whether a text is a directory id in the form that tokens use.
    pub fn is_id(text: &str) -> bool {
        Uuid::try_parse(text).is_ok_and(|id| id.hyphenated().to_string() == text)
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().map(|id| &**id)
    }

    /// The `issuer` of the discovery document.
    pub fn template(&self) -> String {
        self.issuer_of(PLACE)
    }

    /// The `iss` of tokens of the tenant `id`.
    pub fn issuer_of(&self, id: &str) -> String {
        [&*self.before, id, &*self.after].concat()
    }

    /// The listed tenant whose tokens have this `iss`.
    pub fn named(&self, issuer: &str) -> Option<&str> {
        let id = issuer.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        self.ids().find(|known| *known == id)
    }

    /// Whether a key with the issuer `key` may sign tokens with the issuer `token`: the shared set also has keys of
    /// single tenants.
    pub fn may_sign(&self, key: Option<&str>, token: Option<&str>) -> bool {
        key.is_none_or(|key| key == self.template() || Some(key) == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "8f1c0a52-5d0e-4c0b-9d4e-0f5a3c1b2d77";
    const B: &str = "0b9d4e0f-5a3c-4b2d-977f-1c0a525d0e4c";

    #[test]
    fn only_the_issuers_of_listed_tenants_are_known() {
        let all = "https://login.microsoftonline.com/organizations/v2.0";
        let tenants = Tenants::new(all, &[A.to_owned()]).unwrap();
        let issuer = |id: &str| format!("https://login.microsoftonline.com/{id}/v2.0");
        assert_eq!(tenants.template(), issuer("{tenantid}"));
        assert_eq!(tenants.named(&issuer(A)), Some(A));
        for other in [issuer(B), issuer("organizations"), issuer("{tenantid}"), issuer(&A.to_uppercase()), issuer("")] {
            assert_eq!(tenants.named(&other), None, "{other}");
        }
        for other in [format!("{}/", issuer(A)), issuer(A).replace("login", "evil"), issuer(&format!("{A}/x"))] {
            assert_eq!(tenants.named(&other), None, "{other}");
        }
        assert!(tenants.may_sign(None, Some(&issuer(A))) && tenants.may_sign(Some(&issuer(A)), Some(&issuer(A))));
        assert!(tenants.may_sign(Some(&tenants.template()), Some(&issuer(A))));
        assert!(!tenants.may_sign(Some(&issuer(B)), Some(&issuer(A))));
        assert!(Tenants::new(&issuer(A), &[]).is_none());
    }

    #[test]
    fn ids_are_written_as_tokens_write_them() {
        assert!(Tenants::is_id(A));
        for bad in ["acme.onmicrosoft.com", "", &A.to_uppercase(), &A.replace('-', ""), "{tenantid}"] {
            assert!(!Tenants::is_id(bad), "{bad}");
        }
    }
}
