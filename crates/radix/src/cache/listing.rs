//! Events, and the listing of all content that stands in for lost ones.

use super::RadixCache;
use crate::events::{Event, Run, append};
use crate::node::ROOT;
use crate::pool::DevicePage;

impl RadixCache {
    /// The events since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        if !self.events.overflowed {
            return self.events.take();
        }
        self.events.overflowed = false;
        let mut events = vec![Event::AllBlocksCleared];
        for index in self.nodes.subtree(ROOT).into_iter().skip(1) {
            let node = &self.nodes[index];
            if !node.is_visible() {
                continue;
            }
            let (parent, extra, salt) = self.run_of(node);
            let run = Run {
                digests: &node.digests,
                parent,
                tokens: node.tokens(),
                extra_key: extra.as_deref(),
                cache_salt: salt.as_deref(),
            };
            for (_, medium) in self.copies(index).into_iter().filter(|(there, _)| *there) {
                append(&mut events, self.config.shape, &run, medium);
            }
        }
        events
    }

    /// Takes everything out of sight. Pages that nothing holds are free now and are returned; the others when
    /// their requests and plans end.
    pub fn clear(&mut self) -> Vec<DevicePage> {
        let mut freed = Vec::new();
        for top in self.nodes.children(ROOT) {
            freed.extend(self.detach(top).0);
        }
        self.events.cleared();
        freed
    }
}
