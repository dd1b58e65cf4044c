//! The books: which chunk belongs to which class and which of its slots are free.
//!
//! Plain data behind the arena's one lock; it never sees the memory itself. Every call costs O(1) in the number of
//! pages, and allocates only when a chunk changes class.
//!
//! Invariants (checked by a proptest):
//! - a slot is handed out at most once before it is given back;
//! - a chunk without slots in use is in the free pool, whatever its past;
//! - a class is known by its slot size; a learned class without slots in use gives up its place when a new
//!   length asks for one.

use crate::class;
use crate::warm::{self, Upcoming};

/// A request found no slot: the class has none free and no chunk is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free slot of {slot_bytes} bytes; evict pages and try again")]
pub struct Full {
    /// Slot size of the class that was asked.
    pub slot_bytes: u32,
}

/// How full a class is, as of one reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassFill {
    /// Slot size of the class.
    pub slot_bytes: u32,
    /// Slots that could be handed out now, those in free chunks included.
    pub available: u64,
    /// Slots in the class's chunks and in free chunks.
    pub potential: u64,
    /// Bytes of all slots in use, of every class.
    pub held_bytes: u64,
}

/// What a class was asked for since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassDemand {
    /// How full the class is; `held_bytes` as in [`ClassFill`].
    pub fill: ClassFill,
    /// Chunks of the class.
    pub chunks: u32,
}

/// One size class, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassStatus {
    /// Slot size.
    pub slot_bytes: u32,
    /// Whether the size was learned from a page length; otherwise it is a quarter step.
    pub learned: bool,
    /// Chunks of the class.
    pub chunks: u32,
    /// Slots in its chunks.
    pub slots: u64,
    /// Slots in use.
    pub in_use: u64,
    /// Bytes of the pages in those slots: what was asked for.
    pub asked_bytes: u64,
    /// Bytes at the ends of its chunks that are less than a slot.
    pub remainder_bytes: u64,
}

impl ClassStatus {
    /// Bytes of the slots in use: what the pages hold.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.in_use * u64::from(self.slot_bytes)
    }

    /// Bytes that hold no page and can hold none of another class: what slots in use have over their pages, and what
    /// chunks have over their slots.
    #[must_use]
    pub fn waste_bytes(&self) -> u64 {
        self.held_bytes() - self.asked_bytes + self.remainder_bytes
    }
}

/// A slot that was handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) chunk: u32,
    pub(crate) slot: u32,
    pub(crate) fill: ClassFill,
    /// The chunk has just been given to the class.
    pub(crate) new_chunk: bool,
    /// It begins a step of memory that nobody had used, or a chunk: what comes next is to be made resident.
    pub(crate) goes_on: bool,
}

#[derive(Default)]
struct Chunk {
    /// Slot size of the class; 0 in the free pool.
    slot_bytes: u32,
    slots: u32,
    in_use: u32,
    /// Hands out nothing more and goes to the free pool as soon as it is empty.
    draining: bool,
    /// One bit per slot, set if free.
    free: Box<[u64]>,
    /// No word before this one has a bit set.
    hint: usize,
    /// Place in the class's `open`, meaningful while the chunk has free slots and does not drain.
    place: usize,
}

struct Class {
    slot_bytes: u32,
    slots_per_chunk: u32,
    learned: bool,
    chunks: u32,
    in_use: u64,
    /// Bytes of the pages in its slots.
    asked_bytes: u64,
    /// Free slots in chunks that do not drain.
    free_slots: u64,
    /// Slots in chunks that do not drain.
    slots: u64,
    /// Chunks with free slots that do not drain.
    open: Vec<u32>,
    /// A slot was asked for since the last look.
    asked: bool,
}

pub(crate) struct Books {
    chunk_bytes: u32,
    chunks: Box<[Chunk]>,
    /// How far each chunk was ever used, in bytes.
    touched: Box<[u32]>,
    /// Bytes that nobody ever used, in all chunks that have a class.
    untouched: u64,
    free_chunks: Vec<u32>,
    draining: u32,
    /// Ordered by slot size.
    classes: Vec<Class>,
    learned_max: usize,
    held_bytes: u64,
    asked_bytes: u64,
}

impl Books {
    pub(crate) fn new(chunk_bytes: u32, chunk_count: u32) -> Self {
        let mut chunks = Vec::new();
        chunks.resize_with(chunk_count as usize, Chunk::default);
        Self {
            chunk_bytes,
            chunks: chunks.into(),
            touched: vec![0; chunk_count as usize].into(),
            untouched: 0,
            // Handed out from the end: the lowest addresses first.
            free_chunks: (0..chunk_count).rev().collect(),
            draining: 0,
            classes: Vec::new(),
            // A small arena cannot give a chunk to each of many classes.
            learned_max: (chunk_count as usize / 2).clamp(8, class::LEARNED_MAX),
            held_bytes: 0,
            asked_bytes: 0,
        }
    }

    /// Hands out a slot for a page of `len` bytes, whose exact class is `exact`.
    pub(crate) fn take(&mut self, len: u32, exact: u32) -> Result<Taken, Full> {
        let at = self.class_for(exact);
        let mut new_chunk = false;
        let slot_bytes = self.classes[at].slot_bytes;
        self.classes[at].asked = true;
        if self.classes[at].open.is_empty() {
            let Some(chunk) = self.free_chunks.pop() else {
                return Err(Full { slot_bytes });
            };
            self.assign(chunk, at);
            new_chunk = true;
        }
        let class = &mut self.classes[at];
        let index = *class.open.last().expect("an open chunk was there or has just been added");
        let chunk = &mut self.chunks[index as usize];
        let slot = chunk.take_lowest();
        class.in_use += 1;
        class.asked_bytes += u64::from(len);
        class.free_slots -= 1;
        if chunk.in_use == chunk.slots {
            class.open.pop();
        }
        self.held_bytes += u64::from(slot_bytes);
        self.asked_bytes += u64::from(len);
        let begins_step = self.touch(index, slot, slot_bytes);
        Ok(Taken { chunk: index, slot, fill: self.fill(at), new_chunk, goes_on: new_chunk || begins_step })
    }

    /// Notes that a slot is used. Whether that begins a step of memory which nobody had used.
    fn touch(&mut self, chunk: u32, slot: u32, slot_bytes: u32) -> bool {
        let is_last = slot + 1 == self.chunks[chunk as usize].slots;
        let end = if is_last { self.chunk_bytes } else { (slot + 1) * slot_bytes };
        let touched = &mut self.touched[chunk as usize];
        let before = std::mem::replace(touched, end.max(*touched));
        self.untouched -= u64::from(*touched - before);
        warm::steps(before) < warm::steps(*touched)
    }

    /// Takes back a slot that held a page of `len` bytes. `true` if its chunk went to the free pool.
    ///
    /// # Panics
    ///
    /// If the slot is not in use.
    pub(crate) fn give(&mut self, index: u32, slot: u32, len: u32) -> bool {
        let chunk = &mut self.chunks[index as usize];
        let was_full = chunk.in_use == chunk.slots;
        chunk.put_back(slot);
        let at = self.classes.binary_search_by_key(&chunk.slot_bytes, |class| class.slot_bytes);
        let class = &mut self.classes[at.expect("a class with slots in use is in the table")];
        class.in_use -= 1;
        class.asked_bytes -= u64::from(len);
        self.held_bytes -= u64::from(class.slot_bytes);
        self.asked_bytes -= u64::from(len);
        if !chunk.draining {
            class.free_slots += 1;
            if was_full {
                chunk.place = class.open.len();
                class.open.push(index);
            }
        }
        let empty = chunk.in_use == 0;
        if empty {
            self.release(index);
        }
        empty
    }

    /// Stops handing out slots of a chunk, so that it reaches the free pool once it is empty. `false` if the chunk
    /// is free or draining already.
    pub(crate) fn drain(&mut self, index: u32) -> bool {
        let chunk = &mut self.chunks[index as usize];
        if chunk.slot_bytes == 0 || chunk.draining {
            return false;
        }
        chunk.draining = true;
        self.draining += 1;
        let (free, slots) = (u64::from(chunk.slots - chunk.in_use), u64::from(chunk.slots));
        let at = self.classes.binary_search_by_key(&chunk.slot_bytes, |class| class.slot_bytes);
        let at = at.expect("a class with chunks is in the table");
        if free > 0 {
            self.close(index, at);
        }
        self.classes[at].free_slots -= free;
        self.classes[at].slots -= slots;
        true
    }

    /// Gives a free chunk the class and the slots it had in an earlier life: pairs of a slot and the length of its page,
    /// in order. `false`, and nothing changes, if there is no place for the class; the pages have to go then.
    pub(crate) fn adopt(&mut self, index: u32, slot_bytes: u32, pages: &[(u32, u32)]) -> bool {
        let learned = class::quarter_step(slot_bytes) != slot_bytes;
        let known = self.classes.binary_search_by_key(&slot_bytes, |class| class.slot_bytes).is_ok();
        if learned && !known && self.learned_count() >= self.learned_max {
            return false;
        }
        let place = self.free_chunks.iter().rposition(|&free| free == index);
        self.free_chunks.remove(place.expect("a chunk is adopted once, before anything else happens"));
        let at = self.place_of(slot_bytes, learned);
        self.assign(index, at);
        let class = &mut self.classes[at];
        for &(slot, len) in pages {
            self.chunks[index as usize].take_this(slot);
            class.in_use += 1;
            class.free_slots -= 1;
            class.asked_bytes += u64::from(len);
            self.held_bytes += u64::from(slot_bytes);
            self.asked_bytes += u64::from(len);
        }
        if pages.len() == self.chunks[index as usize].slots as usize {
            self.close(index, at);
        }
        for &(slot, _) in pages {
            self.touch(index, slot, slot_bytes);
        }
        true
    }

    /// The classes that were asked for slots since the last call.
    pub(crate) fn take_demand(&mut self) -> Vec<ClassDemand> {
        let mut demand = Vec::new();
        for at in 0..self.classes.len() {
            let fill = self.fill(at);
            let class = &mut self.classes[at];
            if class.asked {
                demand.push(ClassDemand { fill, chunks: class.chunks });
            }
            class.asked = false;
        }
        demand
    }

    /// How full the class of these slots is, if there is one.
    pub(crate) fn fill_of(&self, slot_bytes: u32) -> Option<ClassFill> {
        let at = self.classes.binary_search_by_key(&slot_bytes, |class| class.slot_bytes).ok()?;
        Some(self.fill(at))
    }

    pub(crate) fn chunks_of(&self, slot_bytes: u32) -> u32 {
        let at = self.classes.binary_search_by_key(&slot_bytes, |class| class.slot_bytes);
        at.map_or(0, |at| self.classes[at].chunks)
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub(crate) fn asked_bytes(&self) -> u64 {
        self.asked_bytes
    }

    pub(crate) fn free_chunk_count(&self) -> usize {
        self.free_chunks.len()
    }

    /// The chunks that will be opened next, and how much of them is to be resident.
    pub(crate) fn upcoming(&self) -> Upcoming {
        let mut chunks = self.free_chunks.iter().rev().copied();
        Upcoming::new(std::array::from_fn(|_| chunks.next()), self.chunk_bytes, self.untouched)
    }

    pub(crate) fn draining_chunk_count(&self) -> u32 {
        self.draining
    }

    pub(crate) fn is_draining(&self, index: u32) -> bool {
        self.chunks[index as usize].draining
    }

    pub(crate) fn classes(&self) -> Vec<ClassStatus> {
        let status = |class: &Class| ClassStatus {
            slot_bytes: class.slot_bytes,
            learned: class.learned,
            chunks: class.chunks,
            slots: u64::from(class.chunks) * u64::from(class.slots_per_chunk),
            in_use: class.in_use,
            asked_bytes: class.asked_bytes,
            remainder_bytes: u64::from(class.chunks) * u64::from(self.chunk_bytes % class.slot_bytes),
        };
        self.classes.iter().map(status).collect()
    }

    /// The place in the table of the class that a page gets.
    fn class_for(&mut self, exact: u32) -> usize {
        let Err(at) = self.classes.binary_search_by_key(&exact, |class| class.slot_bytes) else {
            return self.place_of(exact, true);
        };
        if self.learned_count() < self.learned_max {
            self.classes.insert(at, Class::new(exact, self.chunk_bytes, true));
            return at;
        }
        if let Some(idle) = self.classes.iter().position(|class| class.learned && class.chunks == 0) {
            self.classes.remove(idle);
            return self.place_of(exact, true);
        }
        self.place_of(class::quarter_step(exact), false)
    }

    fn learned_count(&self) -> usize {
        self.classes.iter().filter(|class| class.learned).count()
    }

    /// Finds the class of exactly this slot size or adds it.
    fn place_of(&mut self, slot_bytes: u32, learned: bool) -> usize {
        match self.classes.binary_search_by_key(&slot_bytes, |class| class.slot_bytes) {
            Ok(at) => at,
            Err(at) => {
                self.classes.insert(at, Class::new(slot_bytes, self.chunk_bytes, learned));
                at
            }
        }
    }

    fn fill(&self, at: usize) -> ClassFill {
        let class = &self.classes[at];
        let spare = self.free_chunks.len() as u64 * u64::from(class.slots_per_chunk);
        ClassFill {
            slot_bytes: class.slot_bytes,
            available: class.free_slots + spare,
            potential: class.slots + spare,
            held_bytes: self.held_bytes,
        }
    }

    /// Gives a free chunk to a class.
    fn assign(&mut self, index: u32, at: usize) {
        let class = &mut self.classes[at];
        let place = class.open.len();
        self.chunks[index as usize] = Chunk::of(class.slot_bytes, class.slots_per_chunk, place);
        class.open.push(index);
        class.chunks += 1;
        class.free_slots += u64::from(class.slots_per_chunk);
        class.slots += u64::from(class.slots_per_chunk);
        self.untouched += u64::from(self.chunk_bytes - self.touched[index as usize]);
    }

    /// Moves an empty chunk to the free pool.
    fn release(&mut self, index: u32) {
        let chunk = &self.chunks[index as usize];
        let (slots, draining) = (u64::from(chunk.slots), chunk.draining);
        let at = self.classes.binary_search_by_key(&chunk.slot_bytes, |class| class.slot_bytes);
        let at = at.expect("a class with chunks is in the table");
        if draining {
            self.draining -= 1;
        } else {
            self.close(index, at);
            self.classes[at].free_slots -= slots;
            self.classes[at].slots -= slots;
        }
        self.classes[at].chunks -= 1;
        self.chunks[index as usize] = Chunk::default();
        self.untouched -= u64::from(self.chunk_bytes - self.touched[index as usize]);
        self.free_chunks.push(index);
    }

    /// Takes a chunk out of its class's list of open chunks.
    fn close(&mut self, index: u32, at: usize) {
        let place = self.chunks[index as usize].place;
        let open = &mut self.classes[at].open;
        debug_assert_eq!(open.get(place), Some(&index));
        open.swap_remove(place);
        if let Some(&moved) = open.get(place) {
            self.chunks[moved as usize].place = place;
        }
    }
}

impl Class {
    fn new(slot_bytes: u32, chunk_bytes: u32, learned: bool) -> Self {
        Self {
            slot_bytes,
            slots_per_chunk: chunk_bytes / slot_bytes,
            learned,
            chunks: 0,
            in_use: 0,
            asked_bytes: 0,
            free_slots: 0,
            slots: 0,
            open: Vec::new(),
            asked: false,
        }
    }
}

impl Chunk {
    /// A chunk of `slots` free slots.
    fn of(slot_bytes: u32, slots: u32, place: usize) -> Self {
        let mut free = vec![u64::MAX; slots.div_ceil(64) as usize].into_boxed_slice();
        if let (Some(last), used @ 1..) = (free.last_mut(), slots % 64) {
            *last = (1 << used) - 1;
        }
        Self { slot_bytes, slots, in_use: 0, draining: false, free, hint: 0, place }
    }

    /// Takes the free slot with the lowest number, so that pages crowd at the start of a chunk.
    fn take_lowest(&mut self) -> u32 {
        let rest = self.free[self.hint..].iter().position(|&word| word != 0);
        let word = self.hint + rest.expect("an open chunk has a free slot");
        let bit = self.free[word].trailing_zeros();
        self.free[word] &= self.free[word] - 1;
        self.hint = word;
        self.in_use += 1;
        // A chunk has at most 2^32 slots, so the word's number fits.
        u32::try_from(word).expect("slot numbers fit 32 bits") * 64 + bit
    }

    /// Takes a slot that is free.
    fn take_this(&mut self, slot: u32) {
        let (word, bit) = ((slot / 64) as usize, 1 << (slot % 64));
        assert!(slot < self.slots && self.free[word] & bit != 0, "a slot was taken that was not free");
        self.free[word] &= !bit;
        self.in_use += 1;
    }

    fn put_back(&mut self, slot: u32) {
        let (word, bit) = ((slot / 64) as usize, 1 << (slot % 64));
        assert!(slot < self.slots && self.free[word] & bit == 0, "a slot was given back that was not in use");
        self.free[word] |= bit;
        self.hint = self.hint.min(word);
        self.in_use -= 1;
    }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
