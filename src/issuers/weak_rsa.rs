//! RSA public keys that verify correctly but prove nothing, as their private key can be computed.

/// Refuses a weak modulus or exponent; both are big-endian without leading zeros.
pub fn check(modulus: &[u8], exponent: &[u8]) -> Result<(), String> {
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(format!("is an RSA key of {bits} bits; 2048 to 8192 are accepted"));
    }
    if modulus.last().is_none_or(|last| last % 2 == 0) {
        return Err("is an RSA key with an even modulus".to_owned());
    }
    let small = exponent.len() <= 4;
    let exponent = exponent.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    if !small || exponent < 65_537 || exponent % 2 == 0 {
        return Err("is an RSA key whose exponent is not an odd number from 65537 to 2^32".to_owned());
    }
    if is_roca(modulus) {
        return Err("is an RSA key of the weak generator of CVE-2017-15361 (ROCA)".to_owned());
    }
    Ok(())
}

/// Small primes for which 65537 generates few residues: a strong modulus matches all by chance once in 2^27.
const ROCA_PRIMES: [u32; 17] = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157];

/// The fingerprint of Nemec et al., "The Return of Coppersmith's Attack" (2017): the primes were made as
/// k·M + (65537^a mod M), so modulo each small prime the modulus is a power of 65537.
fn is_roca(modulus: &[u8]) -> bool {
    ROCA_PRIMES.iter().all(|prime| {
        let residue = modulus.iter().fold(0_u32, |rest, byte| (rest << 8 | u32::from(*byte)) % prime);
        let mut power = 1;
        for _ in 0..*prime {
            if power == residue {
                return true;
            }
            power = power * (65_537 % prime) % prime;
        }
        false
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A modulus of 2048 bits that is 1 = 65537^0 modulo every prime of the fingerprint.
    pub(crate) fn roca_modulus() -> Vec<u8> {
        let product: u128 = ROCA_PRIMES.iter().map(|prime| u128::from(*prime)).product();
        let mut modulus = vec![0xa5_u8; 256];
        let rest = modulus.iter().fold(0_u128, |rest, byte| (rest << 8 | u128::from(*byte)) % product);
        let add = |modulus: &mut Vec<u8>, mut number: u128| {
            for byte in modulus.iter_mut().rev() {
                number += u128::from(*byte);
                *byte = (number & 0xff) as u8;
                number >>= 8;
            }
        };
        add(&mut modulus, product - rest + 1);
        if modulus[255].is_multiple_of(2) {
            add(&mut modulus, product);
        }
        modulus
    }

    #[test]
    fn weak_keys_are_distinguished_from_good_ones() {
        let good = {
            let mut modulus = vec![0xa5_u8; 256];
            modulus[255] = 0x0f;
            modulus
        };
        let f4 = [1, 0, 1];
        assert_eq!(check(&good, &f4), Ok(()));
        for (row, modulus, exponent) in [
            ("oauth:22 1024 bits", vec![0xa5; 128], &f4[..]),
            ("oauth:22 2047 bits", [vec![0x55], vec![0xa5; 255]].concat(), &f4[..]),
            ("oauth:22 16384 bits", vec![0xa5; 2048], &f4[..]),
            ("oauth:22 even modulus", vec![0xa4; 256], &f4[..]),
            ("oauth:22 e=1", good.clone(), &[1][..]),
            ("oauth:22 e=3", good.clone(), &[3][..]),
            ("oauth:22 even e", good.clone(), &[1, 0, 2][..]),
            ("oauth:22 no e", good.clone(), &[][..]),
            ("oauth:22 huge e", good, &[1, 0, 0, 0, 1][..]),
            ("oauth:22 ROCA", roca_modulus(), &f4[..]),
        ] {
            assert!(check(&modulus, exponent).is_err(), "{row}");
        }
    }
}
