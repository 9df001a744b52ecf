use std::sync::Arc;

use crate::{
    config::{raw, report::At, resolver::Resolver},
    issuers::ClientAuth,
};

/// Who we are at a provider.
#[derive(Clone, Debug)]
pub struct Client {
    pub authentication: ClientAuth,
    /// What a login requests, `openid` first.
    pub scopes: Vec<Arc<str>>,
}

impl Client {
    /// The client id.
    pub fn id(&self) -> &Arc<str> {
        self.authentication.client_id()
    }

    /// Who we are for a login at the issuer with the identifier `issuer`. Reports every problem at its place; `None` if
    /// there is one.
    pub fn resolve(raw: &raw::Login, issuer: &str, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let mut scopes: Vec<Arc<str>> = vec!["openid".into()];
        let mut good = true;
        for (index, scope) in raw.scopes.iter().enumerate() {
            // RFC 6749 section 3.3, scope-token.
            let token = |byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if scope.is_empty() || !scope.bytes().all(token) {
                resolver
                    .report
                    .error(&at.key("scopes").index(index), format!("`{scope}` is not a scope"))
                    .help("one scope an entry, without blanks");
                good = false;
            } else if !scopes.iter().any(|known| **known == **scope) {
                scopes.push(scope.as_str().into());
            }
        }
        let authentication = ClientAuth::resolve(&raw.client, issuer, &at.key("client"), resolver)?;
        good.then_some(Self { authentication, scopes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(scopes: &[&str]) -> Result<Vec<String>, String> {
        let client = raw::ClientCredentials {
            id: "doorward".to_owned(),
            method: Some(raw::ClientAuthMethod::None),
            secret: None,
            key: None,
            key_id: None,
        };
        let login = raw::Login { client, scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect() };
        let mut resolver = Resolver::default();
        match Client::resolve(&login, "https://idp.example", &mut resolver, &At::root()) {
            Some(client) => Ok(client.scopes.iter().map(ToString::to_string).collect()),
            None => Err(resolver.report.problems()[0].at.as_str().to_owned()),
        }
    }

    #[test]
    fn openid_is_always_requested_and_each_scope_once() {
        assert_eq!(resolve(&[]).unwrap(), ["openid"]);
        assert_eq!(resolve(&["groups", "openid", "groups"]).unwrap(), ["openid", "groups"]);
    }

    #[test]
    fn scopes_with_blanks_are_reported() {
        assert_eq!(resolve(&["openid groups"]).unwrap_err(), "/scopes/0");
        assert_eq!(resolve(&["email", ""]).unwrap_err(), "/scopes/1");
    }
}
