//! SHA-256 digests as arrays, which can be keys, be compared and be stored.

use aws_lc_rs::digest;
use data_encoding::HEXLOWER_PERMISSIVE;

/// The digest of the concatenated parts.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finish()
}

/// Parses a digest of 64 hex digits in either case, with or without the colons that OpenSSL puts between bytes.
pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    HEXLOWER_PERMISSIVE.decode(text.replace(':', "").as_bytes()).ok()?.try_into().ok()
}

/// The digest of data that arrives in pieces.
pub(crate) struct Sha256(digest::Context);

impl Sha256 {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        let mut array = [0; 32];
        array.copy_from_slice(self.0.finish().as_ref());
        array
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256")
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The vector of FIPS 180-2, appendix B.1.
    #[test]
    fn parts_count_as_one_text() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(HEXLOWER.encode(&sha256(&[b"abc"])), expected);
        assert_eq!(HEXLOWER.encode(&sha256(&[b"a", b"", b"bc"])), expected);
    }
}
