//! The checkpoints from the second place.

use std::{collections::HashMap, io::BufRead};

use super::{
    super::{
        chain::{Link, Mac, Sealed},
        lines::Lines,
    },
    CannotVerify, Content, Proof, is_genuine,
};
use crate::clock::Timestamp;

/// The last checkpoint from the second place, and those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub(super) link: Link,
    pub(super) at: Timestamp,
    /// The codes of all of them by their numbers: a trail that was cut and went on fits the last one alone. None of
    /// standard output, where numbers begin again.
    pub(super) all: HashMap<u64, Mac>,
}

impl Checkpoint {
    /// Returns the last checkpoint that a file of checkpoints proves. It need not be the last line: whoever can append to
    /// the file could repeat an earlier one there, to hide that the trail was cut.
    pub fn last_of(reader: impl BufRead, proof: &Proof) -> Result<Self, CannotVerify> {
        let mut last: Option<(Link, Timestamp)> = None;
        let mut all = HashMap::new();
        let mut end = Err(CannotVerify::NoCheckpoint);
        let mut lines = Lines::new(reader);
        while let Some(line) = lines.next().map_err(CannotVerify::LastCheckpoint)? {
            // A crash while copying leaves an incomplete line.
            if line.fault.is_some() || line.bytes.is_empty() {
                continue;
            }
            end = Self::of(line.bytes, proof);
            let Ok((link, at)) = end else { continue };
            // On standard output, numbers begin again with each start.
            let place = |(link, at): &(Link, Timestamp)| (proof.restarts.then_some(*at), link.seq);
            last = last.into_iter().chain([(link, at)]).max_by_key(place);
            if !proof.restarts {
                // Of two with one number, the later was appended after a cut.
                all.entry(link.seq).or_insert(link.mac);
            }
        }
        let (link, at) = end.map(|end| last.unwrap_or(end))?;
        Ok(Self { link, at, all })
    }

    /// Reads a line, if it is a checkpoint whose signature and code are valid.
    fn of(line: &[u8], proof: &Proof) -> Result<(Link, Timestamp), CannotVerify> {
        let sealed = Sealed::parse(line).filter(|sealed| sealed.signature.is_some());
        let sealed = sealed.ok_or(CannotVerify::NoCheckpoint)?;
        if !is_genuine(&sealed, &proof.keys, &proof.checkpoint_keys) {
            return Err(CannotVerify::ForgedCheckpoint);
        }
        let Content { time, .. } = serde_json::from_slice(line).map_err(|_| CannotVerify::NoCheckpoint)?;
        Ok((sealed.link, Timestamp::from_millis(time)))
    }
}
