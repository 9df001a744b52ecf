//! The code for the tokens (RFC 6749 section 4.1.3), through `openidconnect` and our own bounded client. Sent once:
//! after a network error nobody knows whether the code was used, and a second use revokes what the first one gave.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use openidconnect::{
    AccessToken, AuthType, AuthorizationCode, ClientId, ClientSecret, EmptyAdditionalClaims, EndpointNotSet,
    HttpRequest, HttpResponse, IssuerUrl, JsonWebKeySet, OAuth2TokenResponse, PkceCodeVerifier, RedirectUrl,
    RefreshToken, RequestTokenError, Scope, StandardErrorResponse, TokenResponse, TokenUrl,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreErrorResponseType, CoreGenderClaim, CoreIdToken, CoreJsonWebKey,
        CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreRevocableToken, CoreRevocationErrorResponse,
        CoreTokenIntrospectionResponse, CoreTokenType,
    },
};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ClientAuthentication, Metadata, Provider, bounded};
use crate::{
    clock::Timestamp,
    egress::{Bounds, EgressError},
    sessions::Tokens,
};

/// What the exchange may cost.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), max_body: 256 << 10 };

/// What the provider gave for the code.
pub struct Granted {
    pub tokens: Tokens,
    /// The scopes that were granted, if the answer names them (RFC 6749 section 5.1).
    pub scopes: Option<Vec<Arc<str>>>,
}

/// Why there are no tokens. None of them carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("the provider cannot be reached: {0}")]
    Unreachable(EgressError),
    #[error("the provider refused the code: {0}")]
    Refused(String),
    #[error("the answer of the provider cannot be understood: {0}")]
    Malformed(String),
    #[error("our own client settings cannot be used: {0}")]
    Client(String),
}

type Client<TokenEndpoint = EndpointNotSet> = openidconnect::Client<
    EmptyAdditionalClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    TokenEndpoint,
    EndpointNotSet,
>;

pub async fn exchange(
    provider: &dyn Provider,
    metadata: &Metadata,
    code: String,
    verifier: String,
    redirect_uri: String,
    now: Timestamp,
) -> Result<Granted, ExchangeError> {
    let us = provider.client();
    let unusable = |error: &dyn std::fmt::Display| ExchangeError::Client(error.to_string());
    let issuer = IssuerUrl::new(provider.issuer().to_owned()).map_err(|error| unusable(&error))?;
    let token_url = TokenUrl::from_url(metadata.token_endpoint.clone());
    let redirect_uri = RedirectUrl::new(redirect_uri).map_err(|error| unusable(&error))?;
    let id = ClientId::new(us.id.to_string());
    // The key set stays empty: signatures are checked by the strict check of the issuer.
    let mut client = <Client>::new(id, issuer, JsonWebKeySet::new(Vec::new()))
        .set_token_uri(token_url)
        .set_redirect_uri(redirect_uri)
        .set_auth_type(match us.authentication {
            ClientAuthentication::Basic(_) => AuthType::BasicAuth,
            _ => AuthType::RequestBody,
        });
    if let ClientAuthentication::Basic(secret) | ClientAuthentication::Post(secret) = &us.authentication {
        client = client.set_client_secret(ClientSecret::new(secret.expose_str().unwrap_or_default().to_owned()));
    }
    let mut request =
        client.exchange_code(AuthorizationCode::new(code)).set_pkce_verifier(PkceCodeVerifier::new(verifier));
    if let ClientAuthentication::PrivateKeyJwt(key) = &us.authentication {
        let assertion = key.sign(&us.id, provider.issuer(), now).map_err(|error| unusable(&error))?;
        request = request
            .add_extra_param("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
            .add_extra_param("client_assertion", assertion);
    }
    let egress = provider.egress().clone();
    let http = move |request: HttpRequest| {
        let egress = egress.clone();
        async move {
            let answer: HttpResponse = egress.send(request.map(Bytes::from), BOUNDS).await?.map(Into::into);
            Ok::<_, EgressError>(answer)
        }
    };
    let answer = request.request_async(&http).await.map_err(|error| match error {
        RequestTokenError::Request(error) => ExchangeError::Unreachable(error),
        RequestTokenError::ServerResponse(error) => {
            let description = error.error_description().map(|text| format!(": {}", bounded(text))).unwrap_or_default();
            ExchangeError::Refused(format!("{}{description}", bounded(error.error().as_ref())))
        }
        // The body may hold tokens, so it is not told.
        RequestTokenError::Parse(error, _) => ExchangeError::Malformed(format!("at `{}`", error.path())),
        RequestTokenError::Other(what) => ExchangeError::Malformed(bounded(&what)),
    })?;
    answer.granted()
}

/// The answer of the token endpoint. Members that we do not know are ignored, and so is how `expires_in` is written.
#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    access_token: AccessToken,
    #[serde(deserialize_with = "any_case")]
    token_type: CoreTokenType,
    #[serde(default)]
    refresh_token: Option<RefreshToken>,
    #[serde(default, deserialize_with = "separated")]
    scope: Option<Vec<Scope>>,
    #[serde(default)]
    id_token: Option<CoreIdToken>,
}

impl Answer {
    fn granted(self) -> Result<Granted, ExchangeError> {
        if self.token_type != CoreTokenType::Bearer {
            return Err(ExchangeError::Malformed("`token_type` is not `Bearer`".to_owned()));
        }
        let id = self.id_token.as_ref().map(ToString::to_string);
        let id = id.ok_or_else(|| ExchangeError::Malformed("there is no `id_token`".to_owned()))?;
        let tokens = Tokens {
            access: self.access_token.into_secret(),
            refresh: self.refresh_token.map(RefreshToken::into_secret),
            id,
        };
        let scopes = self.scope.map(|scopes| scopes.iter().map(|scope| scope.as_str().into()).collect());
        Ok(Granted { tokens, scopes })
    }
}

fn any_case<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CoreTokenType, D::Error> {
    let text = String::deserialize(deserializer)?.to_ascii_lowercase();
    CoreTokenType::deserialize(serde::de::value::StringDeserializer::new(text))
}

fn separated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Scope>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| text.split_ascii_whitespace().map(|scope| Scope::new(scope.to_owned())).collect()))
}

impl OAuth2TokenResponse for Answer {
    type TokenType = CoreTokenType;

    fn access_token(&self) -> &AccessToken {
        &self.access_token
    }
    fn token_type(&self) -> &CoreTokenType {
        &self.token_type
    }
    fn expires_in(&self) -> Option<Duration> {
        None
    }
    fn refresh_token(&self) -> Option<&RefreshToken> {
        self.refresh_token.as_ref()
    }
    fn scopes(&self) -> Option<&Vec<Scope>> {
        self.scope.as_ref()
    }
}

impl TokenResponse<EmptyAdditionalClaims, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>
    for Answer
{
    fn id_token(&self) -> Option<&CoreIdToken> {
        self.id_token.as_ref()
    }
}
