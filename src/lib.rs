//! Doorward, the identity-aware proxy for Tekton.
//!
//! The life of a request is [`request::pipeline`]; `docs/architecture.md` tells where everything lives.

mod abort;
mod admin;
mod app;
mod assertions;
mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod cli;
mod client;
pub mod clock;
pub mod config;
pub mod demo;
mod doctor;
mod downstream;
mod egress;
mod endpoints;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod group_commit;
mod interceptor;
mod issuers;
mod keepalive;
mod kept;
mod kubernetes;
mod lock;
mod logging;
mod memory;
mod oidc;
mod pages;
mod pointer;
mod rbac;
pub mod request;
mod runs;
mod runtime;
mod sessions;
mod sha256;
mod snapshot;
mod store;
mod sts;
mod supervisor;
mod tekton;
mod terminal;
mod upstream;
mod webhooks;
