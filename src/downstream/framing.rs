//! Finds where HTTP/1.1 requests begin and end, and checks that their heads say so in one way only.
//!
//! hyper accepts three shapes that a proxy must not (RFC 9112 sections 2.2, 6.1 and 6.3): it drops a Content-Length
//! beside Transfer-Encoding without telling the service, folds equal Content-Length fields into one, and accepts a bare
//! LF as the end of a line. Two parsers that differ in such a shape see different requests, which is request smuggling.
//! The [`Scanner`] inspects the same bytes on their way to hyper and notes the shapes; the request is then refused with
//! 400 and the connection closed.
//!
//! It changes nothing and allocates nothing. The cost is one search for line ends over each head. It follows bodies by
//! their Content-Length. A chunked body is not followed: the connection is closed after it, so that nothing can come
//! after its end.

/// How much of a line is inspected, with room for any length and some spaces. The end of a longer line that a read cut
/// off is not known, so a line that says where a body ends may not be longer, wherever it is cut.
const CARRY: usize = 64;

/// A defect in the heads of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// Both Content-Length and Transfer-Encoding, or one of them twice, or a line so long that its end may be lost.
    AmbiguousLength,
    /// A line of a head ends in LF without CR.
    BareLineFeed,
}

/// Follows the bytes of one connection.
#[derive(Debug)]
pub(super) struct Scanner {
    mode: Mode,
    /// Whether the request line of this head has begun.
    started: bool,
    length: Option<u64>,
    chunked: bool,
    defect: Option<Defect>,
    heads: u32,
    /// The line that the last read cut off, as far as it matters.
    carry: [u8; CARRY],
    carried: usize,
    /// The byte before the next one, for a CR that the last read ended with.
    last: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Head,
    /// This many bytes of a body are still to come.
    Body(u64),
    /// No longer followed.
    Lost,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            mode: Mode::Head,
            started: false,
            length: None,
            chunked: false,
            defect: None,
            heads: 0,
            carry: [0; CARRY],
            carried: 0,
            last: 0,
        }
    }
}

impl Scanner {
    /// Inspects bytes as they arrive.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.mode {
                Mode::Lost => return,
                Mode::Body(left) => {
                    let here = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    let left = left.saturating_sub(here as u64);
                    self.mode = if left == 0 { Mode::Head } else { Mode::Body(left) };
                    bytes = bytes.get(here..).unwrap_or_default();
                }
                Mode::Head => bytes = self.head(bytes),
            }
        }
    }

    /// Whether part of a head has arrived but not its end.
    pub(super) fn is_within_head(&self) -> bool {
        self.started || self.carried > 0
    }

    /// Whether bytes of a body may still be on their way.
    pub(super) fn is_within_body(&self) -> bool {
        !matches!(self.mode, Mode::Head)
    }

    /// How many heads have ended since the last call.
    pub(super) fn take_heads(&mut self) -> u32 {
        std::mem::take(&mut self.heads)
    }

    /// The first defect of any head so far.
    pub(super) fn defect(&self) -> Option<Defect> {
        self.defect
    }

    /// Inspects the lines up to the end of the head or of the bytes. Returns the bytes after the head.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut begin = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = bytes.get(begin..end).unwrap_or_default();
            let before = line.last().copied().unwrap_or(if begin == 0 { self.last } else { b'\n' });
            if before != b'\r' {
                self.note(Defect::BareLineFeed);
            }
            begin = end + 1;
            let ended = if self.carried == 0 {
                self.line(line)
            } else {
                self.keep(line);
                let (carry, carried) = (self.carry, std::mem::take(&mut self.carried));
                self.line(carry.get(..carried).unwrap_or_default())
            };
            if ended {
                self.last = b'\n';
                self.end();
                return bytes.get(begin..).unwrap_or_default();
            }
        }
        self.keep(bytes.get(begin..).unwrap_or_default());
        self.last = bytes.last().copied().unwrap_or(self.last);
        &[]
    }

    /// Stores the beginning of a line that is cut off.
    fn keep(&mut self, part: &[u8]) {
        let room = self.carry.get_mut(self.carried..).unwrap_or_default();
        for (slot, byte) in room.iter_mut().zip(part) {
            *slot = *byte;
        }
        self.carried = (self.carried + part.len()).min(CARRY);
    }

    /// Inspects one line. Returns `true` for the empty one that ends the head.
    fn line(&mut self, line: &[u8]) -> bool {
        let is_long = line.len() >= CARRY;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !self.started {
            // Empty lines before a request line are allowed (RFC 9112 section 2.2).
            self.started = !line.is_empty();
            return false;
        }
        match line.first() {
            None => return true,
            Some(b'c' | b'C') => {
                if let Some(value) = value_of(line, b"content-length:") {
                    if self.length.is_some() || is_long {
                        self.note(Defect::AmbiguousLength);
                    }
                    // A length that is not a number is for hyper to refuse.
                    self.length = Some(number(value).unwrap_or(u64::MAX));
                }
            }
            Some(b't' | b'T') if value_of(line, b"transfer-encoding:").is_some() => {
                if self.chunked || is_long {
                    self.note(Defect::AmbiguousLength);
                }
                self.chunked = true;
            }
            Some(_) => {}
        }
        false
    }

    fn end(&mut self) {
        if self.chunked && self.length.is_some() {
            self.note(Defect::AmbiguousLength);
        }
        self.heads = self.heads.saturating_add(1);
        self.mode = match (self.chunked, self.length) {
            (true, _) => Mode::Lost,
            (false, None | Some(0)) => Mode::Head,
            (false, Some(length)) => Mode::Body(length),
        };
        self.started = false;
        self.length = None;
        self.chunked = false;
    }

    fn note(&mut self, defect: Defect) {
        self.defect = self.defect.or(Some(defect));
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (head, value) = line.split_at_checked(name.len())?;
    head.eq_ignore_ascii_case(name).then_some(value)
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(parts: &[&[u8]]) -> Scanner {
        let mut scanner = Scanner::default();
        for part in parts {
            scanner.scan(part);
        }
        scanner
    }

    const HOST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

    #[test]
    fn shapes() {
        let length = |blanks: usize| format!("Content-Length:{}30\r\n\r\n", " ".repeat(blanks));
        let coding = |blanks: usize| format!("Transfer-Encoding:{}chunked\r\n\r\n", " ".repeat(blanks));
        // With the CR, a line of 63 bytes is the longest that is accepted.
        let (long_length, longest_length) = (length(48), length(45));
        let (long_coding, longest_coding) = (coding(39), coding(37));
        let cases = [
            ("more blanks before a length than are kept", &*long_length, Some(Defect::AmbiguousLength)),
            ("as many as are kept", &*longest_length, None),
            ("more blanks before a coding than are kept", &*long_coding, Some(Defect::AmbiguousLength)),
            ("as many as are kept", &*longest_coding, None),
            ("no body", "\r\n", None),
            ("a length", "Content-Length: 3\r\n\r\nabc", None),
            ("chunked", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
            ("other names", "Content-Type: a\r\nTe: trailers\r\nContent-Lengths: 1\r\n\r\n", None),
            (
                "length and chunked",
                "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some(Defect::AmbiguousLength),
            ),
            (
                "chunked and length",
                "tRANSFER-eNCODING: chunked\r\ncONTENT-lENGTH: 3\r\n\r\n",
                Some(Defect::AmbiguousLength),
            ),
            ("two lengths", "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", Some(Defect::AmbiguousLength)),
            (
                "two codings",
                "Transfer-Encoding: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some(Defect::AmbiguousLength),
            ),
            ("bare LF", "X: a\nY: b\r\n\r\n", Some(Defect::BareLineFeed)),
            ("bare LF at the end", "X: a\r\n\n", Some(Defect::BareLineFeed)),
            ("LF in a body", "Content-Length: 3\r\n\r\n\n\n\n", None),
            ("a head in a body", "Content-Length: 47\r\n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", None),
        ];
        for (name, rest, defect) in cases {
            let bytes = [HOST, rest].concat().into_bytes();
            assert_eq!(scan(&[&bytes]).defect(), defect, "{name}");
            for cut in 0..bytes.len() {
                assert_eq!(scan(&[&bytes[..cut], &bytes[cut..]]).defect(), defect, "{name} cut at {cut}");
            }
        }
    }

    #[test]
    fn heads_are_found_behind_bodies() {
        let bytes = b"\r\nPOST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdGET / HTTP/1.1\r\n\r\nGET / HT";
        let mut scanner = scan(&[bytes]);
        assert_eq!(scanner.take_heads(), 2);
        assert!(scanner.is_within_head() && !scanner.is_within_body());
        assert!(!scan(&[b"GET / HTTP/1.1\r\n\r\n"]).is_within_head());
        assert!(scan(&[b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabc"]).is_within_body());
    }

    proptest! {
        #[test]
        fn a_head_is_scanned_alike_however_it_is_split(bytes in "(GET / HTTP/1.1\r\n|Content-Length: [0-9]{1,2}\r?\n|Transfer-Encoding: chunked\r\n|X: y\r?\n|\r\n){0,12}", step in 1_usize..20) {
            let whole = scan(&[bytes.as_bytes()]);
            let parts: Vec<&[u8]> = bytes.as_bytes().chunks(step).collect();
            let cut = scan(&parts);
            prop_assert_eq!(whole.defect(), cut.defect());
            prop_assert_eq!(whole.heads, cut.heads);
            prop_assert_eq!(whole.mode, cut.mode);
        }
    }
}
