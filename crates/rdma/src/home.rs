//! On which NUMA node this process runs, as far as that can be said.

use std::collections::BTreeSet;
use std::path::Path;

/// Where Linux describes its nodes.
const NODES: &str = "/sys/devices/system/node";
/// What Linux says of this process.
const STATUS: &str = "/proc/self/status";

/// The NUMA node that has all processors this process may run on. `None` on a machine with one node, where the process
/// may run on several, and where the system does not say.
#[must_use]
pub fn home_node() -> Option<u32> {
    let status = std::fs::read_to_string(STATUS).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let online = std::fs::read_to_string(Path::new(NODES).join("online")).ok()?;
    let cpus_of = |node: u32| {
        let path = Path::new(NODES).join(format!("node{node}/cpulist"));
        Some((node, list(&std::fs::read_to_string(path).ok()?)?))
    };
    let nodes: Vec<_> = list(&online)?.into_iter().filter_map(cpus_of).collect();
    home(&list(allowed)?, &nodes)
}

/// The node that has all of these processors, if there are several nodes.
fn home(allowed: &BTreeSet<u32>, nodes: &[(u32, BTreeSet<u32>)]) -> Option<u32> {
    if nodes.len() < 2 || allowed.is_empty() {
        return None;
    }
    nodes.iter().find(|(_, cpus)| allowed.is_subset(cpus)).map(|(node, _)| *node)
}

/// `0-3,8` as the system writes it; `None` if it is something else.
fn list(text: &str) -> Option<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // More processors than any machine has would be no list of processors.
        if last.checked_sub(first)? > 1 << 16 {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> BTreeSet<u32> {
        list(text).unwrap()
    }

    #[test]
    fn lists_are_read_as_the_system_writes_them() {
        assert_eq!(set("0-2,8\n").into_iter().collect::<Vec<_>>(), [0, 1, 2, 8]);
        assert_eq!(set("\t5").into_iter().collect::<Vec<_>>(), [5]);
        assert!(set("").is_empty());
        for bad in ["a", "3-1", "1-", "0-4294967295"] {
            assert_eq!(list(bad), None, "{bad}");
        }
    }

    #[test]
    fn home_is_the_node_that_has_all_processors_of_the_process() {
        let nodes = [(0, set("0-3")), (1, set("4-7"))];
        assert_eq!(home(&set("4-5"), &nodes), Some(1));
        assert_eq!(home(&set("0-3"), &nodes), Some(0));
        assert_eq!(home(&set("3-4"), &nodes), None, "it may run on both");
        assert_eq!(home(&set(""), &nodes), None);
        assert_eq!(home(&set("0-1"), &nodes[..1]), None, "there is nothing to choose");
    }
}
