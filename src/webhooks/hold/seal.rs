//! Seals held deliveries, like sessions, before they are written to a shared store. Each is bound to its delivery, so
//! that no record can replace another. In the embedded store they are plaintext.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::HeldId;
use crate::{
    sessions::keyring::{KeyRing, OpenError, Purpose},
    store::StoreError,
};

/// The first byte of a sealed record. A plaintext record is JSON and begins with a brace.
const MARK: &[u8] = &[1];

/// The keys, if records are sealed at all. Clones share them.
#[derive(Clone)]
pub(super) struct Seal(Option<Arc<ArcSwap<KeyRing>>>);

impl Seal {
    pub fn new(keys: Option<&KeyRing>) -> Self {
        Self(keys.map(|keys| Arc::new(ArcSwap::from_pointee(keys.clone()))))
    }

    /// Replaces the keys.
    pub fn set(&self, keys: &KeyRing) {
        if let Some(current) = &self.0 {
            current.store(Arc::new(keys.clone()));
        }
    }

    /// Seals the concatenation of `parts` for storage, or returns it unsealed if there are no keys.
    pub fn seal(&self, purpose: Purpose, id: &[u8; 32], parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let Some(keys) = &self.0 else { return Ok(parts.concat()) };
        let sealed = keys.load().seal_behind(MARK, purpose, id, parts);
        sealed.ok_or_else(|| StoreError::Unavailable("a held delivery cannot be sealed".to_owned()))
    }

    /// Opens what [`Seal::seal`] returned.
    pub fn open(&self, purpose: Purpose, id: &HeldId, stored: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let opened = match (&self.0, stored.strip_prefix(MARK)) {
            (None, None) => return Ok(stored),
            // Anybody who can write to the store could have made it.
            (Some(_), None) => {
                return Err(StoreError::Corrupt(
                    "it is not sealed, unlike everything that Doorward holds there".to_owned(),
                ));
            }
            (None, Some(_)) => Err(OpenError::UnknownKey),
            (Some(keys), Some(sealed)) => keys.load().open(purpose, id.as_bytes(), sealed),
        };
        opened.map_err(|error| {
            StoreError::Corrupt(match error {
                OpenError::UnknownKey => format!("{error}: put that back into `sessions.keys`"),
                OpenError::Broken => error.to_string(),
            })
        })
    }
}
