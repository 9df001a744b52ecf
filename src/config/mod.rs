//! Configuration: what a person writes ([`raw`]), where it is wrong ([`report`]), and what the program runs on.
//!
//! [`load`] goes from [`Sources`] to a [`Loaded`] configuration or a [`Refused`] one:
//!
//! 1. [`source`] reads each YAML file into a tree that knows where everything stands,
//! 2. `layers` puts environment and flags on top,
//! 3. `shape` compares the whole with the JSON [`schema`](schema()), and finds every misspelt key and wrong type,
//! 4. [`resolve`] checks what belongs to no component alone, such as references from routes to upstreams,
//! 5. the components read secrets and files through the [`resolver`] and check their parts.
//!
//! All problems of all steps are told in one [`Diagnosis`]. [`watch`] tells when to do it again, and [`reload`] what of
//! a new configuration takes a restart.
//!
//! | file | holds |
//! |---|---|
//! | `raw`, `values` | what a person writes, and its durations, sizes, secrets and paths |
//! | `schema`, `reference` | the JSON Schema of that, and the reference for people |
//! | `source`, `layers`, `locations` | files as trees, environment and flags on top, and where each part was written |
//! | `load`, `shape` | from there to a configuration that may run, and whether a document has the shape of one |
//! | `resolve`, `resolver` | checks that belong to no component alone, and what components read files with |
//! | `report`, `diagnosis`, `render` | problems, all of them with their places, and as people read them |
//! | `watch`, `fingerprint` | when to load again, and whether a file has changed |
//! | `reload`, `changes` | what takes a restart, and what differs between two configurations |
//! | `effective` | the configuration in force, each value with who set it |

mod changes;
pub(crate) mod diagnosis;
mod effective;
pub(crate) mod fingerprint;
mod layers;
mod load;
pub(crate) mod locations;
pub mod raw;
mod reference;
pub(crate) mod reload;
mod render;
pub(crate) mod report;
pub(crate) mod resolve;
pub(crate) mod resolver;
mod schema;
mod shape;
pub(crate) mod source;
#[cfg(test)]
mod tests;
pub(crate) mod values;
pub(crate) mod watch;

#[cfg(test)]
pub(crate) use self::layers::{NOT_SETTINGS, PREFIX};
#[cfg(any(test, fuzzing))]
pub use self::load::fuzz_configuration;
pub(crate) use self::{
    changes::{Change, changes},
    diagnosis::Diagnosis,
    layers::Sources,
    load::{Loaded, Refused, load, read},
    reference::reference,
    schema::schema,
    source::parse_yaml,
};
