//! A persistent map: what is changed is a copy that shares the rest with the map before, so that a change costs about as much among a
//! hundred thousand revocations as among a hundred, and whoever reads the map before goes on undisturbed.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use super::Revocation;

/// Entries of a leaf. With more it becomes a branch.
pub(super) const MAX_LEAF: usize = 64;

/// Bits of a hash by which a branch tells its children apart.
const BITS: u32 = 4;

const CHILDREN: usize = 1 << BITS;

/// Where a hash has no bits left, and a leaf as many entries as there are.
const MAX_DEPTH: u32 = u64::BITS / BITS;

/// A trie over the hashes of names.
#[derive(Clone, Default)]
pub(super) struct PersistentMap {
    root: Arc<Node>,
    hasher: RandomState,
}

#[derive(Clone)]
enum Node {
    Leaf(HashMap<Arc<str>, Revocation>),
    /// Something is in one of them.
    Branch([Arc<Self>; CHILDREN]),
}

impl Default for Node {
    fn default() -> Self {
        Self::Leaf(HashMap::new())
    }
}

impl PersistentMap {
    pub(super) fn get(&self, name: &str) -> Option<&Revocation> {
        self.root.get(name, self.hasher.hash_one(name), 0)
    }

    pub(super) fn insert(&mut self, name: Arc<str>, revocation: Revocation) {
        Arc::make_mut(&mut self.root).insert(name, revocation, &self.hasher, 0);
    }

    /// Takes out all but what `keeps` tells.
    pub(super) fn retain(&mut self, keeps: impl Fn(&Revocation) -> bool) {
        if let Some(root) = self.root.retained(&keeps) {
            self.root = root;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Revocation)> {
        let (mut nodes, mut leaves) = (vec![&*self.root], Vec::new());
        while let Some(node) = nodes.pop() {
            match node {
                Node::Leaf(entries) => leaves.push(entries),
                Node::Branch(children) => nodes.extend(children.iter().map(|child| &**child)),
            }
        }
        leaves.into_iter().flatten()
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Leaf(entries) if entries.is_empty())
    }

    fn get(&self, name: &str, hash: u64, depth: u32) -> Option<&Revocation> {
        match self {
            Self::Leaf(entries) => entries.get(name),
            Self::Branch(children) => children.get(child(hash, depth))?.get(name, hash, depth + 1),
        }
    }

    fn insert(&mut self, name: Arc<str>, revocation: Revocation, hasher: &RandomState, depth: u32) {
        match self {
            Self::Leaf(entries) => {
                entries.insert(name, revocation);
                if entries.len() > MAX_LEAF && depth < MAX_DEPTH {
                    let entries = std::mem::take(entries);
                    *self = Self::branch(entries, hasher, depth);
                }
            }
            Self::Branch(children) => {
                if let Some(child) = children.get_mut(child(hasher.hash_one(&*name), depth)) {
                    Arc::make_mut(child).insert(name, revocation, hasher, depth + 1);
                }
            }
        }
    }

    fn branch(entries: HashMap<Arc<str>, Revocation>, hasher: &RandomState, depth: u32) -> Self {
        let mut parts: [HashMap<Arc<str>, Revocation>; CHILDREN] = Default::default();
        for (name, revocation) in entries {
            if let Some(part) = parts.get_mut(child(hasher.hash_one(&*name), depth)) {
                part.insert(name, revocation);
            }
        }
        Self::Branch(parts.map(|part| Arc::new(Self::Leaf(part))))
    }

    /// The same with what is kept alone. `None`: that is all.
    fn retained(&self, keeps: &impl Fn(&Revocation) -> bool) -> Option<Arc<Self>> {
        let retained = match self {
            Self::Leaf(entries) if entries.values().all(keeps) => return None,
            Self::Leaf(entries) => {
                let kept = entries.iter().filter(|&(_, revocation)| keeps(revocation));
                Self::Leaf(kept.map(|(name, revocation)| (Arc::clone(name), revocation.clone())).collect())
            }
            Self::Branch(children) => {
                let retained = children.each_ref().map(|child| child.retained(keeps));
                if retained.iter().all(Option::is_none) {
                    return None;
                }
                let mut children = children.clone();
                for (child, retained) in children.iter_mut().zip(retained) {
                    if let Some(retained) = retained {
                        *child = retained;
                    }
                }
                if children.iter().all(|child| child.is_empty()) { Self::default() } else { Self::Branch(children) }
            }
        };
        Some(Arc::new(retained))
    }
}

/// Which child of a branch has what hashes so.
fn child(hash: u64, depth: u32) -> usize {
    (hash >> (depth * BITS)) as usize % CHILDREN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn revocation(number: usize) -> Revocation {
        let until = Timestamp::from_secs(number as i64);
        Revocation { reason: "test".into(), until, kept: until }
    }

    fn of(numbers: std::ops::Range<usize>) -> PersistentMap {
        let mut map = PersistentMap::default();
        numbers.for_each(|number| map.insert(number.to_string().into(), revocation(number)));
        map
    }

    #[test]
    fn what_was_put_in_is_found_and_told_once_until_it_is_taken_out() {
        let all = 5000;
        let mut map = of(0..all);
        map.insert("7".into(), revocation(all));
        assert_eq!(map.get("7"), Some(&revocation(all)), "the later in place of the earlier");
        map.insert("7".into(), revocation(7));
        let mut told: Vec<usize> = map.iter().map(|(name, _)| name.parse().unwrap()).collect();
        told.sort_unstable();
        assert_eq!(told, (0..all).collect::<Vec<_>>());
        let later = |from: usize| move |revocation: &Revocation| revocation.until >= Timestamp::from_secs(from as i64);
        map.retain(later(all - 3));
        for number in 0..=all {
            let expected = (all - 3..all).contains(&number).then(|| revocation(number));
            assert_eq!(map.get(&number.to_string()), expected.as_ref(), "{number}");
        }
        assert!(!map.is_empty());
        map.retain(later(all));
        assert!(map.is_empty() && map.iter().next().is_none());
    }

    #[test]
    fn a_copy_is_changed_by_itself_and_shares_what_it_has_not_changed() {
        let before = of(0..5000);
        let shared = |copy: &PersistentMap| {
            let is_shared = |(name, found): &(&Arc<str>, &Revocation)| {
                copy.get(name).is_some_and(|copied| std::ptr::eq(copied, *found))
            };
            before.iter().filter(is_shared).count()
        };
        let mut copy = before.clone();
        copy.retain(|_| true);
        assert_eq!(shared(&copy), 5000);
        copy.insert("new".into(), revocation(0));
        assert!(shared(&copy) >= 5000 - MAX_LEAF, "{}", shared(&copy));
        assert!(before.get("new").is_none() && copy.get("new").is_some());
        let mut copy = before.clone();
        copy.retain(|found| *found != revocation(4999));
        assert!(shared(&copy) >= 5000 - MAX_LEAF, "{}", shared(&copy));
        assert!(before.get("4999").is_some() && copy.get("4999").is_none());
    }
}
