//! The key of the chain and the key that signs checkpoints.

use std::{fmt, fs, io, mem, path::Path, sync::Arc};

use aws_lc_rs::{
    digest, hmac,
    rand::{SecureRandom, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::atomic_file;

/// The files of keys that Doorward creates if none are configured.
pub const CHAIN_KEY_FILE: &str = "audit-chain.key";
pub const CHECKPOINT_KEY_FILE: &str = "audit-checkpoint.pem";
pub const CHECKPOINT_PUBLIC_KEY_FILE: &str = "audit-checkpoint.pub.pem";

/// The bytes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The key of the hash chain. Only its holders can rewrite the trail.
#[derive(Clone)]
pub struct ChainKey {
    pub(super) hmac: hmac::Key,
    id: Arc<str>,
}

impl ChainKey {
    /// Creates a key from at least 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidKey> {
        if bytes.len() < 32 {
            return Err(InvalidKey::Short(bytes.len()));
        }
        Ok(Self { hmac: hmac::Key::new(hmac::HMAC_SHA256, bytes), id: key_id(b"chain key", bytes) })
    }

    /// Parses the form in which files hold it: base64, ignoring surrounding whitespace.
    pub fn from_base64(text: &[u8]) -> Result<Self, InvalidKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).map_err(|_| InvalidKey::Base64)?);
        Self::new(&bytes)
    }

    /// Returns an id of the key that does not reveal it.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainKey({})", self.id)
    }
}

/// The Ed25519 key that signs checkpoints.
#[derive(Clone)]
pub struct CheckpointKey {
    pair: Arc<Ed25519KeyPair>,
    public: CheckpointPublicKey,
}

impl CheckpointKey {
    /// Parses a key in PEM (PKCS #8).
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidKey> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| InvalidKey::PrivatePem)?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| InvalidKey::PrivatePem)?;
        Ok(Self::from_pair(pair))
    }

    pub(super) fn generate() -> Result<Self, InvalidKey> {
        Ed25519KeyPair::generate().map(Self::from_pair).map_err(|_| InvalidKey::Random)
    }

    pub fn public(&self) -> &CheckpointPublicKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }

    fn from_pair(pair: Ed25519KeyPair) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(pair.public_key().as_ref());
        Self { pair: Arc::new(pair), public: CheckpointPublicKey::new(bytes) }
    }

    fn to_pem(&self) -> Result<Zeroizing<String>, InvalidKey> {
        let der = self.pair.to_pkcs8v1().map_err(|_| InvalidKey::Random)?;
        Ok(Zeroizing::new(pem("PRIVATE KEY", der.as_ref())))
    }
}

impl fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointKey({})", self.public.id)
    }
}

/// The public key that verifies the signature of a checkpoint.
#[derive(Clone, Debug)]
pub struct CheckpointPublicKey {
    bytes: [u8; 32],
    id: Arc<str>,
}

impl CheckpointPublicKey {
    fn new(bytes: [u8; 32]) -> Self {
        Self { bytes, id: key_id(b"checkpoint key", &bytes) }
    }

    /// Parses a key in PEM (SubjectPublicKeyInfo), as `openssl pkey -pubout` prints it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidKey> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| InvalidKey::PublicPem)?;
        let bytes = der.as_ref().strip_prefix(&SPKI_PREFIX).ok_or(InvalidKey::PublicPem)?;
        bytes.try_into().map(Self::new).map_err(|_| InvalidKey::PublicPem)
    }

    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI_PREFIX[..], &self.bytes].concat())
    }

    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes).verify(message, signature).is_ok()
    }
}

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("the key is not base64")]
    Base64,
    #[error("the key has {0} bytes and needs at least 32")]
    Short(usize),
    #[error("this is not an Ed25519 key in PEM (PKCS #8)")]
    PrivatePem,
    #[error("this is not a public Ed25519 key in PEM; get it with `openssl pkey -pubout`")]
    PublicPem,
    #[error("the system provided no random bytes")]
    Random,
}

impl InvalidKey {
    /// How to make a key, where none is in use yet: a new one fits nothing that was written with another.
    pub(super) fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Base64 | Self::Short(_) => Some("make one with `openssl rand -base64 32`"),
            Self::PrivatePem => Some("make one with `openssl genpkey -algorithm ed25519`"),
            Self::PublicPem | Self::Random => None,
        }
    }
}

/// Reads the chain key from `directory`, or creates one there, readable by its owner only.
pub(super) fn load_or_create_chain_key(directory: &Path) -> io::Result<ChainKey> {
    let path = directory.join(CHAIN_KEY_FILE);
    let text = atomic_file::read_or_make(&path, || {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| atomic_file::invalid(&path, &InvalidKey::Random))?;
        Ok(Zeroizing::new((STANDARD.encode(bytes.as_ref()) + "\n").into_bytes()))
    })?;
    chain_key_of(&path, &text)
}

fn chain_key_of(path: &Path, text: &[u8]) -> io::Result<ChainKey> {
    ChainKey::from_base64(text).map_err(|error| unusable(path, error))
}

/// Reads or creates the checkpoint key in the same way, and writes its public half beside it for auditors.
pub(super) fn load_or_create_checkpoint_key(directory: &Path) -> io::Result<CheckpointKey> {
    let path = directory.join(CHECKPOINT_KEY_FILE);
    let pem = atomic_file::read_or_make(&path, || {
        let made = CheckpointKey::generate().and_then(|key| key.to_pem());
        made.map(|mut pem| Zeroizing::new(mem::take(&mut *pem).into_bytes()))
            .map_err(|error| atomic_file::invalid(&path, &error))
    })?;
    let key = checkpoint_key_of(&path, &pem)?;
    write_public(directory, &key.public)?;
    Ok(key)
}

fn checkpoint_key_of(path: &Path, pem: &[u8]) -> io::Result<CheckpointKey> {
    CheckpointKey::from_pem(pem).map_err(|error| unusable(path, error))
}

/// Checks, without a change, whether [`load_or_create_chain_key`] can use what is there.
pub(super) fn examine_chain_key(directory: &Path) -> io::Result<()> {
    let path = directory.join(CHAIN_KEY_FILE);
    atomic_file::examine(&path, |text| chain_key_of(&path, text))
}

/// Checks, without a change, whether [`load_or_create_checkpoint_key`] can use what is there.
pub(super) fn examine_checkpoint_key(directory: &Path) -> io::Result<()> {
    let path = directory.join(CHECKPOINT_KEY_FILE);
    atomic_file::examine(&path, |pem| checkpoint_key_of(&path, pem))
}

fn unusable(path: &Path, why: InvalidKey) -> io::Error {
    let help = "restore it from a backup, or move it away: a new one is made, and verify needs both";
    atomic_file::invalid(path, &format!("{why}; {help}"))
}

/// Writes the public half of the checkpoint key. That of an earlier key is moved aside, as only it verifies the
/// checkpoints of its time.
fn write_public(directory: &Path, key: &CheckpointPublicKey) -> io::Result<()> {
    let path = directory.join(CHECKPOINT_PUBLIC_KEY_FILE);
    let found = atomic_file::read(&path)?;
    match found.as_ref().map(|pem| CheckpointPublicKey::from_pem(pem)) {
        Some(Ok(same)) if same.bytes == key.bytes => return Ok(()),
        Some(Ok(earlier)) => {
            let aside = directory.join(format!("audit-checkpoint.{}.pub.pem", earlier.id));
            fs::rename(&path, &aside)?;
            tracing::warn!(
                moved_to = %aside.display(),
                "{CHECKPOINT_PUBLIC_KEY_FILE} did not belong to {CHECKPOINT_KEY_FILE}: it was moved aside and is replaced; verify needs \
                 both"
            );
        }
        Some(Err(_)) => {
            tracing::warn!("{CHECKPOINT_PUBLIC_KEY_FILE} could not be read as a key, and is replaced");
        }
        None => {}
    }
    atomic_file::write(&path, key.to_pem().as_bytes(), 0o644)
}

fn key_id(what: &[u8], bytes: &[u8]) -> Arc<str> {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"doorward audit ");
    context.update(what);
    context.update(bytes);
    HEXLOWER.encode(context.finish().as_ref().get(..8).unwrap_or_default()).into()
}

fn pem(label: &str, der: &[u8]) -> String {
    // Every Ed25519 key fits on one line of 64 characters.
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_for_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let chain = load_or_create_chain_key(directory.path()).unwrap();
        let checkpoint = load_or_create_checkpoint_key(directory.path()).unwrap();
        assert_eq!(load_or_create_chain_key(directory.path()).unwrap().id(), chain.id());
        assert_eq!(load_or_create_checkpoint_key(directory.path()).unwrap().public().id(), checkpoint.public().id());
        for file in [CHAIN_KEY_FILE, CHECKPOINT_KEY_FILE] {
            let mode = fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let public = fs::read(directory.path().join(CHECKPOINT_PUBLIC_KEY_FILE)).unwrap();
        assert_eq!(CheckpointPublicKey::from_pem(&public).unwrap().bytes, checkpoint.public().bytes);
    }

    /// With the public key of a private one that was lost, every later checkpoint looked forged.
    #[test]
    fn the_public_key_is_that_of_the_private_one_and_an_earlier_one_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let public = directory.path().join(CHECKPOINT_PUBLIC_KEY_FILE);
        let read = |path: &Path| CheckpointPublicKey::from_pem(&fs::read(path).unwrap()).unwrap();
        let first = load_or_create_checkpoint_key(directory.path()).unwrap();
        fs::remove_file(directory.path().join(CHECKPOINT_KEY_FILE)).unwrap();
        let second = load_or_create_checkpoint_key(directory.path()).unwrap();
        assert_ne!(second.public().id(), first.public().id());
        assert_eq!(read(&public).id(), second.public().id());
        let aside = directory.path().join(format!("audit-checkpoint.{}.pub.pem", first.public().id()));
        assert_eq!(read(&aside).id(), first.public().id());
        for damaged in ["", "-----BEGIN PUBLIC KEY-----\nMCow"] {
            fs::write(&public, damaged).unwrap();
            load_or_create_checkpoint_key(directory.path()).unwrap();
            assert_eq!(read(&public).id(), second.public().id(), "{damaged:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn bad_keys_are_refused_with_what_to_do() {
        assert_eq!(ChainKey::from_base64(b"***").unwrap_err(), InvalidKey::Base64);
        assert_eq!(ChainKey::from_base64(b"c2hvcnQ=").unwrap_err(), InvalidKey::Short(5));
        assert!(ChainKey::from_base64(format!("{}\n", STANDARD.encode([1; 32])).as_bytes()).is_ok());
        let key = CheckpointKey::generate().unwrap();
        let (private, public) = (key.to_pem().unwrap(), key.public().to_pem());
        assert!(CheckpointKey::from_pem(private.as_bytes()).is_ok());
        assert!(CheckpointPublicKey::from_pem(public.as_bytes()).is_ok());
        assert_eq!(CheckpointKey::from_pem(public.as_bytes()).unwrap_err(), InvalidKey::PrivatePem);
        assert_eq!(CheckpointPublicKey::from_pem(private.as_bytes()).unwrap_err(), InvalidKey::PublicPem);
    }

    #[test]
    fn a_key_never_prints_itself() {
        let key = ChainKey::new(b"0123456789abcdef0123456789abcdef").unwrap();
        assert!(!format!("{key:?}").contains("0123456789abcdef"));
    }
}
