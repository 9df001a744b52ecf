//! Verification of a token's signature with the key set of its issuer.

use std::sync::Arc;

use super::{
    jwt::Unverified,
    key_cache::KeyCache,
    keys::{Found, PublicKey},
    token_error::{Quoted, TokenError},
};
use crate::authn::KeyId;

/// The key set and key that verified a signature.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed {
    /// The generation of the key set.
    pub generation: u64,
    pub by: KeyId,
}

impl KeyCache {
    /// Verifies the signature with the key that the header names, from this issuer's set only, and returns which it
    /// was. For a key that is not in the set, only a token that passes `check` causes a fetch.
    pub(super) async fn check_signature<T>(
        &self,
        token: &Unverified<'_>,
        check: impl Fn() -> Result<T, TokenError>,
    ) -> Result<Signed, TokenError> {
        let name = &self.settings().name;
        let unavailable = |why| TokenError::Unavailable { issuer: Arc::clone(name), why };
        let mut generation = self.current().map_err(unavailable)?;
        let kid = token.header.kid.as_deref();
        let mut fetched = false;
        if matches!(generation.keys.find(kid, token.header.algorithm), Found::None) {
            check()?;
            fetched = self.refetch(kid).await;
            generation = self.current().map_err(unavailable)?;
        }
        let may_sign = |key: &PublicKey| {
            self.settings().tenants.as_ref().is_none_or(|tenants| tenants.may_sign(key.issuer(), token.issuer()))
        };
        match generation.keys.find(kid, token.header.algorithm) {
            Found::One(key) if may_sign(key) && token.check_signature(key) => {
                Ok(Signed { generation: generation.number, by: key.id() })
            }
            Found::One(_) => Err(TokenError::Signature { issuer: Arc::clone(name) }),
            Found::Several(fitting) => Err(TokenError::KeyAmbiguous { issuer: Arc::clone(name), fitting }),
            Found::None => {
                if let Some(kid) = kid.filter(|_| fetched) {
                    self.note_unknown(kid);
                }
                let kid = kid.map_or_else(|| Quoted::json(None), Quoted::text);
                Err(TokenError::KeyUnknown { issuer: Arc::clone(name), kid })
            }
        }
    }
}
