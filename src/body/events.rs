//! Finds where one event of a watch ends and the next begins, from the bytes in transit.

use http::{HeaderMap, header};

/// The API server's media type for a watch in protobuf, without the parameter `stream`.
const PROTOBUF: &[u8] = b"application/vnd.kubernetes.protobuf";

/// Its media type for a watch in lines of JSON, without parameters.
const JSON: &[u8] = b"application/json";

/// How many bytes encode the length of a frame, the highest first.
const LENGTH: u8 = 4;

/// The position within a watch. Nothing of it is stored but counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// Each event ends a line, as in JSON.
    Lines { is_at_end: bool },
    /// Each event is a frame: a length and as many bytes. `read` bytes of the length have arrived. `left` is the part
    /// of the length that is known, and once it is complete, the number of bytes still to come.
    Frames { read: u8, left: usize },
    /// It is unknown where events end, as in CBOR, except before the first byte.
    Unknown { has_begun: bool },
}

impl Events {
    pub const LINES: Self = Self::Lines { is_at_end: true };
    pub const FRAMES: Self = Self::Frames { read: 0, left: 0 };
    pub const UNKNOWN: Self = Self::Unknown { has_begun: false };

    /// The encoding of events in a response with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(header::CONTENT_TYPE).map_or(&[][..], |kind| kind.as_bytes());
        let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        match headers.contains_key(header::CONTENT_ENCODING) {
            false if essence.eq_ignore_ascii_case(JSON) => Self::LINES,
            false if essence.eq_ignore_ascii_case(PROTOBUF) => Self::FRAMES,
            _ => Self::UNKNOWN,
        }
    }

    pub fn is_between(self) -> bool {
        matches!(
            self,
            Self::Lines { is_at_end: true } | Self::Frames { read: 0, .. } | Self::Unknown { has_begun: false }
        )
    }

    pub(super) fn pass(&mut self, mut data: &[u8]) {
        match self {
            Self::Lines { is_at_end } => {
                if let Some(last) = data.last() {
                    *is_at_end = *last == b'\n';
                }
            }
            Self::Unknown { has_begun } => *has_begun |= !data.is_empty(),
            Self::Frames { read, left } => {
                while let Some((first, rest)) = data.split_first() {
                    if *read < LENGTH {
                        *left = (*left << 8) | usize::from(*first);
                        *read += 1;
                        data = rest;
                    } else {
                        let passed = data.len().min(*left);
                        *left -= passed;
                        data = data.get(passed..).unwrap_or_default();
                    }
                    if *read == LENGTH && *left == 0 {
                        *read = 0;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(pairs: &[(header::HeaderName, &'static str)]) -> Events {
        Events::of(&pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn the_framing_of_a_watch_follows_from_its_content_type() {
        use header::{CONTENT_ENCODING, CONTENT_TYPE};
        for kind in [
            "application/vnd.kubernetes.protobuf;stream=watch",
            "Application/vnd.Kubernetes.protobuf ; stream=watch",
            "application/vnd.kubernetes.protobuf",
        ] {
            assert_eq!(of(&[(CONTENT_TYPE, kind)]), Events::FRAMES, "{kind}");
            assert_eq!(of(&[(CONTENT_TYPE, kind), (CONTENT_ENCODING, "gzip")]), Events::UNKNOWN, "{kind}");
        }
        for kind in ["application/json", "application/json;stream=watch", "Application/JSON ; as=Table"] {
            assert_eq!(of(&[(CONTENT_TYPE, kind)]), Events::LINES, "{kind}");
            assert_eq!(of(&[(CONTENT_TYPE, kind), (CONTENT_ENCODING, "gzip")]), Events::UNKNOWN, "{kind}");
        }
        for kind in ["application/cbor-seq", "application/vnd.kubernetes.protobuf2", "application/json2", ""] {
            assert_eq!(of(&[(CONTENT_TYPE, kind)]), Events::UNKNOWN, "{kind}");
        }
        assert_eq!(of(&[]), Events::UNKNOWN);
    }

    /// In CBOR a newline is a number, a length or a part of a text: an event was taken for complete in its middle, and
    /// for cut where it was complete.
    #[test]
    fn a_watch_whose_events_cannot_be_parsed_is_never_between_two_events() {
        let mut events = of(&[(header::CONTENT_TYPE, "application/cbor-seq")]);
        events.pass(b"");
        assert!(events.is_between(), "nothing has come");
        for sent in [&b"\xa2dtype\n"[..], b"\xf6", b""] {
            events.pass(sent);
            assert!(!events.is_between(), "{sent:?}");
        }
    }

    /// A frame of protobuf may end in a newline, or contain one, and be complete or not.
    #[test]
    fn an_event_in_protobuf_ends_where_its_length_says() {
        for (sent, expected) in [
            (&b""[..], true),
            (b"\0\0", false),
            (b"\0\0\0\x02", false),
            (b"\0\0\0\x02\n", false),
            (b"\0\0\0\x02ab", true),
            (b"\0\0\0\x02a\n", true),
            (b"\0\0\0\0", true),
            (b"\0\0\0\x02ab\0\0\0\x01", false),
            (b"\0\0\0\x02ab\0\0\0\0\0\0\0\x01c", true),
            (b"\xff\xff\xff\xffab\n", false),
        ] {
            let mut events = Events::FRAMES;
            events.pass(sent);
            assert_eq!(events.is_between(), expected, "{sent:?}");
        }
        let long = [&[0, 1, 0, 1][..], &vec![b'\n'; 0x1_0001]].concat();
        let mut events = Events::FRAMES;
        events.pass(&long[..0x1_0004]);
        assert!(!events.is_between());
        events.pass(&long[0x1_0004..]);
        assert!(events.is_between());
    }

    proptest! {
        #[test]
        fn it_is_the_same_however_the_bytes_are_split(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5),
            pieces in proptest::collection::vec(1_usize..7, 1..20),
        ) {
            let mut ends = vec![0];
            let mut sent = Vec::new();
            for frame in frames {
                sent.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
                sent.extend(frame);
                ends.push(sent.len());
            }
            let (mut events, mut at) = (Events::FRAMES, 0);
            for piece in pieces.iter().cycle() {
                prop_assert_eq!(events.is_between(), ends.contains(&at), "{} of {:?}", at, &ends);
                if at == sent.len() {
                    break;
                }
                let end = (at + piece).min(sent.len());
                events.pass(&sent[at..end]);
                at = end;
            }
        }
    }
}
