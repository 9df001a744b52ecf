//! The keys that seal data at rest or handed to a browser: AES-256-GCM. The first key seals, all of them open.

use std::{io, path::Path, sync::Arc};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use zeroize::Zeroizing;

use crate::{
    atomic_file,
    config::{report::At, resolver::Resolver, values::SecretSource},
    sha256::sha256,
};

/// The extension of the file with the key that Doorward makes itself, beside the store.
pub const KEY_EXTENSION: &str = "session.key";

const KEY_LEN: usize = 32;
const KEY_ID_LEN: usize = 4;
const TAG_LEN: usize = 16;

/// The name of a key, which reveals nothing else about it.
pub(super) type KeyId = [u8; KEY_ID_LEN];

/// The purpose of sealed data, so that one kind never passes for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session record; bound to the hash of the session's id.
    Session,
    /// The sessions of a person.
    Index,
    /// The `state` parameter of a login.
    State,
    /// The cookie of a login in progress; bound to its state.
    Login,
    /// The redirect target of a completed login; bound to its state.
    Completed,
    /// A request that was not sent because a session had ended.
    Unsent,
    /// The result of a login for a program; bound to the hash of its code.
    Code,
    /// The keys that sign tokens.
    TokenKeys,
    /// The cause of a run; bound to the run.
    Cause,
    /// The record of a held delivery; bound to the delivery.
    Held,
    /// The request of a held delivery; bound to the delivery.
    HeldRequest,
}

/// Why sealed data cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("it was sealed with a key that is no longer configured")]
    UnknownKey,
    #[error("it was damaged, or made by somebody else")]
    Broken,
}

/// The keys. Cheap to clone.
#[derive(Clone)]
pub struct KeyRing(Arc<[Key]>);

struct Key {
    id: KeyId,
    key: RandomizedNonceKey,
}

impl KeyRing {
    /// Reads the configured keys: 32 bytes each, as base64. Returns `None` if none is configured, or if one has errors,
    /// which are then reported.
    pub fn resolve(sources: &[SecretSource], resolver: &mut Resolver, at: &At) -> Option<Self> {
        let mut keys = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            let at = at.index(index);
            let Some(secret) = resolver.secret(&at, source) else { continue };
            match decode(secret.expose()) {
                Some(key) => keys.push(key),
                None => drop(
                    resolver
                        .error(&at, format!("{source} is not 32 bytes as base64"))
                        .help("make one with `openssl rand -base64 32`"),
                ),
            }
        }
        (!keys.is_empty() && keys.len() == sources.len()).then(|| Self(keys.into()))
    }

    /// The key stored in `path`. If there is none, one is made and written, readable for its owner only.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let text = atomic_file::read_or_make(path, || {
            Ok(Zeroizing::new(BASE64_STANDARD.encode(random::<KEY_LEN>()).into_bytes()))
        })?;
        Self::of_file(path, &text)
    }

    /// Checks, without a change, whether [`Self::load_or_create`] can use what is there.
    pub fn examine(path: &Path) -> io::Result<()> {
        atomic_file::examine(path, |text| Self::of_file(path, text))
    }

    fn of_file(path: &Path, text: &[u8]) -> io::Result<Self> {
        let key = decode(text).ok_or_else(|| {
            let why = "the key is not 32 bytes as base64; restore it from a backup, or remove it: a new one is made, which \
                       decrypts nothing that the old one has encrypted";
            atomic_file::invalid(path, why)
        })?;
        Ok(Self(Arc::new([key])))
    }

    #[cfg(test)]
    pub fn of(keys: &[[u8; KEY_LEN]]) -> Self {
        Self(keys.iter().map(|bytes| Key::new(bytes).unwrap()).collect())
    }

    /// Seals with the first key. Opening requires the same purpose and context.
    pub fn seal(&self, purpose: Purpose, context: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        self.seal_behind(&[], purpose, context, &[plain])
    }

    /// As [`KeyRing::seal`], for parts that are sealed as one behind a mark in clear text, without an intermediate
    /// copy.
    pub fn seal_behind(&self, mark: &[u8], purpose: Purpose, context: &[u8], parts: &[&[u8]]) -> Option<Vec<u8>> {
        self.0.first()?.seal(mark, purpose, context, parts)
    }

    /// Seals with the key of this name.
    pub(super) fn seal_with(&self, id: KeyId, purpose: Purpose, context: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        self.0.iter().find(|key| key.id == id)?.seal(&[], purpose, context, &[plain])
    }

    /// The names of the keys, in their order.
    pub(super) fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }

    /// Whether data is sealed with the first key.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        self.0.first().is_some_and(|key| sealed.starts_with(&key.id))
    }

    /// Opens with the key that sealed.
    pub fn open(&self, purpose: Purpose, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (id, rest) = sealed.split_first_chunk::<KEY_ID_LEN>().ok_or(OpenError::Broken)?;
        let (nonce, bytes) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::Broken)?;
        let mut candidates = self.0.iter().filter(|key| key.id == *id).peekable();
        candidates.peek().ok_or(OpenError::UnknownKey)?;
        for key in candidates {
            let mut bytes = bytes.to_vec();
            let nonce = Nonce::from(nonce);
            let opened = key.key.open_in_place(nonce, Aad::from(bound(purpose, context)), &mut bytes);
            if let Ok(length) = opened.map(|plain| plain.len()) {
                bytes.truncate(length);
                return Ok(bytes);
            }
        }
        Err(OpenError::Broken)
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} keys)", self.0.len())
    }
}

impl Key {
    /// `None` for bytes of another number than [`KEY_LEN`], which AES-256 refuses.
    fn new(bytes: &[u8]) -> Option<Self> {
        let id = *sha256(&[&sha256(&[bytes])]).first_chunk()?;
        Some(Self { id, key: RandomizedNonceKey::new(&AES_256_GCM, bytes).ok()? })
    }

    fn seal(&self, mark: &[u8], purpose: Purpose, context: &[u8], parts: &[&[u8]]) -> Option<Vec<u8>> {
        let begin = mark.len() + KEY_ID_LEN + NONCE_LEN;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut sealed = Vec::with_capacity(begin + length + TAG_LEN);
        sealed.extend_from_slice(mark);
        sealed.extend_from_slice(&self.id);
        sealed.resize(begin, 0);
        parts.iter().for_each(|part| sealed.extend_from_slice(part));
        let bytes = sealed.get_mut(begin..)?;
        let (nonce, tag) = self.key.seal_in_place_separate_tag(Aad::from(bound(purpose, context)), bytes).ok()?;
        sealed.get_mut(begin - NONCE_LEN..begin)?.copy_from_slice(nonce.as_ref());
        sealed.extend_from_slice(tag.as_ref());
        Some(sealed)
    }
}

/// Random bytes of the system's generator. Nothing is safe without them, so a failure aborts the process.
pub(crate) fn random<const LEN: usize>() -> [u8; LEN] {
    let mut bytes = [0; LEN];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        tracing::error!("the system has no random bytes");
        std::process::abort();
    }
    bytes
}

/// 256 random bits as base64url: unguessable, and a valid PKCE verifier (RFC 7636 section 4.1).
pub(crate) fn random_text() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(random::<32>())
}

fn decode(text: &[u8]) -> Option<Key> {
    Key::new(&Zeroizing::new(BASE64_STANDARD.decode(text.trim_ascii()).ok()?))
}

fn bound(purpose: Purpose, context: &[u8]) -> Vec<u8> {
    let name: &[u8] = match purpose {
        Purpose::Session => b"doorward session\0",
        Purpose::Index => b"doorward index\0",
        Purpose::State => b"doorward state\0",
        Purpose::Login => b"doorward login\0",
        Purpose::Completed => b"doorward completed\0",
        Purpose::Unsent => b"doorward unsent\0",
        Purpose::Code => b"doorward code\0",
        Purpose::TokenKeys => b"doorward token keys\0",
        Purpose::Cause => b"doorward cause\0",
        Purpose::Held => b"doorward held\0",
        Purpose::HeldRequest => b"doorward held request\0",
    };
    [name, context].concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn any_ring_with_the_sealing_key_opens_a_value() {
        let (old, new) = ([1; 32], [2; 32]);
        let sealed = KeyRing::of(&[old]).seal(Purpose::Session, b"k", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        let rotated = KeyRing::of(&[new, old]);
        assert_eq!(rotated.open(Purpose::Session, b"k", &sealed).unwrap(), b"secret");
        let resealed = rotated.seal(Purpose::Session, b"k", b"secret").unwrap();
        assert_eq!(KeyRing::of(&[new]).open(Purpose::Session, b"k", &resealed).unwrap(), b"secret");
        assert_eq!(KeyRing::of(&[new]).open(Purpose::Session, b"k", &sealed), Err(OpenError::UnknownKey));
    }

    #[test]
    fn parts_are_sealed_as_one_behind_their_mark() {
        let ring = KeyRing::of(&[[1; 32]]);
        let sealed = ring.seal_behind(b"mark", Purpose::HeldRequest, b"k", &[b"se", b"", b"cret"]).unwrap();
        let sealed = sealed.strip_prefix(b"mark").unwrap();
        assert_eq!(ring.open(Purpose::HeldRequest, b"k", sealed).unwrap(), b"secret");
        assert_eq!(ring.open(Purpose::Held, b"k", sealed), Err(OpenError::Broken));
    }

    #[test]
    fn moved_changed_or_truncated_values_are_not_opened() {
        let ring = KeyRing::of(&[[1; 32]]);
        let sealed = ring.seal(Purpose::Session, b"k", b"secret").unwrap();
        assert_eq!(ring.open(Purpose::Index, b"k", &sealed), Err(OpenError::Broken));
        assert_eq!(ring.open(Purpose::Session, b"other", &sealed), Err(OpenError::Broken));
        for index in KEY_ID_LEN..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(ring.open(Purpose::Session, b"k", &changed), Err(OpenError::Broken), "{index}");
        }
        for length in 0..sealed.len() {
            assert!(ring.open(Purpose::Session, b"k", &sealed[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_generated_key_is_kept_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session.key");
        let sealed = KeyRing::load_or_create(&path).unwrap().seal(Purpose::State, b"", b"x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(KeyRing::load_or_create(&path).unwrap().open(Purpose::State, b"", &sealed).unwrap(), b"x");
        std::fs::write(&path, "short").unwrap();
        let error = KeyRing::load_or_create(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("session.key"), "{error}");
    }

    #[test]
    fn keys_of_the_wrong_length_are_reported_each() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("good", BASE64_STANDARD.encode([7; 32])), ("short", BASE64_STANDARD.encode([7; 16]))] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let source = |name: &str| SecretSource::File(name.into());
        let mut resolver = Resolver::new(folder.path());
        let at = At::root().key("sessions").key("keys");
        assert!(KeyRing::resolve(&[source("good")], &mut resolver, &at).is_some());
        assert!(!resolver.report.has_errors());
        assert!(KeyRing::resolve(&[source("good"), source("short")], &mut resolver, &at).is_none());
        let problem = &resolver.report.problems()[0];
        assert_eq!((problem.at.as_str(), problem.help.is_some()), ("/sessions/keys/1", true));
    }
}
