//! How long pages of each class wait for their next use, learned from all pages here and remembered.
//!
//! A life starts with a use and ends with the next one, or when the page is forgotten. For each class and each bucket
//! of age there are: uses at that age, and the time that lives spent at that age. Their ratio is the hazard: the chance
//! per millisecond that a page of this class and age is used. Lives that still go on count as far as they got, so what
//! was not used yet is not taken for used soon or never.
//!
//! Few uses tell little about a single class. So a class starts as the product of what is known of its age, of its
//! number of uses and of its gaps, over all classes; the more is seen of the class itself, the more that counts.
//!
//! From the hazards follows what a page is worth: the most uses per time of residence that one gets by keeping it for
//! some time from now, whatever time is best. (The hazard of this moment alone would evict pages just before they are
//! wanted.)

use super::age::{BUCKETS, start_ms, width_ms};
use super::word::{CLASSES, PARTS, parts};
use std::sync::OnceLock;

/// A number per class and bucket.
pub(crate) type Table = Vec<[f64; BUCKETS]>;

pub(crate) fn table() -> Table {
    vec![[0.0; BUCKETS]; CLASSES]
}

/// What pages are worth, by class and age. A class is worked out when the first of its pages is asked for: most stores have
/// pages of few classes.
#[derive(Debug)]
pub(crate) struct Worth {
    hazards: Table,
    rates: Vec<OnceLock<[f64; BUCKETS]>>,
}

impl Worth {
    /// Uses per ms of a page of this class and bucket of age.
    pub(crate) fn of(&self, class: usize, bucket: usize) -> f64 {
        self.rates[class].get_or_init(|| best_rates(&self.hazards[class]))[bucket]
    }
}

/// What a hazard is supposed to be times the age before anything is seen: a use becomes rarer as time passes.
const PRIOR: f64 = 0.2;
/// How many chains' worth of uses the prior of a factor weighs, and of a class.
const FACTOR_CHAINS: f64 = 1.0;
const CLASS_CHAINS: f64 = 20.0;
/// Rounds in which the factors settle.
const SWEEPS: usize = 3;
/// How much of an observation is forgotten at each lesson.
const KEEP: f64 = 0.995;

/// What was seen of lives that ended.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Uses, by the age at which they came.
    pub(crate) uses: Table,
    /// Lives that ended in any way, by age.
    pub(crate) ended: Table,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self { uses: table(), ended: table() }
    }

    /// Forgets a little, so that the present outweighs the past.
    pub(crate) fn fade(&mut self) {
        for number in self.uses.iter_mut().chain(&mut self.ended).flatten() {
            *number *= KEEP;
        }
    }

    /// What pages are worth, given the lives that go on; `chain` is the mean number of pages that are used together.
    pub(crate) fn worth(&self, living: &Table, chain: f64) -> Worth {
        let (mut uses, mut time) = (self.uses.clone(), self.times(living));
        smooth(&mut uses, &mut time);
        let hazards = hazards(&uses, &time, chain.max(1.0));
        Worth { hazards, rates: vec![OnceLock::new(); CLASSES] }
    }

    /// The time that lives spent at each age: all of the buckets before the one in which they are, and half of that.
    fn times(&self, living: &Table) -> Table {
        let mut time = table();
        for (class, row) in time.iter_mut().enumerate() {
            let mut older = 0.0;
            for bucket in (0..BUCKETS).rev() {
                let here = self.ended[class][bucket] + living[class][bucket];
                row[bucket] = (here / 2.0 + older) * width_ms(bucket);
                older += here;
            }
        }
        time
    }
}

/// Lets each bucket know what its neighbours saw, scaled as if the hazard fell with age.
fn smooth(uses: &mut Table, time: &mut Table) {
    let step = width_ms(3) / width_ms(2);
    for (uses, time) in uses.iter_mut().zip(time) {
        let (seen, spent) = (*uses, *time);
        for bucket in 1..BUCKETS - 1 {
            uses[bucket] = seen[bucket - 1] + seen[bucket] + seen[bucket + 1];
            time[bucket] = spent[bucket - 1] * step + spent[bucket] + spent[bucket + 1] / step;
        }
    }
}

/// The hazard of each class and bucket, per ms.
fn hazards(uses: &Table, time: &Table, chain: f64) -> Table {
    let weight = FACTOR_CHAINS * chain;
    let mut factors = PARTS.map(|count| vec![1.0; count]);
    let mut base = [0.0; BUCKETS];
    let factor = |factors: &[Vec<f64>; 2], class: usize| {
        let [uses, gap] = parts(class);
        factors[0][uses] * factors[1][gap]
    };
    let used: Vec<usize> = (0..CLASSES).filter(|&class| time[class].iter().any(|&time| time > 0.0)).collect();
    for _ in 0..SWEEPS {
        for (bucket, base) in base.iter_mut().enumerate() {
            let prior = PRIOR / (start_ms(bucket) + width_ms(bucket) / 2.0);
            let seen: f64 = used.iter().map(|&class| uses[class][bucket]).sum();
            let spent: f64 = used.iter().map(|&class| time[class][bucket] * factor(&factors, class)).sum();
            *base = (seen + weight) / (spent + weight / prior);
        }
        for part in 0..PARTS.len() {
            let mut seen = vec![weight; PARTS[part]];
            let mut expected = vec![weight; PARTS[part]];
            for &class in &used {
                let own = parts(class)[part];
                let others = factor(&factors, class) / factors[part][own];
                for bucket in 0..BUCKETS {
                    seen[own] += uses[class][bucket];
                    expected[own] += time[class][bucket] * base[bucket] * others;
                }
            }
            factors[part] = seen.iter().zip(&expected).map(|(seen, expected)| seen / expected).collect();
        }
    }
    let weight = CLASS_CHAINS * chain;
    let mut hazards = table();
    for (class, row) in hazards.iter_mut().enumerate() {
        for (bucket, hazard) in row.iter_mut().enumerate() {
            let prior = base[bucket] * factor(&factors, class);
            *hazard = (uses[class][bucket] + weight) / (time[class][bucket] + weight / prior);
        }
    }
    hazards
}

/// What happens to a page that is kept for a while: the chance of a use, and the time until then or until the end.
#[derive(Clone, Copy, Default)]
struct Stay {
    used: f64,
    time: f64,
}

impl Stay {
    fn new(hazard: f64, time: f64) -> Self {
        let used = -(-hazard * time).exp_m1();
        Self { used, time: if used > 1e-9 { used / hazard } else { time } }
    }
}

/// For each age, the best ratio of expected uses to expected time that keeping the page for some time has.
fn best_rates(hazard: &[f64; BUCKETS]) -> [f64; BUCKETS] {
    let mut stays = [Stay::default(); BUCKETS];
    for (bucket, stay) in stays.iter_mut().enumerate() {
        *stay = Stay::new(hazard[bucket], width_ms(bucket));
    }
    let mut rates = [0.0; BUCKETS];
    for (now, rate) in rates.iter_mut().enumerate() {
        // On average a page is in the middle of its bucket.
        let Stay { mut used, mut time } = Stay::new(hazard[now], width_ms(now) / 2.0);
        *rate = used / time;
        for stay in &stays[now + 1..] {
            let waiting = 1.0 - used;
            if waiting < 1e-6 {
                break;
            }
            used += waiting * stay.used;
            time += waiting * stay.time;
            *rate = f64::max(*rate, used / time);
        }
    }
    rates
}
