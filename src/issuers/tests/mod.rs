//! Tests of issuers: attacks, misbehaving providers and invalid configuration.

#![expect(clippy::needless_pass_by_value, reason = "`json!` arguments read better without a borrow")]

mod attacks;
mod clock;
mod configuration;
mod id_tokens;
mod introspection;
mod key_cache;
mod kubernetes;
mod logout_tokens;
mod presets;
mod principals;
mod tenants;
