//! The circuit breaker of one server, as a function of events and time.
//!
//! | state | ops | leaves when |
//! |-------|-----|-------------|
//! | closed | go through | what [`Limits`] says has happened: open |
//! | open | are refused at once | the pause is over: probing |
//! | probing | are refused at once | the background's probe succeeds: trial; fails: open with twice the pause |
//! | trial | a few at a time, more with each success | enough succeeded: closed; one fails: open with twice the pause |
//!
//! A server has two: one for everything, and one for stores alone. A server that is too slow for stores may still do
//! for loads; the other way round it is of no use.
//!
//! A server that answers probes and small requests in time, but not those that move pages, would come back again and
//! again. So what closes a breaker in its trial are ops of the kind that opened it, and one that opens again soon
//! after it closed goes on with the pause it had.
//!
//! Time and jitter come in as arguments.

use crate::backoff::{PAUSE_MAX, PAUSE_MIN, jittered};
use memkv_transport::frame::Op;
use std::time::Duration;
use tokio::time::Instant;

/// The longest pause of a server that answers, but too slowly.
const SLOW_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The shortest and the longest pause of a server whose answers are corrupt.
const CORRUPT_PAUSE_MIN: Duration = Duration::from_secs(5);
const CORRUPT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Closed for less than so many pauses, it has not recovered.
const RELAPSE_PAUSES: u32 = 10;
/// Successes that end a trial.
const TRIALS: u32 = 8;
/// Times in a row that a server is left early before it counts as silent. Early is no sign by itself: one read in a
/// hundred is.
const LEFT_MAX: u32 = 8;
/// What one corrupt answer weighs; a sound one takes 1 away.
const CORRUPT_WEIGHT: u32 = 4;
/// The weight that opens the breaker.
const CORRUPT_MAX: u32 = 8 * CORRUPT_WEIGHT;

/// What an op does with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Asks about them.
    Look = 0,
    /// Brings them here.
    Load = 1,
    /// Takes them there.
    Store = 2,
}

impl Kind {
    pub(crate) fn of(op: Op) -> Self {
        match op {
            Op::Get => Self::Load,
            Op::Put | Op::PutData => Self::Store,
            Op::Exists | Op::Delete | Op::Touch | Op::Ping | Op::Bind | Op::Release => Self::Look,
        }
    }
}

/// What went wrong with an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The deadline passed, and not one byte had come.
    Silent,
    /// The deadline passed while bytes were coming.
    Slow,
    /// It was left early, because another server may have the pages.
    Left,
    /// The connection broke, or the peer broke the protocol.
    Broken,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The server does not answer.
    Silent,
    /// It answers, but pages take too long.
    Slow,
    /// A connection broke.
    Broken,
    /// Its pages do not match their checksums.
    Corrupt,
}

impl Cause {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Broken => "broken",
            Self::Corrupt => "corrupt",
        }
    }

    /// The shortest and the longest pause.
    fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Silent | Self::Broken => (PAUSE_MIN, PAUSE_MAX),
            Self::Slow => (PAUSE_MIN, SLOW_PAUSE_MAX),
            Self::Corrupt => (CORRUPT_PAUSE_MIN, CORRUPT_PAUSE_MAX),
        }
    }
}

/// What opens a breaker besides a broken connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Timeouts in a row of one kind of op.
    timeouts: u32,
    /// The kind of op that a slow server is judged by.
    judged: Kind,
}

/// For everything: two timeouts in a row may still be chance.
pub(crate) const SERVER: Limits = Limits { timeouts: 2, judged: Kind::Load };
/// For stores: nobody waits for what they bring, so they give way at the first sign.
pub(crate) const STORES: Limits = Limits { timeouts: 1, judged: Kind::Store };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing,
    Trial { under_way: u32, passed: u32 },
}

/// Whether an op may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Free,
    /// As one of a few; [`Breaker::trial_over`] must follow.
    Trial(Permit),
    Refused,
}

/// Which trial an op belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permit(u64);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Breaker {
    limits: Limits,
    state: State,
    /// Timeouts in a row, by kind.
    timeouts: [u32; 3],
    /// Times in a row that it was left early.
    left: u32,
    /// Grows with corrupt answers, shrinks with sound ones.
    corrupt: u32,
    /// Why it opened last.
    cause: Cause,
    /// The last pause, and until when another opening counts as a relapse.
    pause: Duration,
    relapse_until: Option<Instant>,
    opened: u64,
}

impl Breaker {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Closed,
            timeouts: [0; 3],
            left: 0,
            corrupt: 0,
            cause: Cause::Broken,
            pause: Duration::ZERO,
            relapse_until: None,
            opened: 0,
        }
    }

    /// Whether any op may go to the server.
    pub(crate) fn allows(&self) -> bool {
        matches!(self.state, State::Closed | State::Trial { .. })
    }

    /// How often the breaker opened.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Why it opened last.
    pub(crate) fn cause(&self) -> Cause {
        self.cause
    }

    /// Whether an op of this kind may go to the server now.
    pub(crate) fn admit(&mut self, kind: Kind) -> Admission {
        let judges = self.judges(kind);
        match &mut self.state {
            State::Closed => Admission::Free,
            State::Trial { .. } if !judges => Admission::Free,
            State::Trial { under_way, passed } if *under_way <= *passed => {
                *under_way += 1;
                Admission::Trial(Permit(self.opened))
            }
            State::Trial { .. } | State::Open { .. } | State::Probing => Admission::Refused,
        }
    }

    /// Whether an op of this kind shows that what opened the breaker is over.
    fn judges(&self, kind: Kind) -> bool {
        match self.cause {
            Cause::Silent | Cause::Broken => true,
            Cause::Slow => kind == self.limits.judged,
            Cause::Corrupt => kind == Kind::Load,
        }
    }

    /// An op that was admitted for trial is over, however it went.
    pub(crate) fn trial_over(&mut self, permit: Permit) {
        if let State::Trial { under_way, .. } = &mut self.state
            && permit.0 == self.opened
        {
            *under_way = under_way.saturating_sub(1);
        }
    }

    /// An exchange succeeded. One that began before the breaker opened proves nothing about later.
    pub(crate) fn success(&mut self, kind: Kind, permit: Option<Permit>, now: Instant) {
        match &mut self.state {
            State::Closed => {
                self.timeouts[Kind::Look as usize] = 0;
                self.timeouts[kind as usize] = 0;
                self.left = 0;
            }
            State::Trial { passed, .. } if permit == Some(Permit(self.opened)) => {
                *passed += 1;
                if *passed >= TRIALS {
                    self.state = State::Closed;
                    self.relapse_until = Some(now + self.pause * RELAPSE_PAUSES);
                }
            }
            State::Trial { .. } | State::Open { .. } | State::Probing => {}
        }
    }

    /// An exchange failed; returns whether that opened the breaker. `jitter` is from 0 to 1.
    pub(crate) fn failure(&mut self, kind: Kind, failure: Failure, now: Instant, jitter: f64) -> bool {
        let cause = match failure {
            Failure::Broken => Cause::Broken,
            Failure::Silent | Failure::Left => Cause::Silent,
            Failure::Slow => Cause::Slow,
        };
        match self.state {
            State::Open { .. } | State::Probing => false,
            State::Trial { .. } => {
                self.open_again(cause, now, jitter);
                true
            }
            State::Closed if failure == Failure::Left => {
                self.left += 1;
                let opens = self.left >= LEFT_MAX;
                if opens {
                    self.open_first(cause, now, jitter);
                }
                opens
            }
            State::Closed => {
                // Silence counts whatever was asked for.
                let counted = if failure == Failure::Slow { kind } else { Kind::Look };
                let timeouts = &mut self.timeouts[counted as usize];
                *timeouts += 1;
                let opens = failure == Failure::Broken || *timeouts >= self.limits.timeouts;
                if opens {
                    self.open_first(cause, now, jitter);
                }
                opens
            }
        }
    }

    /// An answer with pages came; returns whether it opened the breaker.
    pub(crate) fn answer(&mut self, sound: bool, now: Instant, jitter: f64) -> bool {
        if sound {
            self.corrupt = self.corrupt.saturating_sub(1);
            return false;
        }
        if matches!(self.state, State::Trial { .. }) && self.cause == Cause::Corrupt {
            self.open_again(Cause::Corrupt, now, jitter);
            return true;
        }
        self.corrupt += CORRUPT_WEIGHT;
        let opens = self.corrupt >= CORRUPT_MAX && self.allows();
        if opens {
            self.open_first(Cause::Corrupt, now, jitter);
        }
        opens
    }

    /// When the next probe is due, if the breaker waits for one.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed | State::Probing | State::Trial { .. } => None,
        }
    }

    /// Begins a probe if one is due.
    pub(crate) fn begin_probe(&mut self, now: Instant) -> bool {
        match self.state {
            State::Open { until } if until <= now => {
                self.state = State::Probing;
                true
            }
            State::Closed | State::Open { .. } | State::Probing | State::Trial { .. } => false,
        }
    }

    /// Ends the probe that [`Breaker::begin_probe`] began.
    pub(crate) fn end_probe(&mut self, ok: bool, now: Instant, jitter: f64) {
        if self.state != State::Probing {
            return;
        }
        if ok {
            self.state = State::Trial { under_way: 0, passed: 0 };
        } else {
            self.open_again(self.cause, now, jitter);
        }
    }

    /// A new session is open: what happened to the old one does not count, but for lies.
    pub(crate) fn reset(&mut self, now: Instant) {
        if self.cause == Cause::Corrupt && self.state != State::Closed {
            if self.state == State::Probing {
                // The probe went with the session.
                self.state = State::Open { until: now };
            }
            return;
        }
        self.state = State::Closed;
        self.timeouts = [0; 3];
        self.relapse_until = None;
    }

    fn open_first(&mut self, cause: Cause, now: Instant, jitter: f64) {
        if self.relapse_until.is_some_and(|until| now < until) {
            return self.open_again(cause, now, jitter);
        }
        self.open(cause, cause.pauses().0, now, jitter);
    }

    fn open_again(&mut self, cause: Cause, now: Instant, jitter: f64) {
        let (least, most) = cause.pauses();
        self.open(cause, (self.pause * 2).clamp(least, most), now, jitter);
    }

    fn open(&mut self, cause: Cause, pause: Duration, now: Instant, jitter: f64) {
        self.opened += 1;
        self.timeouts = [0; 3];
        self.left = 0;
        self.corrupt = 0;
        self.relapse_until = None;
        (self.cause, self.pause) = (cause, pause);
        self.state = State::Open { until: now + jittered(pause, jitter) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Failure::{Broken, Silent, Slow};
    use Kind::{Load, Look, Store};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Ends the pause, and the probe with success.
    fn probed(breaker: &mut Breaker) -> Instant {
        let now = breaker.probe_at().unwrap();
        assert!(breaker.begin_probe(now));
        breaker.end_probe(true, now, 1.0);
        now
    }

    fn trial(breaker: &mut Breaker, kind: Kind) -> Permit {
        match breaker.admit(kind) {
            Admission::Trial(permit) => permit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_timeouts_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SERVER);
        assert!(!breaker.failure(Load, Silent, now, 1.0));
        breaker.success(Look, None, now);
        assert!(!breaker.failure(Load, Silent, now, 1.0), "a success in between counts");
        assert_eq!(breaker.admit(Load), Admission::Free);
        assert!(breaker.failure(Look, Silent, now, 1.0));
        assert_eq!(breaker.admit(Look), Admission::Refused);
        assert_eq!(breaker.probe_at(), Some(now + MS(100)));
        assert_eq!((breaker.opened(), breaker.cause()), (1, Cause::Silent));
    }

    #[test]
    fn small_requests_that_succeed_do_not_excuse_slow_pages() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SERVER);
        assert!(!breaker.failure(Load, Slow, now, 1.0));
        breaker.success(Look, None, now);
        assert!(breaker.failure(Load, Slow, now, 1.0));
        // Nor do they end the trial.
        probed(&mut breaker);
        for _ in 0..100 {
            assert_eq!(breaker.admit(Look), Admission::Free);
            breaker.success(Look, None, now);
        }
        trial(&mut breaker, Load);
        assert_eq!(breaker.admit(Load), Admission::Refused, "one at a time at first");
    }

    #[test]
    fn stores_give_way_at_the_first_sign() {
        let mut breaker = Breaker::new(STORES);
        assert!(breaker.failure(Store, Slow, Instant::now(), 1.0));
        let mut breaker = Breaker::new(STORES);
        assert!(breaker.failure(Store, Silent, Instant::now(), 1.0));
    }

    #[test]
    fn a_server_that_is_always_left_early_is_silent() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SERVER);
        for _ in 0..100 {
            assert!(!breaker.failure(Load, Failure::Left, now, 1.0));
            breaker.success(Load, None, now);
        }
        let times = (1..100).find(|_| breaker.failure(Load, Failure::Left, now, 1.0));
        assert_eq!(times, Some(LEFT_MAX));
    }

    #[test]
    fn a_broken_connection_opens_it_at_once() {
        let mut breaker = Breaker::new(SERVER);
        assert!(breaker.failure(Look, Broken, Instant::now(), 0.0));
        assert!(!breaker.allows());
    }

    #[test]
    fn probes_wait_double_and_lead_to_a_trial() {
        let start = Instant::now();
        let mut breaker = Breaker::new(SERVER);
        breaker.failure(Load, Broken, start, 1.0);
        assert!(!breaker.begin_probe(start + MS(99)));
        assert!(breaker.begin_probe(start + MS(100)));
        assert!(!breaker.begin_probe(start + MS(100)), "one probe at a time");
        assert_eq!(breaker.admit(Load), Admission::Refused, "user calls are no probes");
        breaker.end_probe(false, start + MS(100), 1.0);
        assert_eq!(breaker.probe_at(), Some(start + MS(300)));
        breaker.success(Load, None, start);
        assert!(!breaker.allows(), "a late success of an old call does not close it");
        assert!(breaker.begin_probe(start + MS(300)));
        breaker.end_probe(true, start + MS(300), 1.0);
        assert!(breaker.allows());
    }

    #[test]
    fn a_trial_lets_in_more_with_each_success_and_then_all() {
        let mut breaker = Breaker::new(SERVER);
        breaker.failure(Load, Broken, Instant::now(), 1.0);
        let now = probed(&mut breaker);
        for passed in 0..TRIALS {
            let permits: Vec<_> = (0..=passed).map(|_| trial(&mut breaker, Load)).collect();
            assert_eq!(breaker.admit(Load), Admission::Refused);
            breaker.success(Load, Some(permits[0]), now);
            permits.into_iter().for_each(|permit| breaker.trial_over(permit));
        }
        assert_eq!(breaker.admit(Load), Admission::Free);
        assert!(!breaker.failure(Load, Silent, now, 1.0), "counting starts again");
    }

    #[test]
    fn what_fails_its_trial_or_soon_after_waits_longer() {
        let mut breaker = Breaker::new(SERVER);
        breaker.failure(Load, Broken, Instant::now(), 1.0);
        let now = probed(&mut breaker);
        let permit = trial(&mut breaker, Load);
        assert!(breaker.failure(Load, Slow, now, 1.0), "one is enough");
        breaker.trial_over(permit);
        assert_eq!(breaker.probe_at(), Some(now + MS(200)));
        let now = probed(&mut breaker);
        breaker.success(Load, Some(permit), now);
        assert_eq!(breaker.state, State::Trial { under_way: 0, passed: 0 }, "a permit of an earlier trial");
        for _ in 0..TRIALS {
            let permit = trial(&mut breaker, Load);
            breaker.success(Load, Some(permit), now);
            breaker.trial_over(permit);
        }
        let mut later = Breaker { state: State::Closed, ..Breaker::new(SERVER) };
        (later.pause, later.relapse_until) = (breaker.pause, breaker.relapse_until);
        assert!(breaker.failure(Load, Broken, now + MS(1999), 1.0));
        assert_eq!(breaker.probe_at(), Some(now + MS(1999 + 400)));
        assert!(later.failure(Load, Broken, now + MS(2001), 1.0));
        assert_eq!(later.probe_at(), Some(now + MS(2001 + 100)));
    }

    #[test]
    fn pauses_are_bounded() {
        for (failure, most) in [(Broken, PAUSE_MAX), (Slow, SLOW_PAUSE_MAX)] {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(STORES);
            breaker.failure(Store, failure, now, 1.0);
            let mut last = Duration::ZERO;
            for _ in 0..20 {
                last = breaker.probe_at().unwrap() - now;
                now = breaker.probe_at().unwrap();
                assert!(breaker.begin_probe(now));
                breaker.end_probe(false, now, 1.0);
            }
            assert_eq!(last, most);
        }
    }

    #[test]
    fn lies_open_it_for_longer_and_a_new_session_does_not_excuse_them() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SERVER);
        for _ in 0..100 {
            assert!(!breaker.answer(false, now, 1.0), "a page now and then is another matter");
            (0..CORRUPT_WEIGHT).for_each(|_| assert!(!breaker.answer(true, now, 1.0)));
        }
        let answers = (1..=100).find(|_| breaker.answer(false, now, 1.0));
        assert_eq!((answers, breaker.cause()), (Some(8), Cause::Corrupt));
        assert_eq!(breaker.probe_at(), Some(now + CORRUPT_PAUSE_MIN));
        breaker.reset(now);
        assert!(!breaker.allows());
        let now = breaker.probe_at().unwrap();
        assert!(breaker.begin_probe(now));
        breaker.reset(now);
        let now = probed(&mut breaker);
        assert!(breaker.answer(false, now, 1.0), "one more lie is enough");
        assert_eq!(breaker.probe_at(), Some(now + 2 * CORRUPT_PAUSE_MIN));
    }
}
