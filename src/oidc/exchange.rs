//! Exchanges a code for tokens (RFC 6749 section 4.1.3), with `openidconnect` and our own bounded client. It is sent
//! once: after a network error the code may have been used, and a second use revokes the tokens of the first.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use openidconnect::{
    AccessToken, AuthType, AuthorizationCode, ClientId, ClientSecret, EmptyAdditionalClaims, EndpointNotSet,
    EndpointSet, HttpRequest, HttpResponse, IssuerUrl, JsonWebKeySet, OAuth2TokenResponse, PkceCodeVerifier,
    RedirectUrl, RefreshToken, RequestTokenError, Scope, StandardErrorResponse, TokenResponse, TokenUrl,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreErrorResponseType, CoreGenderClaim, CoreIdToken, CoreJsonWebKey,
        CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreRevocableToken, CoreRevocationErrorResponse,
        CoreTokenIntrospectionResponse, CoreTokenType,
    },
};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::json;

use super::{Metadata, Provider, bounded};
use crate::{
    clock::Timestamp,
    egress::{Bounds, EgressError},
    issuers::{ASSERTION_TYPE, Proof},
};

/// The bounds of an exchange.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), max_body: 256 << 10 };

/// The tokens for a code or a refresh token. After a refresh, fields that are `None` stay as they were (RFC 6749
/// section 6).
pub struct Granted {
    pub access: String,
    pub refresh: Option<String>,
    pub id: Option<String>,
    /// The granted scopes, if the response names them (RFC 6749 section 5.1).
    pub scopes: Option<Vec<Arc<str>>>,
}

/// Why there are no tokens. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("the provider cannot be reached: {0}")]
    Unreachable(EgressError),
    /// `invalid_grant` (RFC 6749 section 5.2): the code or the refresh token is invalid for good.
    #[error("the provider refused the code or token: {0}")]
    InvalidGrant(String),
    /// Another error of the provider, which may be about our client or be temporary.
    #[error("the provider refused the request: {0}")]
    Refused(String),
    #[error("the answer of the provider cannot be understood: {0}")]
    Malformed(String),
    #[error("our own client settings cannot be used: {0}")]
    Client(String),
}

/// The error response of a token endpoint (RFC 6749 section 5.2).
type Refusal = StandardErrorResponse<CoreErrorResponseType>;

type Client<TokenEndpoint = EndpointNotSet> = openidconnect::Client<
    EmptyAdditionalClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    Refusal,
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
    let redirect_uri = RedirectUrl::new(redirect_uri).map_err(unusable)?;
    let (client, assertion) = client(provider, metadata, now)?;
    let client = client.set_redirect_uri(redirect_uri);
    let mut request =
        client.exchange_code(AuthorizationCode::new(code)).set_pkce_verifier(PkceCodeVerifier::new(verifier));
    for (name, value) in &assertion {
        request = request.add_extra_param(*name, value);
    }
    request.request_async(&sender(provider)).await.map_err(refused)?.granted()
}

/// Exchanges a refresh token for new tokens (RFC 6749 section 6). It is sent once, as the token may rotate.
pub async fn refresh(
    provider: &dyn Provider,
    metadata: &Metadata,
    token: &str,
    now: Timestamp,
) -> Result<Granted, ExchangeError> {
    let (client, assertion) = client(provider, metadata, now)?;
    let token = RefreshToken::new(token.to_owned());
    let mut request = client.exchange_refresh_token(&token);
    for (name, value) in &assertion {
        request = request.add_extra_param(*name, value);
    }
    request.request_async(&sender(provider)).await.map_err(refused)?.granted()
}

/// Additional parameters of a request.
type Parameters = Vec<(&'static str, String)>;

/// The client with its credential at `now`, as settings of the client and as additional parameters.
fn client(
    provider: &dyn Provider,
    metadata: &Metadata,
    now: Timestamp,
) -> Result<(Client<EndpointSet>, Parameters), ExchangeError> {
    let us = provider.client();
    let issuer = IssuerUrl::new(provider.issuer().to_owned()).map_err(unusable)?;
    let token_url = TokenUrl::from_url(metadata.token_endpoint.clone());
    let id = ClientId::new(us.id().to_string());
    let proof = us.authentication.proof(now).map_err(ExchangeError::Client)?;
    // The key set stays empty, as the issuer checks signatures itself.
    let mut client =
        <Client>::new(id, issuer, JsonWebKeySet::new(Vec::new())).set_token_uri(token_url).set_auth_type(match proof {
            Proof::Basic(_) => AuthType::BasicAuth,
            _ => AuthType::RequestBody,
        });
    if let Proof::Basic(secret) | Proof::Post(secret) = proof {
        client = client.set_client_secret(ClientSecret::new(secret.expose_str().unwrap_or_default().to_owned()));
    }
    let mut assertion = Vec::new();
    if let Proof::Assertion(text) = proof {
        assertion.push(("client_assertion_type", ASSERTION_TYPE.to_owned()));
        assertion.push(("client_assertion", text.into_owned()));
    }
    Ok((client, assertion))
}

fn unusable(error: impl std::fmt::Display) -> ExchangeError {
    ExchangeError::Client(error.to_string())
}

type Sent = Pin<Box<dyn Future<Output = Result<HttpResponse, EgressError>> + Send>>;

/// Sends requests with the bounded client of the provider.
fn sender(provider: &dyn Provider) -> impl Fn(HttpRequest) -> Sent + Send + Sync + use<> {
    let egress = provider.egress().clone();
    move |request| {
        let egress = egress.clone();
        Box::pin(async move {
            let mut answer = egress.send(request.map(Bytes::from), BOUNDS).await?.map(Into::into);
            if is_error(&answer) {
                *answer.status_mut() = StatusCode::BAD_REQUEST;
            }
            if is_bare_refusal(&answer) {
                let error = format!("{} without an OAuth error", answer.status());
                *answer.body_mut() = json!({"error": error}).to_string().into_bytes();
                *answer.status_mut() = StatusCode::BAD_REQUEST;
            }
            Ok(answer)
        })
    }
}

/// Whether this is an error with a success status, as GitHub sends them.
fn is_error(answer: &HttpResponse) -> bool {
    #[derive(Deserialize)]
    struct Said {
        error: Option<IgnoredAny>,
        access_token: Option<IgnoredAny>,
    }
    answer.status() == StatusCode::OK
        && serde_json::from_slice::<Said>(answer.body())
            .is_ok_and(|said| said.error.is_some() && said.access_token.is_none())
}

/// Whether this is a refusal without an OAuth error: the page of a portal, a redirect to one, or a provider's own error
/// format for organisations that are gone. The status then serves as the error.
fn is_bare_refusal(answer: &HttpResponse) -> bool {
    let status = answer.status();
    if status.is_success() {
        // A malformed object is not a refusal: it may hold a token that has rotated.
        return !answer.body().trim_ascii_start().starts_with(b"{");
    }
    let may_pass = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    let is_refusal = status.is_redirection() || (status.is_client_error() && !may_pass);
    is_refusal && Refusal::deserialize(&mut serde_json::Deserializer::from_slice(answer.body())).is_err()
}

fn refused(error: RequestTokenError<EgressError, Refusal>) -> ExchangeError {
    match error {
        RequestTokenError::Request(error) => ExchangeError::Unreachable(error),
        RequestTokenError::ServerResponse(error) => {
            let description = error.error_description().map(|text| format!(": {}", bounded(text))).unwrap_or_default();
            let text = format!("{}{description}", bounded(error.error().as_ref()));
            match error.error() {
                CoreErrorResponseType::InvalidGrant => ExchangeError::InvalidGrant(text),
                // GitHub's names for `invalid_grant`.
                CoreErrorResponseType::Extension(name)
                    if matches!(&**name, "bad_refresh_token" | "bad_verification_code") =>
                {
                    ExchangeError::InvalidGrant(text)
                }
                _ => ExchangeError::Refused(text),
            }
        }
        // The body may hold tokens, so it is not reported. Only the message about a missing member has nothing of it.
        RequestTokenError::Parse(error, _) => {
            let why = error.inner().to_string();
            let missing = why.strip_prefix("missing field ").and_then(|rest| rest.split(' ').next());
            ExchangeError::Malformed(match missing {
                Some(name) => format!("it has no {name}"),
                None => format!("at `{}`", error.path()),
            })
        }
        RequestTokenError::Other(what) => ExchangeError::Malformed(bounded(&what)),
    }
}

/// The response of the token endpoint. Unknown members are ignored, and so is `expires_in`, whatever its type.
#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    access_token: AccessToken,
    #[serde(deserialize_with = "any_case")]
    token_type: CoreTokenType,
    refresh_token: Option<RefreshToken>,
    #[serde(default, deserialize_with = "separated")]
    scope: Option<Vec<Scope>>,
    /// The text as it came, which the issuer verifies. As a [`CoreIdToken`] it would be refused for standard claims of
    /// unusual types that nothing here reads, such as `updated_at` as a text (Auth0).
    id_token: Option<String>,
}

impl Answer {
    fn granted(self) -> Result<Granted, ExchangeError> {
        if self.token_type != CoreTokenType::Bearer {
            return Err(ExchangeError::Malformed("`token_type` is not `Bearer`".to_owned()));
        }
        Ok(Granted {
            access: self.access_token.into_secret(),
            refresh: self.refresh_token.map(RefreshToken::into_secret),
            id: self.id_token.map(signed).transpose()?,
            scopes: self.scope.map(|scopes| scopes.iter().map(|scope| scope.as_str().into()).collect()),
        })
    }
}

/// Refuses an ID token that cannot be a signed JWT by its number of parts: three, or five of an encrypted one.
fn signed(token: String) -> Result<String, ExchangeError> {
    let what = match token.split('.').count() {
        3 => return Ok(token),
        5 => "an encrypted token (JWE), which is not supported",
        _ => "not a signed JWT",
    };
    Err(ExchangeError::Malformed(format!("its `id_token` is {what}")))
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
    /// Never used: [`Answer::granted`] takes the text.
    fn id_token(&self) -> Option<&CoreIdToken> {
        None
    }
}
