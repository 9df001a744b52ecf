//! The hash chain, in which each line authenticates all lines before it.
//!
//! A line ends with its number, the code of the previous line and its own code:
//!
//! ```text
//! {...,"seq":7,"prev":"<64 hex digits>","mac":"<64 hex digits>"}
//! ```
//!
//! `mac` is HMAC-SHA256 (RFC 2104) with the chain key over the bytes of the line before `,"mac":`, which include its
//! number and the code of the previous line. A checkpoint also carries an Ed25519 signature (RFC 8032) over everything
//! before `,"sig":`, so that a holder of the public key alone can verify it.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;

use super::keys::{ChainKey, CheckpointKey};

/// The longest line, with its line end.
pub const MAX_LINE: usize = 16 * 1024;

/// The maximum length of the end of a line, including signature and line end.
pub(super) const SEAL: usize = 8 + 20 + 2 * (9 + 64) + 9 + 128 + 2;

const MAC: &[u8] = b",\"mac\":\"";
const PREV: &[u8] = b",\"prev\":\"";
const SEQ: &[u8] = b",\"seq\":";
const SIG: &[u8] = b",\"sig\":\"";

/// A code of 32 bytes as 64 lower-case hex digits, as lines carry it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mac([u8; 64]);

impl Mac {
    /// The code that the first line of a chain links to.
    pub(super) const ZERO: Self = Self([b'0'; 64]);

    /// Parses the digits.
    pub(super) fn from_digits(digits: &str) -> Option<Self> {
        let valid = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        Some(Self(digits.as_bytes().try_into().ok().filter(|_| valid)?))
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reference to a line of the chain, which the next line links to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Counts from 1.
    pub(super) seq: u64,
    pub(super) mac: Mac,
}

impl Link {
    /// The link of the first line.
    pub(super) const NONE: Self = Self { seq: 0, mac: Mac::ZERO };
}

/// The end of a chain that is being written.
#[derive(Debug)]
pub(super) struct Chain {
    key: ChainKey,
    last: Link,
}

impl Chain {
    pub(super) const fn new(key: ChainKey, last: Link) -> Self {
        Self { key, last }
    }

    /// Returns the last line.
    pub(super) const fn last(&self) -> Link {
        self.last
    }

    /// Turns `out[start..]`, a JSON object without its closing brace, into the next line.
    pub(super) fn seal(&mut self, out: &mut Vec<u8>, start: usize, signer: Option<&CheckpointKey>) {
        let seq = self.last.seq + 1;
        out.extend_from_slice(SEQ);
        out.extend_from_slice(seq.to_string().as_bytes());
        out.extend_from_slice(PREV);
        out.extend_from_slice(&self.last.mac.0);
        out.push(b'"');
        let mac = self.key.mac(out.get(start..).unwrap_or_default());
        out.extend_from_slice(MAC);
        out.extend_from_slice(&mac.0);
        out.push(b'"');
        if let Some(signer) = signer {
            let signature = signer.sign(out.get(start..).unwrap_or_default());
            out.extend_from_slice(SIG);
            push_hex(&signature, out);
            out.push(b'"');
        }
        out.extend_from_slice(b"}\n");
        self.last = Link { seq, mac };
    }
}

impl ChainKey {
    pub(super) fn mac(&self, bytes: &[u8]) -> Mac {
        let tag = hmac::sign(&self.hmac, bytes);
        let mut mac = [0; 64];
        HEXLOWER.encode_mut(tag.as_ref(), &mut mac);
        Mac(mac)
    }
}

/// A line split into its parts, not yet verified.
#[derive(Debug)]
pub(super) struct Sealed<'a> {
    pub(super) link: Link,
    pub(super) prev: Mac,
    /// The bytes that the code covers.
    pub(super) covered: &'a [u8],
    /// The bytes that the signature covers, and the signature.
    pub(super) signature: Option<(&'a [u8], [u8; 64])>,
}

impl<'a> Sealed<'a> {
    /// Splits a line without its line end; none if it does not end as a line of the trail does.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let body = line.strip_suffix(b"\"}")?;
        let (body, signature) = match split_digits::<128>(body, SIG) {
            Some((signed, digits)) => (signed.strip_suffix(b"\"")?, Some((signed, from_hex(digits)?))),
            None => (body, None),
        };
        let (covered, mac) = split_digits::<64>(body, MAC)?;
        let (before, prev) = split_digits::<64>(covered.strip_suffix(b"\"")?, PREV)?;
        let digits = before.len() - before.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (before, number) = before.split_at_checked(digits)?;
        before.strip_suffix(SEQ)?;
        let seq = std::str::from_utf8(number).ok()?.parse().ok()?;
        Some(Self { link: Link { seq, mac: Mac(*mac) }, prev: Mac(*prev), covered, signature })
    }
}

/// Splits `,"name":"digits` off the end, if it is there and all digits are lower-case hex.
fn split_digits<'a, const N: usize>(bytes: &'a [u8], name: &[u8]) -> Option<(&'a [u8], &'a [u8; N])> {
    let (rest, digits) = bytes.split_last_chunk::<N>()?;
    let rest = rest.strip_suffix(name)?;
    digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some((rest, digits))
}

pub(super) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    if let Some(digits) = out.get_mut(start..) {
        HEXLOWER.encode_mut(bytes, digits);
    }
}

fn from_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    HEXLOWER.decode(digits).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(chain: &mut Chain, signer: Option<&CheckpointKey>) -> Vec<u8> {
        let mut out = br#"{"a":1"#.to_vec();
        chain.seal(&mut out, 0, signer);
        assert_eq!(out.pop(), Some(b'\n'));
        out
    }

    #[test]
    fn a_line_can_be_taken_apart_again() {
        let key = ChainKey::new(&[7; 32]).unwrap();
        let signer = CheckpointKey::generate().unwrap();
        let mut chain = Chain::new(key.clone(), Link::NONE);
        let first = line(&mut chain, None);
        let second = line(&mut chain, Some(&signer));
        let (first, second) = (Sealed::parse(&first).unwrap(), Sealed::parse(&second).unwrap());
        assert_eq!((first.link.seq, first.prev), (1, Mac::ZERO));
        assert_eq!((second.link.seq, second.prev), (2, first.link.mac));
        assert_eq!(key.mac(second.covered), second.link.mac);
        let (signed, signature) = second.signature.unwrap();
        assert!(signer.public().verifies(signed, &signature));
        assert!(!signer.public().verifies(second.covered, &signature));
        serde_json::from_slice::<serde_json::Value>(&line(&mut chain, Some(&signer))).unwrap();
    }

    #[test]
    fn a_code_can_be_checked_with_common_tools() {
        // printf '{"a":1,"seq":1,"prev":"000...0"' | openssl dgst -sha256 -hmac ...
        let key = ChainKey::new(&[0x0b; 32]).unwrap();
        let mut chain = Chain::new(key, Link::NONE);
        let line = String::from_utf8(line(&mut chain, None)).unwrap();
        assert!(line.starts_with(&format!(r#"{{"a":1,"seq":1,"prev":"{}","mac":""#, "0".repeat(64))));
    }

    #[test]
    fn other_text_is_no_line() {
        for text in ["", "{}", r#"{"seq":1,"prev":"","mac":""}"#, "plain text"] {
            assert!(Sealed::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
