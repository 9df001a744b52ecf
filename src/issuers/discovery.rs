//! The discovery document of an issuer (OpenID Connect Discovery 1.0 section 4).

use std::net::IpAddr;

use serde::Deserialize;
use url::{Host, Url};

/// The maximum bytes of a document.
pub const MAX_METADATA: usize = 256 << 10;

/// The metadata of an issuer. Its lists of algorithms are not used, as they could only widen ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub jwks_uri: Option<Url>,
    pub authorization_endpoint: Option<Url>,
    pub token_endpoint: Option<Url>,
    pub introspection_endpoint: Option<Url>,
    pub end_session_endpoint: Option<Url>,
    pub userinfo_endpoint: Option<Url>,
    pub revocation_endpoint: Option<Url>,
    /// RFC 9207: every authorization response carries `iss`.
    pub iss_parameter_supported: bool,
    /// The endpoints that are left out because they are not https addresses. Keys can be used without them.
    pub ignored: Vec<&'static str>,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: Option<String>,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    introspection_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
    userinfo_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl Metadata {
    /// Parses the document of `issuer`, whose `issuer` member must be identical, byte for byte (section 4.3). Endpoints
    /// that are not https addresses are left out.
    pub fn parse(text: &[u8], issuer: &str) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(text).map_err(|error| format!("the discovery document cannot be read: {error}"))?;
        if document.issuer != issuer {
            return Err(format!(
                "the discovery document is of another issuer, {}; set `issuer` to the exact text, trailing slash included",
                super::token_error::Quoted::text(&document.issuer)
            ));
        }
        let clear_text = issuer.starts_with("http:");
        let secure = |text: &str| secure_url(text).ok().filter(|url| clear_text || url.scheme() == "https");
        let mut ignored = Vec::new();
        let mut endpoint = |name: &'static str, text: Option<String>| {
            let url = secure(&text?);
            if url.is_none() {
                ignored.push(name);
            }
            url
        };
        let jwks_uri = match document.jwks_uri {
            None => None,
            Some(text) => {
                Some(secure(&text).ok_or("the `jwks_uri` of the discovery document is not an https address")?)
            }
        };
        Ok(Self {
            jwks_uri,
            authorization_endpoint: endpoint("authorization_endpoint", document.authorization_endpoint),
            token_endpoint: endpoint("token_endpoint", document.token_endpoint),
            introspection_endpoint: endpoint("introspection_endpoint", document.introspection_endpoint),
            end_session_endpoint: endpoint("end_session_endpoint", document.end_session_endpoint),
            userinfo_endpoint: endpoint("userinfo_endpoint", document.userinfo_endpoint),
            revocation_endpoint: endpoint("revocation_endpoint", document.revocation_endpoint),
            iss_parameter_supported: document.authorization_response_iss_parameter_supported,
            ignored,
        })
    }
}

/// The address of an issuer's discovery document: the issuer without a trailing slash, followed by the well-known path.
pub fn location(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer))
}

/// Parses an address to which tokens and secrets may be sent: https, or http on loopback.
pub fn secure_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is not an absolute URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("carries a user name or a password");
    }
    if url.fragment().is_some() {
        return Err("has a fragment");
    }
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => return Err("has no host"),
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if loopback => Ok(url),
        "http" => Err("is not https; http is accepted on loopback only"),
        _ => Err("is not an https URL"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_issuer_is_compared_byte_for_byte() {
        let document = r#"{"issuer":"https://idp.example/","jwks_uri":"https://keys.example/jwks"}"#;
        let metadata = Metadata::parse(document.as_bytes(), "https://idp.example/").unwrap();
        assert_eq!(metadata.jwks_uri.unwrap().as_str(), "https://keys.example/jwks");
        for other in
            ["https://idp.example", "https://IDP.example/", "https://idp.example:443/", "https://idp.example//"]
        {
            assert!(Metadata::parse(document.as_bytes(), other).is_err(), "{other}");
        }
    }

    /// Regression: a logout address of `http:`, or an empty one, kept the keys from being fetched, so that bearer tokens
    /// were refused too.
    #[test]
    fn endpoints_in_clear_text_are_left_out_unless_the_issuer_is_on_loopback() {
        type Place = fn(Metadata) -> Option<Url>;
        let read = |issuer: &str, name: &str, endpoint: &str| {
            Metadata::parse(json!({"issuer": issuer, name: endpoint}).to_string().as_bytes(), issuer)
        };
        let (there, here) = ("https://idp.example", "http://127.0.0.1:1");
        let bad = [
            (there, "http://127.0.0.1:1/x"),
            (there, "http://idp.example/x"),
            (here, "http://idp.example/x"),
            (there, ""),
        ];
        let places: [(&str, Place); 6] = [
            ("authorization_endpoint", |metadata| metadata.authorization_endpoint),
            ("token_endpoint", |metadata| metadata.token_endpoint),
            ("introspection_endpoint", |metadata| metadata.introspection_endpoint),
            ("end_session_endpoint", |metadata| metadata.end_session_endpoint),
            ("userinfo_endpoint", |metadata| metadata.userinfo_endpoint),
            ("revocation_endpoint", |metadata| metadata.revocation_endpoint),
        ];
        for (name, place) in places {
            for (issuer, endpoint) in [(there, "https://idp.example/x"), (here, "http://127.0.0.1:1/x")] {
                let metadata = read(issuer, name, endpoint).unwrap();
                assert!(metadata.ignored.is_empty(), "{name} {endpoint}");
                assert_eq!(place(metadata).unwrap().as_str(), endpoint, "{name}");
            }
            for (issuer, endpoint) in bad {
                let metadata = read(issuer, name, endpoint).unwrap();
                assert_eq!(metadata.ignored, [name], "{endpoint}");
                assert_eq!(place(metadata), None, "{name} {endpoint}");
            }
        }
        assert!(read(there, "jwks_uri", "https://idp.example/x").unwrap().jwks_uri.is_some());
        assert!(read(here, "jwks_uri", "http://127.0.0.1:1/x").unwrap().jwks_uri.is_some());
        let told = Err("the `jwks_uri` of the discovery document is not an https address".to_owned());
        for (issuer, endpoint) in bad {
            assert_eq!(read(issuer, "jwks_uri", endpoint), told, "{endpoint}");
        }
    }

    #[test]
    fn locations() {
        for (issuer, expected) in [
            ("https://a", "https://a/.well-known/openid-configuration"),
            ("https://a/", "https://a/.well-known/openid-configuration"),
            ("https://a/b", "https://a/b/.well-known/openid-configuration"),
        ] {
            assert_eq!(location(issuer), expected);
        }
        for bad in [
            "http://idp.example",
            "ftp://a",
            "a",
            "https://u@a",
            "https://:p@a",
            "https://a#f",
            "http://localhost.evil.example",
        ] {
            assert!(secure_url(bad).is_err(), "{bad}");
        }
        assert_eq!(secure_url("http://idp.example"), Err("is not https; http is accepted on loopback only"));
        for good in ["https://a", "http://localhost:1", "http://127.8.9.1", "http://[::1]:3"] {
            assert!(secure_url(good).is_ok(), "{good}");
        }
    }
}
