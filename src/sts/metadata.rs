//! Doorward's metadata as an authorization server (RFC 8414, OpenID Connect Discovery 1.0). It logs nobody in, so there
//! is no authorization endpoint.

use http::Method;
use serde_json::{Value, json};

use super::{form::GRANT, keys::SigningKeys};

/// The paths of the endpoints, on the external host.
pub const TOKEN: &str = "/oauth2/token";
pub const REVOKE: &str = "/oauth2/revoke";
pub const INTROSPECT: &str = "/oauth2/introspect";
/// Where registry clients ask, in the registries' own protocol.
pub const REGISTRY: &str = "/oauth2/registry";
pub const KEYS: &str = "/oauth2/jwks";
pub const OPENID: &str = "/.well-known/openid-configuration";
pub const OAUTH: &str = "/.well-known/oauth-authorization-server";

/// An endpoint of the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Form(FormEndpoint),
    Registry,
    Keys,
    Metadata,
}

/// An endpoint that receives a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormEndpoint {
    Token,
    Revoke,
    Introspect,
}

impl Endpoint {
    /// The endpoint at a path of the external host.
    pub fn at(path: &str) -> Option<Self> {
        Some(match path {
            TOKEN => Self::Form(FormEndpoint::Token),
            REVOKE => Self::Form(FormEndpoint::Revoke),
            INTROSPECT => Self::Form(FormEndpoint::Introspect),
            REGISTRY => Self::Registry,
            KEYS => Self::Keys,
            OPENID | OAUTH => Self::Metadata,
            _ => return None,
        })
    }

    /// The name in the audit trail.
    pub fn name(self) -> &'static str {
        match self {
            Self::Form(FormEndpoint::Token) => "token",
            Self::Form(FormEndpoint::Revoke) => "revoke",
            Self::Form(FormEndpoint::Introspect) => "introspect",
            Self::Registry => "registry",
            Self::Keys | Self::Metadata => "metadata",
        }
    }

    /// The methods that it accepts.
    pub fn methods(self) -> &'static [Method] {
        match self {
            Self::Form(_) => &[Method::POST],
            Self::Registry => &[Method::GET, Method::HEAD],
            // Pages of other origins read these, and may send a header of their own.
            Self::Keys | Self::Metadata => &[Method::GET, Method::HEAD, Method::OPTIONS],
        }
    }
}

/// Serves as both documents: each has members that the other does not define, and readers ignore.
pub fn document(issuer: &str, keys: &SigningKeys) -> Value {
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}{TOKEN}"),
        "revocation_endpoint": format!("{issuer}{REVOKE}"),
        "introspection_endpoint": format!("{issuer}{INTROSPECT}"),
        "jwks_uri": format!("{issuer}{KEYS}"),
        "grant_types_supported": [GRANT],
        // Required and must not be empty; others who only sign tokens have the same.
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": keys.algorithms(),
        // The exchanged token is the only credential.
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_that_of_an_endpoint_with_its_methods_and_its_name_in_the_trail() {
        let (read, sent): (&[Method], &[Method]) = (&[Method::GET, Method::HEAD], &[Method::POST]);
        let public: &[Method] = &[Method::GET, Method::HEAD, Method::OPTIONS];
        for (path, name, methods) in [
            ("/oauth2/token", "token", sent),
            ("/oauth2/revoke", "revoke", sent),
            ("/oauth2/introspect", "introspect", sent),
            ("/oauth2/registry", "registry", read),
            ("/oauth2/jwks", "metadata", public),
            ("/.well-known/openid-configuration", "metadata", public),
            ("/.well-known/oauth-authorization-server", "metadata", public),
        ] {
            let endpoint = Endpoint::at(path).unwrap();
            assert_eq!((endpoint.name(), endpoint.methods()), (name, methods), "{path}");
        }
        for other in ["", "/oauth2/token/", "/oauth2/Token", "/oauth2/login", "/.well-known/jwks.json"] {
            assert_eq!(Endpoint::at(other), None, "{other}");
        }
    }
}
