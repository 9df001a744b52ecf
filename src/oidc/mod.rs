//! Browser login with OpenID Connect: authorization code, PKCE, nonce, state, and the issuer named in the answer
//! (RFC 6749, RFC 7636, RFC 9207, RFC 9700, OpenID Connect Core 1.0 section 3.1). GitHub, which has no ID token, is asked
//! who somebody is instead ([`Protocol`]); all else is the same.
//!
//! ```text
//! /oauth2/continue     keeps the `#fragment`, which only the browser knows, and goes on to the provider or the choice
//! /oauth2/start     -> the provider, with a sealed state and a sealed cookie
//! /oauth2/callback  <- the provider: state, cookie, issuer, code -> tokens -> ID token -> session; also .../NAME
//! /oauth2/unsent       tells of a form that met an ended session
//! /oauth2/sign_in      which provider
//! /oauth2/sign_out     the session ends here, on our other hosts and at the provider
//! /oauth2/backchannel_logout <- the provider: a session ended there, so it ends here
//! ```
//!
//! [`program`] has the paths of `doorward login`, which ride on these.
//!
//! | file | holds |
//! |---|---|
//! | `login`, `choice` | which path is answered by what, how a browser is sent there, and which provider it chooses |
//! | `flow`, `attempts` | a login under way, sealed in the browser, and how often one may follow another |
//! | `redirect`, `return_to` | where the provider sends the browser back to, and where the login leads back to |
//! | `callback`, `parameters` | the way back from the provider, and its parameters, read strictly |
//! | `exchange`, `id_token` | the code for the tokens, and what an ID token must say for this login |
//! | `provider`, `issuer`, `client` | a provider as a login sees it, an issuer as one, and who Doorward is there |
//! | `github` | people at GitHub, which has no ID token |
//! | `refresh`, `vouch` | whether a person may still be signed in, by the refresh token or the access token |
//! | `logout`, `backchannel` | signing out here, and at the word of the provider |
//! | `unsent` | forms that met an ended session |
//! | `program` | the login of programs by way of the browser |
//! | `failure`, `metrics` | a login that went wrong, as people, logs and metrics have it |

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

/// Where a login begins, from where a browser is sent to the provider.
pub(crate) const START: &str = "/oauth2/start";

/// Where a person chooses a provider.
pub(crate) const SIGN_IN: &str = "/oauth2/sign_in";

/// Where a person signs out.
pub const SIGN_OUT: &str = "/oauth2/sign_out";
