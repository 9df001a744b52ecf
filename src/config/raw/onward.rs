//! `tokens.onward`: other providers at which what Doorward issues is swapped for theirs.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CircuitBreaker, ClientCredentials};
use crate::config::values::Span;

/// An audience that trusts another provider's tokens and not ours. Whoever asks for it gets one of the provider's, which Doorward
/// swaps for an assertion of its own: signed by the keys of `tokens`, 5 m long, for that provider alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Onward {
    /// The audience by which callers ask for it and rules name it.
    pub audience: String,
    /// Who gives the token, and by which protocol.
    pub provider: OnwardProvider,
    /// What the assertion says.
    #[serde(default)]
    pub assertion: OnwardAssertion,
    /// What the provider calls a scope of the rules. One that is not listed is called the same there. By the provider's name of a listed
    /// one none is given: rules go by ours.
    #[serde(default)]
    pub scopes: BTreeMap<String, String>,
    /// Scopes, as the provider calls them, that it adds unasked, such as `profile`. A token with any other that was not asked
    /// for is refused. Where a rule gives no scope and none is listed here, an opaque token whose scopes the answer does not say is
    /// refused too.
    #[serde(default)]
    pub default_scopes: Vec<String>,
    /// How long a token of the provider may last. A longer one is refused. Default: 1 h.
    #[serde(default = "Onward::default_max_lifetime")]
    pub max_lifetime: Span,
    /// Where the provider ends a token before its time (RFC 7009), which is asked when the run has ended. Default: nowhere.
    #[serde(default)]
    pub revocation_url: Option<String>,
    /// The time for one call, at most 30 s. Default: 5 s.
    #[serde(default = "Onward::default_timeout")]
    pub timeout: Span,
    /// When the provider is given a pause.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
    /// The authorities that vouch for the provider, PEM. Default: those of the system.
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

/// What an assertion says beside who asks and for which run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnwardAssertion {
    /// Its `aud`, which the provider expects: by RFC 7523 the provider's issuer identifier, `api://AzureADTokenExchange` for Entra
    /// ID. Default: `sts.amazonaws.com` for `aws`, the provider of the pool for `google`; others must say.
    pub audience: Option<String>,
    /// Its `sub`. Default: `client` where the assertion stands for a client (`client_credentials`), else `caller`.
    pub subject: Option<OnwardSubject>,
    /// How it is signed, by the key of `tokens` that signs at the moment, or else the first that signs so: `RS256` for Entra ID. Default: by the
    /// one that signs at the moment.
    pub algorithm: Option<SigningAlgorithm>,
}

/// How what Doorward issues is signed (RFC 7518 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SigningAlgorithm {
    /// ECDSA with P-256.
    Es256,
    /// RSA with PKCS #1 v1.5.
    Rs256,
}

/// Who is the subject of an assertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnwardSubject {
    /// On whose behalf it is, as in a token of ours: the person or bot.
    Caller,
    /// Who asks: `serviceaccount:NAMESPACE:NAME` for a task, else the client. For providers that list each subject.
    Client,
    /// This text, whoever asks. For providers that want the client's id there.
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
    /// AssumeRoleWithWebIdentity of AWS. The answer is what `credential_process` reads.
    Aws(OnwardAws),
}

/// A provider that speaks the standard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardGrant {
    /// The token endpoint.
    pub token_url: String,
    /// The parameter `audience`, where the provider wants it.
    #[serde(default)]
    pub audience: Option<String>,
    /// The parameter `resource` (RFC 8707), where the provider wants it.
    #[serde(default)]
    pub resource: Option<String>,
    /// Who we are there. Default: nobody, the assertion is enough.
    #[serde(default)]
    pub client: Option<ClientCredentials>,
    /// Whether a further assertion, whose subject is who asks, proves the client (`client_assertion`). With a `client`, which
    /// then has the method `none`, its id goes along. Default: off.
    #[serde(default)]
    pub client_assertion: bool,
}

/// A provider where the assertion is a client's credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardClient {
    /// The token endpoint: `https://login.microsoftonline.com/TENANT/oauth2/v2.0/token` for Entra ID.
    pub token_url: String,
    /// The client's id, where the provider wants it: the application (client) id for Entra ID.
    #[serde(default)]
    pub client_id: Option<String>,
    /// The parameter `audience`, where the provider wants it.
    #[serde(default)]
    pub audience: Option<String>,
    /// The parameter `resource` (RFC 8707), where the provider wants it.
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
    /// Default: `https://sts.googleapis.com/v1/token`.
    #[serde(default)]
    pub token_url: Option<String>,
    /// Where tokens of service accounts are made. Default: `https://iamcredentials.googleapis.com/`.
    #[serde(default)]
    pub iam_credentials_url: Option<String>,
}

/// A role of AWS that trusts Doorward as an OpenID Connect provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnwardAws {
    /// The role: `arn:aws:iam::ACCOUNT:role/NAME`. `max_lifetime` is the length of the session, 15 m or more.
    pub role: String,
    /// A file with a policy that narrows the session, JSON of 2048 characters at most.
    #[serde(default)]
    pub session_policy: Option<PathBuf>,
    /// The regional endpoint is better where there is one: `https://sts.REGION.amazonaws.com/`. It must answer in JSON when it is asked to, as
    /// AWS does and servers like it may not. Default: `https://sts.amazonaws.com/`.
    #[serde(default)]
    pub token_url: Option<String>,
}
