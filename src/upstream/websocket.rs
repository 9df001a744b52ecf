//! Tracks where WebSocket frames begin and end (RFC 6455 section 5.2), so that Doorward's own close frame never lands
//! within another frame.

use crate::streams::CutReason;

/// Tracks the frames of one direction. Reads only their headers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FrameTracker {
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header { bytes: [u8; 10], have: usize },
    Payload { left: u64 },
}

impl Default for State {
    fn default() -> Self {
        Self::Header { bytes: [0; 10], have: 0 }
    }
}

impl FrameTracker {
    /// Whether the bytes so far end with a whole frame.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// How many of `bytes`, which come next, belong to the current frame: none between frames.
    pub(super) fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        let mut probe = *self;
        let mut used = 0;
        while !probe.is_between_frames() && used < bytes.len() {
            used += probe.step(bytes.get(used..).unwrap_or_default());
        }
        used
    }

    /// Advances by `bytes`.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = self.step(bytes);
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// Consumes a header byte, or as much of the payload as there is.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::Header { bytes: header, have } => {
                let (Some(next), Some(place)) = (bytes.first(), header.get_mut(*have)) else { return 0 };
                *place = *next;
                *have += 1;
                if let Some(left) = payload_length(header.get(..*have).unwrap_or_default()) {
                    self.state = if left == 0 { State::default() } else { State::Payload { left } };
                }
                1
            }
            State::Payload { left } => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= used as u64;
                if *left == 0 {
                    self.state = State::default();
                }
                used
            }
        }
    }
}

/// The number of bytes after a header, counting the masking key as payload; `None` while the header is incomplete.
fn payload_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let key = if second & 0x80 != 0 { 4 } else { 0 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)),
        127 => u64::from_be_bytes(header.get(2..10)?.try_into().ok()?),
        length => u64::from(length),
    };
    Some(length.saturating_add(key))
}

/// An unmasked close frame, as a server sends it, with the reason (RFC 6455 sections 5.5.1 and 7.4.1).
pub(super) fn close_frame(reason: CutReason) -> Vec<u8> {
    let code: u16 = match reason {
        CutReason::Idle => 1001,
        CutReason::Expired
        | CutReason::Overlong
        | CutReason::SignedOut
        | CutReason::Replaced
        | CutReason::Revoked
        | CutReason::PermissionLost => 1008,
        // Registered with IANA as "Service Restart": the client should reconnect.
        CutReason::Draining => 1012,
    };
    let text = reason.as_str().as_bytes();
    let mut frame = vec![0x88, u8::try_from(2 + text.len()).unwrap_or(2)];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(text);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: usize, is_masked: bool) -> Vec<u8> {
        let mask = if is_masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match payload {
            0..126 => frame.push(mask | payload as u8),
            126..65536 => {
                frame.push(mask | 126);
                frame.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        frame.extend(std::iter::repeat_n(0x88, payload + if is_masked { 4 } else { 0 }));
        frame
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_are_split(
            payloads in prop::collection::vec(
                (prop_oneof![0usize..200, Just(65535), Just(65536), 65000usize..70000], any::<bool>()), 1..6),
            splits in prop::collection::vec(1usize..5000, 1..40),
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (payload, is_masked) in payloads {
                bytes.extend(frame(payload, is_masked));
                ends.push(bytes.len());
            }
            let mut tracker = FrameTracker::default();
            let mut at = 0;
            for split in splits.iter().cycle() {
                prop_assert_eq!(tracker.is_between_frames(), ends.contains(&at));
                let next_end = ends.iter().copied().find(|end| *end >= at).unwrap();
                prop_assert_eq!(tracker.rest_of_frame(&bytes[at..]), next_end - at);
                let to = (at + split).min(bytes.len());
                tracker.advance(&bytes[at..to]);
                at = to;
                if at == bytes.len() {
                    break;
                }
            }
            prop_assert!(tracker.is_between_frames());
        }

        #[test]
        fn no_bytes_upset_the_tracker(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let mut tracker = FrameTracker::default();
            for chunk in chunks {
                prop_assert!(tracker.rest_of_frame(&chunk) <= chunk.len());
                tracker.advance(&chunk);
            }
        }
    }

    #[test]
    fn a_close_frame_is_one_whole_small_frame() {
        for (reason, code) in [
            (CutReason::Idle, 1001u16),
            (CutReason::Expired, 1008),
            (CutReason::Overlong, 1008),
            (CutReason::SignedOut, 1008),
            (CutReason::Replaced, 1008),
            (CutReason::Revoked, 1008),
            (CutReason::PermissionLost, 1008),
            (CutReason::Draining, 1012),
        ] {
            let frame = close_frame(reason);
            assert_eq!(frame[0], 0x88);
            assert_eq!(frame[2..4], code.to_be_bytes());
            assert_eq!(&frame[4..], reason.as_str().as_bytes());
            assert_eq!(usize::from(frame[1]) + 2, frame.len());
            let mut tracker = FrameTracker::default();
            tracker.advance(&frame);
            assert!(tracker.is_between_frames());
        }
    }
}
