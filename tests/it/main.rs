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
mod check;
mod client_auth;
mod cluster;
mod dashboard;
mod demo;
mod demo_alone;
mod doctor;
mod drain;
mod egress;
mod ends_everywhere;
mod explain_token;
mod export;
mod figures;
mod fixture;
mod floods;
mod forward_auth;
mod front_door;
mod github;
mod grpc;
mod harness;
mod import;
mod injection;
mod issuing;
mod kubernetes;
mod limits;
mod listeners;
mod log_lines;
mod login;
mod login_world;
mod matrix;
mod methods;
mod mix_up;
mod oidc;
mod onward;
mod operations;
mod outages;
mod pages;
mod paths;
mod refresh;
mod registry;
mod reload;
mod replicas;
mod report;
mod revoke;
mod route_issuers;
mod rows;
mod sessions;
mod sockets;
mod start;
mod step_up;
mod store;
mod stream_grounds;
mod streams;
mod token_command;
mod tokens;
mod tossing;
mod webhooks;
