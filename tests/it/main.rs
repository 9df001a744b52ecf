//! Black-box tests: the built binary with real and scripted peers. One test binary, because linking takes most of the
//! time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it does not expect has failed"
)]

mod attacks;
mod audit;
mod break_glass;
mod browser_websockets;
mod check;
mod client_auth;
mod cluster;
mod code_injection;
mod cookie_tossing;
mod dashboard;
mod demo;
mod demo_provider_isolation;
mod doctor;
mod drain;
mod egress;
mod explain_token;
mod export;
mod fixture;
mod floods;
mod forward_auth;
mod github;
mod grpc;
mod harness;
mod idp_mix_up;
mod import;
mod issuing;
mod kubernetes;
mod limits;
mod listeners;
mod log_lines;
mod login;
mod login_fixture;
mod methods;
mod oidc;
mod onward;
mod operations;
mod outages;
mod pages;
mod paths;
mod published_benchmarks;
mod refresh;
mod registry;
mod reload;
mod replicas;
mod report;
mod revoke;
mod route_issuers;
mod route_scheme_matrix;
mod rows;
mod session_end_on_replicas;
mod sessions;
mod start;
mod step_up;
mod store;
mod stream_reauthorization;
mod streams;
mod token_command;
mod tokens;
mod trusted_proxies;
mod webhooks;
