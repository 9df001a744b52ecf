//! Doorward, the identity-aware proxy for Tekton. `docs/architecture.md` describes the design; start reading at
//! [`request::pipeline`].
//!
//! | concern | modules |
//! |---|---|
//! | process | `app` (start, reload, stop), [`config`], `snapshot` (one configuration), `runtime`, `supervisor` |
//! | request path | `downstream` -> [`request`] -> [`authn`] -> [`authz`] -> `upstream`; [`body`], `streams`, [`error`], `abort` |
//! | Doorward's own pages | `endpoints`, `pages` |
//! | identity | `issuers`, `oidc`, `sessions`, `sts` (Doorward as a token issuer) |
//! | Tekton and Kubernetes | `webhooks`, `assertions`, `interceptor`, `kubernetes`, `tekton`, `runs`, `rbac` |
//! | records | `audit`, `store`, `group_commit`, `atomic_file` |
//! | commands | [`cli`], `client`, `doctor`, [`demo`] |
//! | operation | `admin` (health, metrics, operator socket), `logging`, `memory`, `code_pages` |
//! | utilities | [`clock`], `egress`, `keepalive`, `lock`, `pointer`, `sha256`, `terminal` |
//!
//! Doorward is a program, not a library: modules are `pub` only as far as the binary, doc tests, fuzz targets and tests
//! need them, and there is no stable API.

// These macros panic once nobody reads the output any more.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod abort;
mod admin;
mod app;
mod assertions;
mod atomic_file;
mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod cli;
mod client;
pub mod clock;
mod code_pages;
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
mod kubernetes;
mod lock;
mod logging;
mod memory;
mod oidc;
mod open_files;
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
mod streams;
mod sts;
mod supervisor;
mod tekton;
mod terminal;
mod upstream;
mod webhooks;
