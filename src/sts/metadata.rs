//! What Doorward tells of itself as an authorization server (RFC 8414, OpenID Connect Discovery 1.0). It logs nobody in, so
//! there is no authorization endpoint.

use serde_json::{Value, json};

use super::{form::GRANT, keys::SigningKeys};

/// The paths of the endpoints, on the external host.
pub const TOKEN: &str = "/oauth2/token";
pub const REVOKE: &str = "/oauth2/revoke";
pub const INTROSPECT: &str = "/oauth2/introspect";
/// Where clients of registries ask, in the words of the registries' own protocol.
pub const REGISTRY: &str = "/oauth2/registry";
pub const KEYS: &str = "/oauth2/jwks";
pub const OPENID: &str = "/.well-known/openid-configuration";
pub const OAUTH: &str = "/.well-known/oauth-authorization-server";

/// Whether a path of the external host is one of ours.
pub fn is_path(path: &str) -> bool {
    [TOKEN, REVOKE, INTROSPECT, REGISTRY, KEYS, OPENID, OAUTH].contains(&path)
}

/// Both documents: the one has members that the other does not know, and ignores.
pub fn document(issuer: &str, keys: &SigningKeys) -> Value {
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}{TOKEN}"),
        "revocation_endpoint": format!("{issuer}{REVOKE}"),
        "introspection_endpoint": format!("{issuer}{INTROSPECT}"),
        "jwks_uri": format!("{issuer}{KEYS}"),
        "grant_types_supported": [GRANT],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": keys.algorithms(),
        // Whoever has the token that is exchanged needs nothing else.
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
    })
}
