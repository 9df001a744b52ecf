//! Browser login with OpenID Connect: authorization code, PKCE, nonce, state, and the issuer named in the answer (RFC
//! 6749, RFC 7636, RFC 9207, RFC 9700, OpenID Connect Core 1.0 section 3.1). GitHub issues no ID token, so its API is
//! asked who signed in ([`Protocol`]); everything else is the same.
//!
//! ```text
//! /oauth2/continue     preserves the `#fragment`, which only the browser knows, and leads to provider or choice
//! /oauth2/start     -> the provider, with a sealed state and a sealed cookie
//! /oauth2/callback  <- the provider: state, cookie, issuer, code -> tokens -> ID token -> session; also .../NAME
//! /oauth2/unsent       says which form was not sent because its session had ended
//! /oauth2/sign_in      the choice of a provider
//! /oauth2/sign_out     ends the sessions of this browser, on all our hosts and at the provider
//! /oauth2/backchannel_logout <- the provider: a session that ended there ends here
//! ```
//!
//! [`program`] has the paths of `doorward login`, which build on these.
//!
//! | file | holds |
//! |---|---|
//! | `login`, `choice` | routing of the login paths, how a browser is sent to the login, and the choice of a provider |
//! | `flow`, `attempts` | a login in progress, sealed in the browser, and the loop breaker |
//! | `redirect`, `return_to` | the redirect address at the provider, and the address that the login returns to |
//! | `callback`, `parameters` | the response of the provider, and its strictly parsed parameters |
//! | `exchange`, `id_token` | the exchange of the code for tokens, and the checks of the ID token against this login |
//! | `provider`, `issuer`, `client` | the provider interface, its implementation by issuers, and Doorward's client |
//! | `github` | sign-in with GitHub, which has no ID token |
//! | `refresh`, `vouch` | rechecks of a session at the provider, with the refresh token or the access token |
//! | `logout`, `backchannel` | sign-out by the person, and back-channel logout by the provider |
//! | `unsent` | forms whose session had ended |
//! | `program` | the login of programs through the browser |
//! | `failure`, `metrics` | failed logins, as seen by people, logs and metrics |
//! | `scripted` | a provider for tests, with scripted responses |

mod attempts;
pub mod backchannel;
mod callback;
mod choice;
mod client;
mod exchange;
mod failure;
mod flow;
mod github;
mod id_token;
mod issuer;
mod login;
mod logout;
mod metrics;
mod parameters;
pub mod program;
mod provider;
pub mod redirect;
mod refresh;
pub mod return_to;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
mod unsent;
mod vouch;

pub use self::{
    choice::sign_in_page,
    client::{Client, LoginClient, Protocol, Wishes},
    github::Github,
    issuer::LoginIssuer,
    login::{Login, LoginRequest, redirect as redirect_to},
    metrics::{LoginMetrics, Outcome},
    provider::{Identity, Metadata, Provider, ProviderFuture, VerifiedIdToken},
    refresh::{RefreshError, Refreshed, can_ask, refresh},
    unsent::page_of_form,
};
use crate::terminal::bounded;

/// The path at which a login begins; it redirects the browser to the provider.
pub(crate) const START: &str = "/oauth2/start";

/// The page on which a person chooses a provider.
pub(crate) const SIGN_IN: &str = "/oauth2/sign_in";

/// The path at which a person signs out.
pub const SIGN_OUT: &str = "/oauth2/sign_out";
