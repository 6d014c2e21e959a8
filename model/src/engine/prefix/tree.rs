//! Which prefixes are kept: a tree of tokens, in which sequences that begin alike share what they have in common.
//!
//! It knows nothing of tensors. A node holds a segment (what its tokens left behind) and, where the model is recurrent, perhaps the
//! state after its last token. Without states a sequence can be continued from any token; with them, only from where one is kept.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::nn::DepthOptions;

/// Tokens of a node at most, so that a long text can go piece by piece and little is copied where two texts part.
const LONGEST: usize = 256;

/// How long a prefix is worth keeping: what goes first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// A whole text with its answer: the next turn of one conversation.
    Answer,
    /// A prompt up to its last turn.
    Turn,
    /// What many prompts begin with.
    Shared,
}

/// Where a snapshot of a sequence is taken, in order; none in a sequence that does not take part.
pub type Snapshots = Option<VecDeque<(usize, Keep)>>;

/// What a number of consecutive tokens left behind.
pub trait Segment {
    fn bytes(&self) -> usize;
    /// The first `at` tokens and the others.
    fn split(&self, at: usize) -> (Self, Self)
    where
        Self: Sized;
}

/// What is kept once, whatever the number of tokens before it.
pub trait State {
    fn bytes(&self) -> usize;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NodeId(u64);

#[derive(Debug)]
struct Node<S, T> {
    parent: Option<NodeId>,
    /// No two begin with the same token.
    children: Vec<NodeId>,
    tokens: Vec<u32>,
    segment: S,
    state: Option<T>,
    keep: Keep,
    /// When a sequence last went through it.
    used: u64,
    /// When a sequence last began at its state.
    state_used: u64,
}

/// Prefixes by their tokens and by the settings that they were computed with.
#[derive(Debug)]
pub struct PrefixTree<S, T> {
    /// Whether a sequence can only be continued where a state is.
    recurrent: bool,
    /// The nodes that begin a text.
    roots: Vec<(DepthOptions, Vec<NodeId>)>,
    nodes: BTreeMap<NodeId, Node<S, T>>,
    bytes: usize,
    next_id: u64,
    clock: u64,
}

/// What a sequence has in common with the tree.
#[derive(Debug, Default)]
pub struct Hit {
    /// Nodes and the tokens of each, from the beginning; they are usable together.
    path: Vec<(NodeId, usize)>,
    /// Tokens that can be taken over.
    pub tokens: usize,
    /// Tokens that are the same, more than can be taken over where no state is.
    pub agreed: usize,
}

impl<S: Segment, T: State> PrefixTree<S, T> {
    pub fn new(recurrent: bool) -> Self {
        Self { recurrent, roots: Vec::new(), nodes: BTreeMap::new(), bytes: 0, next_id: 0, clock: 0 }
    }

    /// Bytes of all segments and states.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The longest prefix of `tokens` that can be continued.
    pub fn find(&self, settings: DepthOptions, tokens: &[u32]) -> Hit {
        let (mut path, agreed) = self.walk(settings, tokens);
        if self.recurrent {
            let has_state = |&(id, taken): &(NodeId, usize)| {
                self.nodes.get(&id).is_some_and(|node| node.state.is_some() && node.tokens.len() == taken)
            };
            let end = path.iter().rposition(has_state).map_or(0, |last| last + 1);
            path.truncate(end);
        }
        let tokens = path.iter().map(|(_, taken)| taken).sum();
        Hit { path, tokens, agreed }
    }

    /// Notes that a sequence begins with it.
    pub fn touch(&mut self, hit: &Hit) {
        self.clock += 1;
        for (id, _) in &hit.path {
            if let Some(node) = self.nodes.get_mut(id) {
                node.used = self.clock;
            }
        }
        if let Some(node) = hit.path.last().and_then(|(id, _)| self.nodes.get_mut(id)) {
            node.state_used = self.clock;
        }
    }

    /// The segments of a hit with the tokens to take of each.
    pub fn segments(&self, hit: &Hit) -> impl Iterator<Item = (&S, usize)> + Clone {
        hit.path.iter().filter_map(|(id, taken)| Some((&self.nodes.get(id)?.segment, *taken)))
    }

    /// The state at the end of a hit.
    pub fn state(&self, hit: &Hit) -> Option<&T> {
        hit.path.last().and_then(|(id, _)| self.nodes.get(id)?.state.as_ref())
    }

    /// Keeps `tokens` and, where the model is recurrent, the state after them, with at most `limit` bytes in all; others go for it.
    /// `copy` gives the segment of some of the tokens, each token in `token_bytes`. Whether it is there now.
    pub fn insert(
        &mut self,
        (settings, keep): (DepthOptions, Keep),
        tokens: &[u32],
        state: Option<T>,
        (limit, token_bytes): (usize, usize),
        mut copy: impl FnMut(Range<usize>) -> Option<S>,
    ) -> bool {
        if tokens.is_empty() || self.recurrent != state.is_some() {
            return false;
        }
        let (path, agreed) = self.walk(settings, tokens);
        let there = self.find(settings, tokens);
        let state = state.filter(|_| there.tokens < tokens.len());
        let needed = token_bytes * (tokens.len() - agreed) + state.as_ref().map_or(0, State::bytes);
        self.touch(&Hit { path: path.clone(), ..Hit::default() });
        let protected: Vec<NodeId> = path.iter().map(|(id, _)| *id).collect();
        let fits = needed <= limit && self.shrink(limit - needed, &protected);
        let end = path.last().copied();
        let kept = fits && self.extend((settings, keep), tokens, (end, agreed), state, &mut copy);
        // What came after it may have gone, and all that is left of the last node be what this text does not share.
        end.iter().for_each(|(id, _)| self.prune(*id, &[]));
        kept
    }

    /// Hangs tokens and the state after them where the tree leaves them: after so many tokens of a node.
    fn extend(
        &mut self,
        (settings, keep): (DepthOptions, Keep),
        tokens: &[u32],
        (end, agreed): (Option<(NodeId, usize)>, usize),
        state: Option<T>,
        copy: &mut impl FnMut(Range<usize>) -> Option<S>,
    ) -> bool {
        let mut parent = end.map(|(id, taken)| self.split(id, taken));
        let mut at = agreed;
        while let Some(rest) = tokens.get(at..).filter(|rest| !rest.is_empty()) {
            // Pieces end at multiples of their length, where the blocks of keys and values do too.
            let piece = rest.get(..LONGEST - at % LONGEST).unwrap_or(rest);
            let end = at + piece.len();
            let Some(segment) = copy(at..end) else {
                parent.iter().for_each(|&id| self.prune(id, &[]));
                return false;
            };
            self.bytes += segment.bytes();
            let (id, used) = (self.new_id(), self.clock);
            let (children, tokens) = (Vec::new(), piece.to_vec());
            let node = Node { parent, children, tokens, segment, state: None, keep, used, state_used: used };
            self.nodes.insert(id, node);
            self.adopt(parent, settings, id);
            (parent, at) = (Some(id), end);
        }
        if let Some(node) = parent.and_then(|id| self.nodes.get_mut(&id)) {
            node.keep = node.keep.max(keep);
            if let Some(state) = state {
                self.bytes += state.bytes();
                node.state = Some(state);
            }
        }
        true
    }

    /// Lets go of prefixes until the tree has no more than so many bytes, or nothing is left.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.shrink(bytes, &[]);
    }

    /// As [`shrink_to`](Self::shrink_to), but for the segments of these nodes; whether it succeeded.
    fn shrink(&mut self, bytes: usize, protected: &[NodeId]) -> bool {
        while self.bytes > bytes {
            let leaves = self.nodes.iter().filter(|(id, node)| node.children.is_empty() && !protected.contains(id));
            let leaves = leaves.map(|(&id, node)| (node.keep, node.used, id, true));
            let states = self.nodes.iter().filter(|(_, node)| node.state.is_some() && !node.children.is_empty());
            let states = states.map(|(&id, node)| (node.keep, node.state_used, id, false));
            let Some((.., id, is_leaf)) = leaves.chain(states).min() else { return false };
            if is_leaf {
                self.remove(id, protected);
            } else if let Some(state) = self.nodes.get_mut(&id).and_then(|node| node.state.take()) {
                self.bytes -= state.bytes();
            }
        }
        true
    }

    /// Removes a leaf, and those before it that nothing can be continued from any more.
    fn remove(&mut self, id: NodeId, protected: &[NodeId]) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.bytes -= node.segment.bytes() + node.state.as_ref().map_or(0, State::bytes);
        match node.parent {
            Some(parent) => {
                if let Some(parent) = self.nodes.get_mut(&parent) {
                    parent.children.retain(|child| *child != id);
                }
                self.prune(parent, protected);
            }
            None => {
                self.roots.iter_mut().for_each(|(_, children)| children.retain(|child| *child != id));
                self.roots.retain(|(_, children)| !children.is_empty());
            }
        }
    }

    /// Removes a leaf that nothing can be continued from.
    fn prune(&mut self, id: NodeId, protected: &[NodeId]) {
        let useless = |node: &Node<S, T>| self.recurrent && node.children.is_empty() && node.state.is_none();
        if !protected.contains(&id) && self.nodes.get(&id).is_some_and(useless) {
            self.remove(id, protected);
        }
    }

    /// Makes a node end after `at` of its tokens; the node that does.
    fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        let upper_id = self.new_id();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| at < node.tokens.len()) else { return id };
        let before = node.segment.bytes();
        let (first, second) = node.segment.split(at);
        self.bytes = self.bytes - before + first.bytes() + second.bytes();
        let rest = node.tokens.split_off(at);
        let upper = Node {
            parent: node.parent,
            children: vec![id],
            tokens: std::mem::replace(&mut node.tokens, rest),
            segment: first,
            state: None,
            keep: node.keep,
            used: node.used,
            state_used: node.state_used,
        };
        node.segment = second;
        node.parent = Some(upper_id);
        let siblings = match upper.parent {
            Some(parent) => self.nodes.get_mut(&parent).map(|parent| &mut parent.children),
            None => self.roots.iter_mut().map(|(_, children)| children).find(|children| children.contains(&id)),
        };
        siblings.into_iter().flatten().filter(|child| **child == id).for_each(|child| *child = upper_id);
        self.nodes.insert(upper_id, upper);
        upper_id
    }

    /// The nodes that agree with `tokens`, with the tokens of each that do, and how many that is.
    fn walk(&self, settings: DepthOptions, tokens: &[u32]) -> (Vec<(NodeId, usize)>, usize) {
        let (mut path, mut agreed) = (Vec::new(), 0);
        let mut children = self.roots.iter().find(|(of, _)| *of == settings).map(|(_, children)| children);
        while let Some(nodes) = children.take() {
            let rest = tokens.get(agreed..).unwrap_or_default();
            let begins_alike = |id: &NodeId| {
                let node = self.nodes.get(id)?;
                let same = common_prefix(&node.tokens, rest);
                (same > 0).then_some((*id, node, same))
            };
            let Some((id, node, same)) = nodes.iter().find_map(begins_alike) else { break };
            path.push((id, same));
            agreed += same;
            children = (same == node.tokens.len()).then_some(&node.children);
        }
        (path, agreed)
    }

    /// Makes a node a child of another, or the beginning of a text.
    fn adopt(&mut self, parent: Option<NodeId>, settings: DepthOptions, id: NodeId) {
        if let Some(node) = parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            node.children.push(id);
        } else if let Some((_, children)) = self.roots.iter_mut().find(|(of, _)| *of == settings) {
            children.push(id);
        } else {
            self.roots.push((settings, vec![id]));
        }
    }

    fn new_id(&mut self) -> NodeId {
        self.next_id += 1;
        NodeId(self.next_id)
    }
}

/// Leading tokens that are the same.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberlm_quant::random::SplitMix64;

    /// The tokens themselves, four bytes each.
    impl Segment for Vec<u32> {
        fn bytes(&self) -> usize {
            4 * self.len()
        }

        fn split(&self, at: usize) -> (Self, Self) {
            (self[..at].to_vec(), self[at..].to_vec())
        }
    }

    /// A state of 100 bytes that says after how many tokens it is.
    impl State for usize {
        fn bytes(&self) -> usize {
            100
        }
    }

    type Tree = PrefixTree<Vec<u32>, usize>;
    const PLAIN: DepthOptions = DepthOptions { threshold: None, steps: None };

    impl Tree {
        fn keep(&mut self, keep: Keep, tokens: &[u32], limit: usize) -> bool {
            let state = self.recurrent.then_some(tokens.len());
            self.insert((PLAIN, keep), tokens, state, (limit, 4), |range| Some(tokens[range].to_vec()))
        }

        fn hit(&self, tokens: &[u32]) -> usize {
            self.find(PLAIN, tokens).tokens
        }

        /// Checks everything that must be true whatever was done before.
        fn check(&self) {
            let bytes = |node: &Node<Vec<u32>, usize>| node.segment.bytes() + node.state.map_or(0, |_| 100);
            assert_eq!(self.bytes, self.nodes.values().map(bytes).sum::<usize>());
            for (id, node) in &self.nodes {
                assert_eq!(node.tokens, node.segment);
                assert!(!node.tokens.is_empty() && node.tokens.len() <= LONGEST);
                assert!(!self.recurrent || node.state.is_some() || !node.children.is_empty(), "a leaf without a state");
                let siblings = match node.parent {
                    Some(parent) => &self.nodes[&parent].children,
                    None => &self.roots.iter().find(|(_, children)| children.contains(id)).expect("a root").1,
                };
                assert_eq!(siblings.iter().filter(|child| *child == id).count(), 1);
                let first: Vec<u32> = siblings.iter().map(|id| self.nodes[id].tokens[0]).collect();
                assert!((1..first.len()).all(|i| !first[..i].contains(&first[i])), "two begin with the same token");
            }
        }
    }

    #[test]
    fn without_states_any_common_prefix_is_a_hit() {
        let mut tree = Tree::new(false);
        assert!(tree.keep(Keep::Turn, &[1, 2, 3, 4, 5], usize::MAX));
        assert!(tree.keep(Keep::Answer, &[1, 2, 3, 9, 9, 9], usize::MAX));
        for (tokens, hit) in [(&[1, 2, 3, 4, 7][..], 4), (&[1, 2], 2), (&[1, 2, 3, 9, 9, 9, 1], 6), (&[2, 3], 0)] {
            assert_eq!(tree.hit(tokens), hit, "{tokens:?}");
        }
        // What both have in common is there once.
        assert_eq!(tree.bytes(), 4 * 8);
        let other = DepthOptions { steps: Some(1), ..PLAIN };
        assert_eq!(tree.find(other, &[1, 2, 3]).agreed, 0, "another depth is another text");
        tree.check();
    }

    #[test]
    fn with_states_only_their_places_are() {
        let mut tree = Tree::new(true);
        let text: Vec<u32> = (0..600).collect();
        for end in [40, 600, 300] {
            assert!(tree.keep(Keep::Turn, &text[..end], usize::MAX));
            tree.check();
        }
        for (length, hit) in [(39, 0), (40, 40), (299, 40), (300, 300), (599, 300), (600, 600)] {
            let found = tree.find(PLAIN, &text[..length]);
            assert_eq!((found.tokens, found.agreed), (hit, length));
            assert_eq!(tree.state(&found), (hit > 0).then_some(&hit));
            assert_eq!(tree.segments(&found).map(|(_, taken)| taken).sum::<usize>(), hit);
        }
        assert_eq!(tree.bytes(), 4 * 600 + 3 * 100);
    }

    #[test]
    fn answers_go_first_then_turns_the_longest_unused_first_and_shared_ones_last() {
        let mut tree = Tree::new(true);
        let text = |first: u32| -> Vec<u32> { (first..first + 10).collect() };
        let kinds = [Keep::Shared, Keep::Answer, Keep::Turn, Keep::Answer, Keep::Turn];
        for (i, keep) in (0..).zip(kinds) {
            assert!(tree.keep(keep, &text(100 * i), usize::MAX));
        }
        // The first answer is used again, so the second goes before it.
        let hit = tree.find(PLAIN, &text(100));
        tree.touch(&hit);
        let mut gone = Vec::new();
        while tree.bytes() > 0 {
            tree.shrink_to(tree.bytes() - 1);
            tree.check();
            gone.extend((0..5).filter(|i| tree.hit(&text(100 * i)) == 0 && !gone.contains(i)).collect::<Vec<_>>());
        }
        assert_eq!(gone, [3, 1, 2, 4, 0]);
    }

    #[test]
    fn states_of_past_turns_go_before_the_one_that_is_continued() {
        let mut tree = Tree::new(true);
        let text: Vec<u32> = (0..90).collect();
        for end in [30, 60, 90] {
            let hit = tree.find(PLAIN, &text[..end - 1]);
            tree.touch(&hit);
            assert!(tree.keep(Keep::Answer, &text[..end], usize::MAX));
        }
        assert_eq!(tree.bytes(), 4 * 90 + 300);
        tree.shrink_to(4 * 90 + 200);
        assert_eq!((tree.hit(&text[..59]), tree.hit(&text[..89]), tree.hit(&text)), (0, 60, 90));
        tree.check();
    }

    #[test]
    fn what_does_not_fit_is_not_kept() {
        for recurrent in [false, true] {
            let mut tree = Tree::new(recurrent);
            assert!(tree.keep(Keep::Shared, &[1, 2, 3], 200));
            let before = tree.bytes();
            assert!(!tree.keep(Keep::Shared, &[7; 60], 200), "it is larger than the limit");
            assert_eq!((tree.hit(&[1, 2, 3]), tree.bytes()), (3, before), "something went for it");
            // What it continues is not let go of to make room for it.
            assert!(!tree.keep(Keep::Shared, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 35));
            tree.check();
            let failing = tree.insert((PLAIN, Keep::Turn), &[1, 9], recurrent.then_some(2), (999, 4), |_| None);
            assert!(!failing);
            tree.check();
        }
    }

    /// Random texts over few tokens, under a limit: what is found is what was put in.
    #[test]
    fn random_texts() {
        for (seed, recurrent) in [(1, false), (2, true), (3, false), (4, true)] {
            let mut random = SplitMix64::new(seed);
            let mut below = move |end: u64| random.next_word() % end;
            let mut tree = Tree::new(recurrent);
            let (mut hits, mut kept) = (0, 0);
            for _ in 0..2000 {
                let most = if below(20) == 0 { 700 } else { 12 };
                let length = 1 + below(most);
                let text: Vec<u32> = (0..length).map(|i| if i > 12 { 1 } else { below(3) as u32 }).collect();
                let found = tree.find(PLAIN, &text);
                let taken: Vec<u32> = tree.segments(&found).flat_map(|(s, n)| s[..n].iter().copied()).collect();
                assert_eq!(taken, text[..found.tokens]);
                assert!(found.tokens <= found.agreed && found.agreed <= text.len());
                assert_eq!(tree.state(&found), (recurrent && found.tokens > 0).then_some(&found.tokens));
                tree.touch(&found);
                hits += usize::from(found.tokens > 0);
                let keep = [Keep::Answer, Keep::Turn, Keep::Shared][below(3) as usize];
                if tree.keep(keep, &text, 3000) {
                    kept += 1;
                    assert_eq!(tree.hit(&text), text.len());
                }
                assert!(tree.bytes() <= 3000);
                tree.check();
            }
            assert!(hits > 500 && kept > 1000, "{hits} hits, {kept} kept");
            tree.shrink_to(0);
            assert!(tree.nodes.is_empty() && tree.roots.is_empty() && tree.bytes() == 0);
        }
    }
}
