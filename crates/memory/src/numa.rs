//! Memory nodes: which there are, and how an arena is spread over them.
//!
//! Pages go to whoever asks, on any core, so no node is better than another: the memory is interleaved over all nodes,
//! which gives every transfer the bandwidth of all of them and fills none before the others.

use crate::map::Mapping;
use std::fs;

const NODES: &str = "/sys/devices/system/node/has_memory";
/// Nodes beyond this number are not used; kernels are built for up to 1024.
const NODES_MAX: usize = 1024;
const WORD_BITS: usize = usize::BITS as usize;

/// A set of nodes as the kernel takes it: one bit each.
pub(crate) type NodeMask = [usize; NODES_MAX / WORD_BITS];

/// The nodes with memory; none if the kernel does not tell.
pub(crate) fn nodes() -> Vec<usize> {
    fs::read_to_string(NODES).map(|text| parse(&text)).unwrap_or_default()
}

/// Reads `0-2,5`. What cannot be read is left out.
fn parse(text: &str) -> Vec<usize> {
    let mut nodes = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            nodes.extend((first..=last).take_while(|&node| node < NODES_MAX));
        }
    }
    nodes
}

/// Spreads a mapping that nobody has used yet over these nodes. `false` if the kernel refuses.
pub(crate) fn interleave(mapping: &Mapping, nodes: &[usize]) -> bool {
    let mut mask: NodeMask = [0; NODES_MAX / WORD_BITS];
    for node in nodes {
        mask[node / WORD_BITS] |= 1 << (node % WORD_BITS);
    }
    mapping.interleave(&mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::HugePages;

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(parse("0\n"), [0]);
        assert_eq!(parse("0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(parse("1022-4000000000"), [1022, 1023]);
        assert!(parse("").is_empty() && parse("x-2,").is_empty());
    }

    #[test]
    fn the_kernel_takes_a_set_of_nodes_it_has_and_refuses_others() {
        let mapping = Mapping::anonymous(8 << 20, HugePages::Off).unwrap();
        let nodes = nodes();
        if nodes.is_empty() {
            return; // A kernel without nodes has nothing to check.
        }
        assert!(interleave(&mapping, &nodes));
        assert!(!interleave(&mapping, &[NODES_MAX - 1]));
    }
}
