//! SHA-256 as an array, which can be a key, be compared and be kept.

use aws_lc_rs::digest;

/// The digest of the parts, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut array = [0; 32];
    array.copy_from_slice(context.finish().as_ref());
    array
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
