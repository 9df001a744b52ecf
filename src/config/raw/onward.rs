//! `tokens.onward`: other providers at which Doorward's assertions are exchanged for their tokens.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CircuitBreaker, ClientCredentials};
use crate::config::values::Span;

/// An audience that trusts another provider's tokens and not Doorward's. Callers that request it get a token of the
/// provider, for which Doorward exchanges an assertion of its own: signed with the keys of `tokens`, valid for 5 m and
/// for that provider only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Onward {
    /// The audience that callers request and rules name.
    pub audience: String,
    /// The provider that issues the token, and the protocol.
    pub provider: OnwardProvider,
    /// The content of the assertion.
    #[serde(default)]
    pub assertion: OnwardAssertion,
    /// The provider's names for scopes in rules. A scope that is not listed has the same name there. A listed one
    /// cannot be requested by the provider's name: rules use Doorward's.
    #[serde(default)]
    pub scopes: BTreeMap<String, String>,
    /// Scopes, by the provider's names, that it adds without being asked, such as `profile`. A token with any other
    /// scope that was not requested is refused. If a rule gives no scope and none is listed here, an opaque token is
    /// also refused if the response does not state its scopes.
    #[serde(default)]
    pub default_scopes: Vec<String>,
    /// The longest lifetime of a token of the provider, 1 m to 12 h, for `aws` at least 15 m. A longer one is refused.
    /// Default: 1 h.
    #[serde(default = "Onward::default_max_lifetime")]
    pub max_lifetime: Span,
    /// The revocation endpoint of the provider (RFC 7009), which is called when the run has ended, and for a token that is
    /// not passed on. Default: none.
    #[serde(default)]
    pub revocation_url: Option<String>,
    /// The time for one call, at most 30 s. Default: 5 s.
    #[serde(default = "Onward::default_timeout")]
    pub timeout: Span,
    /// When the provider is not asked for a while.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
    /// Certificate authorities (CAs) that the provider is verified against, PEM. Default: the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

impl Onward {
    fn default_max_lifetime() -> Span {
        Span::from_secs(3600)
    }

    fn default_timeout() -> Span {
        Span::from_secs(5)
    }
}

/// The content of an assertion, besides the caller and the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnwardAssertion {
    /// Its `aud`, which the provider expects: by RFC 7523 the provider's issuer identifier,
    /// `api://AzureADTokenExchange` for Entra ID. Default: `sts.amazonaws.com` for `aws`, the provider of the pool for
    /// `google`; required for others.
    pub audience: Option<String>,
    /// Its `sub`. Default: `client` if the assertion represents a client (`client_credentials`), else `caller`.
    pub subject: Option<OnwardSubject>,
    /// Its signature algorithm, such as `RS256` for Entra ID. It is signed by the key of `tokens` that signs at the
    /// moment if that has this algorithm, or else by the first that has it. Default: the algorithm of the key that
    /// signs at the moment.
    pub algorithm: Option<SigningAlgorithm>,
}

/// A signature algorithm of Doorward's own tokens (RFC 7518 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SigningAlgorithm {
    /// ECDSA with P-256.
    Es256,
    /// RSA with PKCS #1 v1.5.
    Rs256,
}

/// The subject of an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnwardSubject {
    /// The principal on whose behalf it is issued, as in a token of Doorward's: the person or bot.
    Caller,
    /// The requester: `serviceaccount:NAMESPACE:NAME` for a task, else the client. For providers that list each
    /// subject.
    Client,
    /// This text, whoever requests the token. For providers that require the client's id there.
    Text(String),
}

/// A kind of provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnwardProvider {
    /// Token exchange (RFC 8693); the assertion is the `subject_token`.
    TokenExchange(OnwardGrant),
    /// The assertion as a grant (RFC 7523 section 2.1).
    JwtBearer(OnwardGrant),
    /// Client credentials, with the assertion in place of a secret (RFC 7523 section 2.2): a federated credential of Entra ID,
    /// federated client authentication of Keycloak.
    ClientCredentials(OnwardClient),
    /// Workload identity federation of Google Cloud.
    Google(OnwardGoogle),
    /// AssumeRoleWithWebIdentity of AWS. The response is in the format that `credential_process` reads.
    Aws(OnwardAws),
}

/// A provider that implements one of the standard grants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardGrant {
    /// The token endpoint.
    pub token_url: String,
    /// The parameter `audience`, if the provider requires it.
    #[serde(default)]
    pub audience: Option<String>,
    /// The parameter `resource` (RFC 8707), if the provider requires it.
    #[serde(default)]
    pub resource: Option<String>,
    /// Doorward's client credentials there. Default: none, the assertion is enough.
    #[serde(default)]
    pub client: Option<ClientCredentials>,
    /// Whether a second assertion, whose subject is the requester, authenticates the client (`client_assertion`). With
    /// a `client`, which must then have the method `none`, its id is sent too. Default: off.
    #[serde(default)]
    pub client_assertion: bool,
}

/// A provider at which the assertion is a client's credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardClient {
    /// The token endpoint: `https://login.microsoftonline.com/TENANT/oauth2/v2.0/token` for Entra ID.
    pub token_url: String,
    /// The client's id, if the provider requires it: the application (client) id for Entra ID.
    #[serde(default)]
    pub client_id: Option<String>,
    /// The parameter `audience`, if the provider requires it.
    #[serde(default)]
    pub audience: Option<String>,
    /// The parameter `resource` (RFC 8707), if the provider requires it.
    #[serde(default)]
    pub resource: Option<String>,
}

/// A provider of a workload identity pool of Google Cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardGoogle {
    /// The provider of the pool: `//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
    pub pool_provider: String,
    /// The address of a service account whose token is given in place of the pool's own.
    #[serde(default)]
    pub service_account: Option<String>,
    /// The token endpoint. Default: `https://sts.googleapis.com/v1/token`.
    #[serde(default)]
    pub token_url: Option<String>,
    /// The endpoint that issues tokens of service accounts. Default: `https://iamcredentials.googleapis.com/`.
    #[serde(default)]
    pub iam_credentials_url: Option<String>,
}

/// A role of AWS that trusts Doorward as an OpenID Connect provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardAws {
    /// The role: `arn:aws:iam::ACCOUNT:role/NAME`. `max_lifetime` is the length of the session, 15 m or more.
    pub role: String,
    /// A file with a policy that restricts the session, in JSON of at most 2048 characters.
    #[serde(default)]
    pub session_policy: Option<PathBuf>,
    /// The STS endpoint; use a regional one if there is one: `https://sts.REGION.amazonaws.com/`. It must respond in
    /// JSON if asked to, as AWS does and compatible servers may not. Default: `https://sts.amazonaws.com/`.
    #[serde(default)]
    pub token_url: Option<String>,
}
