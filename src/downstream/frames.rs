//! Tells how much of a head has arrived, and why h2 ended a connection for pieces of bodies: hyper reports that there
//! was too much of something, and not of what.
//!
//! h2 says `too_many_data_frames` in two cases: for empty pieces that end nothing, of which it takes a hundred on a
//! connection (CVE-2019-9518), and for small pieces that wait to be read, which gRPC clients send in good faith to a
//! slow upstream. The first are counted here as they arrive, by the headers of the frames. h2 gives the reason in
//! GOAWAY, which is the last frame that it writes, so the bytes that were written last distinguish this end from
//! others, and from a response that contains the same words.

/// The limit of h2 (`MAX_RECV_EMPTY_DATA_FRAMES`).
const MOST_EMPTY: u32 = 100;

/// The length of the client's preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// RFC 9113 sections 4.1 and 6.1.
const HEADER: usize = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// The frames of a head, and the flag of the last one (RFC 9113 sections 6.2 and 6.10).
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The GOAWAY frame without the number of the last stream: its header, ENHANCE_YOUR_CALM, and the reason.
const GOAWAY: (&[u8], &[u8]) = (b"\0\0\x1c\x07\0\0\0\0\0", b"\0\0\0\x0btoo_many_data_frames");
const STREAM: usize = 4;
const LAST: usize = GOAWAY.0.len() + STREAM + GOAWAY.1.len();

/// Follows the bytes of one HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; HEADER],
    /// How much of the next header has arrived.
    here: usize,
    /// The length of the payload of a padded piece whose first byte, the length of the padding, has not arrived yet.
    padded: Option<usize>,
    /// How many bytes before that are skipped.
    skip: usize,
    empty: u32,
    /// The length of the head that the current frame belongs to, as far as its frames have begun.
    head: usize,
    /// Whether the current frame is the last one of a head, or belongs to none.
    ends_head: bool,
    /// The bytes that were written last.
    last: [u8; LAST],
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: [0; HEADER],
            here: 0,
            padded: None,
            skip: PREFACE,
            empty: 0,
            head: 0,
            ends_head: true,
            last: [0; LAST],
        }
    }
}

impl Frames {
    /// Inspects bytes of the client as they arrive.
    pub(super) fn received(&mut self, mut bytes: &[u8]) {
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            let Some((byte, rest)) = bytes.get(passed..).and_then(<[u8]>::split_first) else { return };
            bytes = rest;
            if let Some(payload) = self.padded.take() {
                // The byte itself is neither padding nor data.
                self.empty += u32::from(usize::from(*byte) + 1 == payload);
                self.skip = payload - 1;
            } else if let Some(next) = self.header.get_mut(self.here) {
                *next = *byte;
                self.here += 1;
                if self.here == HEADER {
                    self.here = 0;
                    self.begin();
                }
            }
        }
    }

    /// A header is complete.
    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        let payload = u32::from_be_bytes([0, high, middle, low]) as usize;
        if self.ends_head {
            self.head = 0;
        }
        let is_of_head = kind == HEADERS || kind == CONTINUATION;
        self.ends_head = !is_of_head || flags & END_HEADERS != 0;
        if is_of_head {
            self.head = self.head.saturating_add(payload);
        }
        match kind == DATA && flags & END_STREAM == 0 {
            true if payload == 0 => self.empty += 1,
            true if flags & PADDED != 0 => self.padded = Some(payload),
            _ => self.skip = payload,
        }
    }

    /// How many bytes have arrived of a head that is not whole.
    pub(super) fn of_head(&self) -> usize {
        if self.ends_head && self.skip == 0 { 0 } else { self.head.saturating_sub(self.skip) }
    }

    /// Inspects bytes that were written.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        let new = bytes.get(bytes.len().saturating_sub(LAST)..).unwrap_or_default();
        self.last.rotate_left(new.len());
        if let Some(end) = self.last.get_mut(LAST - new.len()..) {
            end.copy_from_slice(new);
        }
    }

    /// Whether h2 has ended the connection for small pieces that waited to be read.
    pub(super) fn ended_for_small_pieces(&self) -> bool {
        let (header, why) = GOAWAY;
        self.empty <= MOST_EMPTY && self.last.starts_with(header) && self.last.ends_with(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &1_u32.to_be_bytes(), payload].concat()
    }

    fn goaway(why: &[u8]) -> Vec<u8> {
        let payload = [&7_u32.to_be_bytes()[..], &11_u32.to_be_bytes(), why].concat();
        let mut frame = frame(7, 0, &payload);
        frame[5..9].fill(0);
        frame
    }

    fn preface() -> Vec<u8> {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
    }

    #[test]
    fn empty_pieces_are_counted_as_h2_counts_them_wherever_reads_cut_them() {
        let bytes = [
            preface(),
            frame(4, 0, &[]),
            frame(1, 4, &[0; 40]),
            frame(DATA, 0, &[]),
            frame(DATA, PADDED, &[0]),
            frame(DATA, PADDED, &[3, 0, 0, 0]),
            // None of these counts: one with data, one that ends its stream, and what only looks like one within a
            // piece.
            frame(DATA, PADDED, &[1, b'x', 0]),
            frame(DATA, 0, b"x"),
            frame(DATA, END_STREAM, &[]),
            frame(DATA, END_STREAM | PADDED, &[0]),
            frame(DATA, 0, &frame(DATA, 0, &[]).repeat(9)),
            frame(DATA, 0, &[0; 70_000]),
            frame(6, 1, &[0; 8]),
            frame(DATA, 0, &[]),
        ]
        .concat();
        for size in [1, 2, 7, 10, 4096, bytes.len()] {
            let mut frames = Frames::default();
            bytes.chunks(size).for_each(|read| frames.received(read));
            assert_eq!((frames.empty, frames.here, frames.skip), (4, 0, 0), "in reads of {size}");
        }
    }

    #[test]
    fn a_head_counts_from_its_first_byte_until_its_last_frame_is_whole() {
        let mut frames = Frames::default();
        let mut arrive = |bytes: &[u8]| {
            frames.received(bytes);
            frames.of_head()
        };
        assert_eq!(arrive(&preface()), 0);
        assert_eq!(arrive(&frame(4, 0, &[0; 600])), 0);
        assert_eq!(arrive(&frame(DATA, PADDED, &[0; 600])[..100]), 0);
        assert_eq!(arrive(&[0; 509]), 0);
        let (begin, end) = (frame(HEADERS, 0, &[0; 600]), frame(CONTINUATION, END_HEADERS, &[0; 50]));
        assert_eq!(arrive(&begin[..HEADER]), 0);
        assert_eq!(arrive(&begin[HEADER..109]), 100);
        assert_eq!(arrive(&begin[109..]), 600);
        assert_eq!(arrive(&frame(CONTINUATION, 0, &[0; 70])), 670);
        assert_eq!(arrive(&end[..HEADER]), 670);
        assert_eq!(arrive(&end[HEADER..HEADER + 49]), 719);
        assert_eq!(arrive(&end[HEADER + 49..]), 0);
        assert_eq!(arrive(&frame(HEADERS, END_HEADERS, &[0; 600])[..109]), 100);
        assert_eq!(arrive(&[0; 500]), 0);
        assert_eq!(arrive(&frame(DATA, 0, &[0; 600])[..100]), 0);
    }

    #[test]
    fn a_close_because_of_small_frames_is_distinguished_from_one_for_empty_frames() {
        for (empty, expected) in [(0, true), (MOST_EMPTY as usize, true), (MOST_EMPTY as usize + 1, false)] {
            let mut frames = Frames::default();
            frames.received(&preface());
            frames.received(&frame(DATA, 0, &[]).repeat(empty));
            frames.sent(&goaway(b"too_many_data_frames"));
            assert_eq!(frames.ended_for_small_pieces(), expected, "after {empty} empty pieces");
        }
    }

    /// A response that ended in these words had every later flood of its connection blamed on nobody.
    #[test]
    fn only_the_last_frame_counts_however_the_writes_are_split() {
        let ours = goaway(b"too_many_data_frames");
        let data = |text: &[u8]| frame(DATA, 0, text);
        for (written, expected) in [
            (ours.clone(), true),
            ([data(b"before"), ours.clone()].concat(), true),
            (data(b"too_many_data_frames"), false),
            ([data(&ours), goaway(b"too_many_resets")].concat(), false),
            ([data(&ours), goaway(b"")].concat(), false),
            (goaway(b"too_many_continuations"), false),
            (goaway(b""), false),
        ] {
            for size in [1, 5, 20, 36, 37, 4096] {
                let mut frames = Frames::default();
                written.chunks(size).for_each(|bytes| frames.sent(bytes));
                assert_eq!(frames.ended_for_small_pieces(), expected, "{written:?} in writes of {size}");
            }
        }
    }
}
