//! The last checkpoint from the second place.

use std::io::BufRead;

use super::{
    super::{
        chain::{Link, Sealed},
        lines::Lines,
    },
    CannotVerify, Content, Proof, is_genuine,
};
use crate::clock::Timestamp;

/// A checkpoint from the second place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub(super) link: Link,
    pub(super) at: Timestamp,
}

impl Checkpoint {
    /// Returns the last checkpoint that a file of checkpoints proves. It need not be the last line: whoever can append to
    /// the file could repeat an earlier one there, to hide that the trail was cut.
    pub fn last_of(reader: impl BufRead, proof: &Proof) -> Result<Self, CannotVerify> {
        let mut last: Option<Self> = None;
        let mut end = Err(CannotVerify::NoCheckpoint);
        let mut lines = Lines::new(reader);
        while let Some(line) = lines.next().map_err(CannotVerify::LastCheckpoint)? {
            // A crash while copying leaves an incomplete line.
            if line.fault.is_some() || line.bytes.is_empty() {
                continue;
            }
            end = Self::of(line.bytes, proof);
            // On standard output, numbers begin again with each start.
            let place = |of: &Self| (proof.restarts.then_some(of.at), of.link.seq);
            last = last.into_iter().chain(end.as_ref().ok().copied()).max_by_key(place);
        }
        end.map(|end| last.unwrap_or(end))
    }

    /// Reads a line, if it is a checkpoint whose signature and code are valid.
    fn of(line: &[u8], proof: &Proof) -> Result<Self, CannotVerify> {
        let sealed = Sealed::parse(line).filter(|sealed| sealed.signature.is_some());
        let sealed = sealed.ok_or(CannotVerify::NoCheckpoint)?;
        if !is_genuine(&sealed, &proof.keys, &proof.checkpoint_keys) {
            return Err(CannotVerify::ForgedCheckpoint);
        }
        let Content { time, .. } = serde_json::from_slice(line).map_err(|_| CannotVerify::NoCheckpoint)?;
        Ok(Self { link: sealed.link, at: Timestamp::from_millis(time) })
    }
}
