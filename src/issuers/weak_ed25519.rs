//! Ed25519 public keys of small order. The crypto library accepts them, and anybody can then write down a signature
//! that is valid for every message, or for one in eight.

/// The `y` of all points whose order divides 8, little-endian without the sign of `x`, in every form that decodes to
/// them (Chalkias, Garillot, Nikolaenko, "Taming the Many EdDSAs", 2020, table 1).
const SMALL_ORDER: [[u8; 32]; 7] = [
    // Order 4.
    [0; 32],
    // Order 1.
    with_ends(1, 0, 0),
    // Order 8.
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    // p - 1, of order 2, and p and p + 1, which are 0 and 1 once more.
    with_ends(0xec, 0xff, 0x7f),
    with_ends(0xed, 0xff, 0x7f),
    with_ends(0xee, 0xff, 0x7f),
];

const fn with_ends(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// Refuses a public key of small order; `x` is the member of the JWK (RFC 8037 section 2).
pub fn check(x: &[u8]) -> Result<(), String> {
    let small = <[u8; 32]>::try_from(x).is_ok_and(|mut point| {
        point[31] &= 0x7f;
        SMALL_ORDER.contains(&point)
    });
    if small { Err("is an Ed25519 key of small order, which proves nothing".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, ParsedPublicKey};

    use super::*;

    /// Found by fuzzing: the neutral point with the scalar 0 "signs" under such a key.
    #[test]
    fn a_key_of_small_order_is_refused_and_the_library_alone_would_take_it() {
        let mut signature = [0; 64];
        signature[0] = 1;
        let mut forged = 0;
        for point in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut point = point;
                point[31] |= sign;
                assert!(check(&point).is_err(), "{point:x?}");
                let Ok(key) = ParsedPublicKey::new(&ED25519, point) else { continue };
                forged += usize::from((0..64_u8).any(|message| key.verify_sig(&[message], &signature).is_ok()));
            }
        }
        assert!(forged > 0, "if the library refuses them all by now, this file can go");
        assert_eq!(check(&[9; 32]), Ok(()));
        assert_eq!(check(&[0; 31]), Ok(()), "its length is looked at elsewhere");
    }
}
