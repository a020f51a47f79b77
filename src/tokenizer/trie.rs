//! All the pieces that a text begins with, found in one walk.

/// Byte strings with a number each; immutable.
///
/// Nodes lie in the order of their depth, so that the children of one are neighbours.
pub(super) struct Trie {
    /// The byte that leads to each node.
    labels: Vec<u8>,
    /// Where the children of each node begin; they end where the next node's begin.
    first_child: Vec<u32>,
    /// The number of the string that ends at each node.
    value: Vec<Option<u32>>,
}

impl Trie {
    /// The strings are numbered as they come; of equal ones the first is kept.
    pub fn new(strings: &[&str]) -> Trie {
        let mut sorted: Vec<(&[u8], u32)> = strings.iter().map(|s| s.as_bytes()).zip(0..).collect();
        sorted.sort_unstable();
        let mut trie = Trie {
            labels: vec![0],
            first_child: vec![],
            value: vec![],
        };
        // The strings of each node, which all begin with what leads to it.
        let mut nodes = vec![(0..sorted.len(), 0_usize)];
        let mut node = 0;
        while let Some((range, depth)) = nodes.get(node).cloned() {
            let strings = &sorted[range.clone()];
            let n_ended = strings.iter().take_while(|(s, _)| s.len() == depth).count();
            trie.value.push(
                strings
                    .first()
                    .filter(|_| n_ended > 0)
                    .map(|&(_, value)| value),
            );
            trie.first_child.push(nodes.len() as u32);
            let mut start = range.start + n_ended;
            for children in strings[n_ended..].chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                trie.labels.push(children[0].0[depth]);
                nodes.push((start..start + children.len(), depth + 1));
                start += children.len();
            }
            node += 1;
        }
        trie.first_child.push(nodes.len() as u32);
        trie
    }

    /// The strings that a text begins with, the shortest first: length in bytes and number.
    pub fn prefixes(&self, text: &str) -> impl Iterator<Item = (usize, u32)> {
        let mut node = 0;
        let walk = text.bytes().map_while(move |byte| {
            let start = self.first_child[node] as usize;
            let labels = &self.labels[start..self.first_child[node + 1] as usize];
            node = start + labels.binary_search(&byte).ok()?;
            Some(self.value[node])
        });
        (1..)
            .zip(walk)
            .filter_map(|(length, value)| Some((length, value?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_found_shortest_first() {
        let trie = Trie::new(&["b", "ab", "a", "abcd", "ab", "\u{e9}", ""]);
        let found = |text: &str| trie.prefixes(text).collect::<Vec<_>>();
        assert_eq!(found("abcde"), [(1, 2), (2, 1), (4, 3)]);
        assert_eq!(found("\u{e9}a"), [(2, 5)]);
        assert!(found("").is_empty() && found("cab").is_empty());
        assert_eq!(Trie::new(&[]).prefixes("a").count(), 0);
    }
}
