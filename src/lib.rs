//! Doorward, the identity-aware proxy for Tekton.
//!
//! The life of a request is [`request::pipeline`]; `docs/architecture.md` tells where everything lives.

mod abort;
pub mod admin;
pub mod app;
pub mod assertions;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod downstream;
pub mod egress;
pub mod endpoints;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod group_commit;
pub mod interceptor;
pub mod issuers;
mod keepalive;
mod kept;
pub mod kubernetes;
mod lock;
pub mod logging;
pub mod memory;
pub mod oidc;
pub mod pages;
pub mod rbac;
pub mod request;
pub mod runs;
pub mod runtime;
pub mod sessions;
mod sha256;
pub mod snapshot;
pub mod store;
pub mod sts;
pub mod supervisor;
pub mod tekton;
mod terminal;
pub mod upstream;
pub mod webhooks;
