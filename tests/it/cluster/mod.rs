//! Doorward in front of the real programs: kube-apiserver, kubectl, Tekton. The API server's own audit log shows which
//! requests reached it, and as whom.
//!
//! `tests/cluster/build` builds the programs; `scripts/test` calls it.

mod admission;
mod api_server;
mod browser;
mod deliveries;
mod event_listener;
mod everywhere;
mod helm;
mod impersonation;
mod informer;
mod ingress;
mod install_guide;
mod kubeconfig;
mod kubectl;
mod login;
mod manifests;
mod other_cluster;
mod pods;
mod printed_matrix;
mod printed_roles;
pub mod programs;
mod pushes;
mod rights;
mod rows;
mod run_rows;
mod runs;
mod shipped;
mod soak;
mod still_sending;
mod tasks;
mod tekton;
mod token_clocks;
mod token_command;
mod token_ends;
mod token_gaps;
mod token_reach;
mod token_replay;
mod token_rows;
mod tokens;
mod trace;
mod two_accounts;
mod watches;
mod who_can;
mod world;
