//! The life of a request, from the listener to the upstream. Start reading at [`pipeline`].
//!
//! | file | holds |
//! |---|---|
//! | `pipeline`, `decide` | the steps of a request, in order; authorize and assume identity among them |
//! | `worker` | the frame of these steps: opens the audit record, and makes the response |
//! | `sanitize`, `host`, `path`, `method`, `headers` | which parts of a client's request are accepted, and in which form |
//! | `route` | which upstream a request is for |
//! | `exchange`, `notes` | what is recorded and counted for a request, and when |
//! | `expect` | clients that wait for `100 Continue` where they cannot get it |
//! | `outbound`, `forward` | the request that is sent upstream, which only a permit can become; sending it and cleaning the response |
//! | `authorization` | which `Authorization` header is the application's own, and is forwarded |
//! | `account_refusal` | tells which 403 of an API server is about Doorward's own account |
//! | `respond`, `step_up`, `refusal_limit` | how a caller is refused, how it gets a login that suffices, and the limit of refusals per address |
//! | `recheck` | rechecks a decision that had to wait for the audit trail |
//! | `own` | requests for Doorward itself |
//! | `forward_auth` | the same steps for a proxy that only asks for a decision |
//! | `dashboard` | requests for the Dashboard's back end: files, pages and logs |
//! | `delivery`, `held` | requests for an EventListener: forwarded at once, or stored and delivered later |
//! | `apply`, `caused` | runs: whether an applied run exists already, and who caused a run that was created |

mod account_refusal;
mod apply;
mod authorization;
mod caused;
mod dashboard;
mod decide;
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
pub(crate) mod worker;

pub use self::forward_auth::is_question;
