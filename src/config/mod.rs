//! Configuration: the files as people write them ([`raw`]), their problems ([`report`]), and the settings that the
//! program uses.
//!
//! [`load`] turns [`Sources`] into a [`Loaded`] configuration or a [`Refused`] one:
//!
//! 1. [`source`] reads each YAML file into a tree that records where everything is written,
//! 2. `layers` applies the environment and flags,
//! 3. `shape` compares the result with the JSON [`schema`](schema()), and finds every misspelt key and wrong type,
//! 4. [`resolve`] runs the checks that no single component can do, such as references from routes to upstreams,
//! 5. the components read secrets and files through the [`resolver`] and check their own parts.
//!
//! The problems of all steps are reported in one [`Diagnosis`]. [`watch`] signals when to load again, and [`reload`]
//! lists the changes that require a restart.
//!
//! | file | holds |
//! |---|---|
//! | `raw`, `values` | the settings as people write them, and durations, sizes, secrets and paths |
//! | `schema`, `reference` | the JSON Schema of the settings, and the reference for people |
//! | `source`, `syntax` | files as trees, and the words for what is no YAML |
//! | `layers`, `locations` | the environment and flags, and where each part was written |
//! | `load`, `shape` | loading up to a valid configuration, and the comparison of a document with the schema |
//! | `resolve`, `resolver` | checks across components, and file access for components |
//! | `report`, `diagnosis`, `render` | problems, problems with their places, and their display |
//! | `watch`, `fingerprint` | when to load again, and whether a file has changed |
//! | `renewal` | the files of the configuration in force, while a newer one is refused |
//! | `reload`, `changes` | changes that require a restart, and the differences between two configurations |
//! | `effective` | the configuration in force, with the origin of each value |

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
pub(crate) mod renewal;
pub(crate) mod report;
pub(crate) mod resolve;
pub(crate) mod resolver;
mod schema;
mod shape;
pub(crate) mod source;
mod syntax;
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
