//! What is held is sealed before it leaves for a store that others keep, as sessions are. It is bound to the delivery, so that no record
//! stands for another. In a file of our own it stands in clear.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::HeldId;
use crate::{
    sessions::keyring::{KeyRing, OpenError, Purpose},
    store::StoreError,
};

/// What a sealed record begins with. One in clear is JSON and begins with a brace.
const MARK: &[u8] = &[1];

/// The keys, where records are sealed at all. Clones share them.
#[derive(Clone)]
pub(super) struct Seal(Option<Arc<ArcSwap<KeyRing>>>);

impl Seal {
    pub fn new(keys: Option<&KeyRing>) -> Self {
        Self(keys.map(|keys| Arc::new(ArcSwap::from_pointee(keys.clone()))))
    }

    /// Takes other keys from now on.
    pub fn set(&self, keys: &KeyRing) {
        if let Some(current) = &self.0 {
            current.store(Arc::new(keys.clone()));
        }
    }

    /// A record as it is stored, of these parts in a row.
    pub fn seal(&self, purpose: Purpose, id: &[u8; 32], parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let Some(keys) = &self.0 else { return Ok(parts.concat()) };
        let sealed = keys.load().seal_behind(MARK, purpose, id, parts);
        sealed.ok_or_else(|| StoreError::Unavailable("a held delivery cannot be sealed".to_owned()))
    }

    /// What [`Seal::seal`] was given.
    pub fn open(&self, purpose: Purpose, id: &HeldId, stored: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let opened = match (&self.0, stored.strip_prefix(MARK)) {
            (None, None) => return Ok(stored),
            // Whoever may write into the store could have made it.
            (Some(_), None) => {
                return Err(StoreError::Corrupt("it is not sealed, as all is that Doorward holds there".to_owned()));
            }
            (None, Some(_)) => Err(OpenError::UnknownKey),
            (Some(keys), Some(sealed)) => keys.load().open(purpose, id.once(), sealed),
        };
        opened.map_err(|error| {
            StoreError::Corrupt(match error {
                OpenError::UnknownKey => format!("{error}: put that back into `sessions.keys`"),
                OpenError::Broken => error.to_string(),
            })
        })
    }
}
