//! The life of a request, from the listener's hands to the upstream's. Begin with [`pipeline`].
//!
//! | file | holds |
//! |---|---|
//! | `pipeline` | the steps of a request, one after the other |
//! | `sanitize`, `host`, `path`, `method`, `headers` | what of a client's request is taken, and in which form |
//! | `route` | which upstream a request is for |
//! | `exchange`, `notes` | what is recorded of a request and counted, and when |
//! | `expect` | clients that wait for `100 Continue` where they cannot get it |
//! | `outbound`, `forward` | a request that may be sent, made from a permit alone; sending it, and the response for the client |
//! | `account_refusal` | a 403 of an API server that is about Doorward's own account |
//! | `respond`, `step_up`, `refusal_limit` | how a caller is told no, the way to what it lacks, and too many of both from one address |
//! | `recheck` | a second look at what the trail kept waiting |
//! | `own` | answers where Doorward itself is asked |
//! | `forward_auth` | the same steps for a proxy that only asks |
//! | `dashboard` | what goes to the back end of the Dashboard: files, pages and logs |
//! | `delivery`, `held` | what comes for an EventListener: sent on at once, or stored and brought later |
//! | `apply`, `caused` | runs: whether one that is applied is there, and who caused one that was made |

mod account_refusal;
mod apply;
mod caused;
mod dashboard;
mod delivery;
pub(crate) mod exchange;
pub(crate) mod expect;
mod forward;
mod forward_auth;
pub(crate) mod headers;
mod held;
pub(crate) mod host;
pub(crate) mod method;
pub(crate) mod notes;
pub mod outbound;
mod own;
pub(crate) mod path;
pub(crate) mod pipeline;
mod recheck;
pub(crate) mod refusal_limit;
pub(crate) mod respond;
pub(crate) mod route;
pub(crate) mod sanitize;
mod step_up;

pub use self::forward_auth::PATH as FORWARD_AUTH;
