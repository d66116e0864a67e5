//! What is under way: bytes without an acknowledgement, questions without an answer, and how the session ended.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rehost_protocol::{Digest, DigestChunk, DigestId, DigestReply, DigestRun, Sequence};

use super::{
    control::SyncControl,
    error::{Halt, SyncError},
};
use crate::tracker::ByteRange;

/// A waiting thread looks up this often even if nobody wakes it: it may have been told to stop.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Shared by the threads of one session.
pub(super) struct Ledger<'a> {
    control: &'a SyncControl,
    window: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes of disk that were sent, and how many of them are durable.
    sent: u64,
    acknowledged: u64,
    barriers: VecDeque<SentBarrier>,
    ticket: Ticket,
    /// What is durable, for the driver to settle.
    settled: Vec<Settled>,
    /// Digest requests, and the answers that have come.
    questions: HashMap<DigestId, Question>,
    over: bool,
    error: Option<SyncError>,
    acknowledged_once: bool,
}

/// A barrier that was sent.
pub(super) struct Barrier {
    pub(super) seq: Sequence,
    /// How far the first copy of each disk had come, in the order of the configuration.
    pub(super) marks: Vec<u64>,
    /// What was sent since the barrier before, by disk.
    pub(super) settles: Vec<Settled>,
    pub(super) ticket: Option<Ticket>,
}

/// What the driver waits for; each is larger than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(pub(super) u64);

/// A stretch of a disk (given by its place), everything pending in which was sent or found equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) place: usize,
    pub(super) range: ByteRange,
}

impl Settled {
    /// Adds to a list, in which stretches of a disk that follow each other are one: a pass goes upwards, and nothing pending
    /// lies between what it sends.
    pub(super) fn add_to(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if last.place == self.place && self.range.offset >= last.range.offset => {
                let end = last.range.end().max(self.range.end());
                last.range.length = end - last.range.offset;
            }
            _ => list.push(self),
        }
    }
}

/// The digests of the first part of a requested range.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) covered: u64,
    pub(super) runs: Vec<Run>,
}

/// A run of chunks in an answer.
#[derive(Debug)]
pub(super) enum Run {
    Zero(u64),
    Digests(Vec<Digest>),
}

impl<'a> Ledger<'a> {
    pub(super) fn new(control: &'a SyncControl, window: u64) -> Self {
        Self { control, window, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Enters bytes that are about to be sent, if the window has room for them. A single block always fits.
    pub(super) fn try_reserve(&self, bytes: u64) -> bool {
        self.lock().try_reserve(bytes, self.window)
    }

    /// Waits until the window has room.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), Halt> {
        self.wait(|state| state.try_reserve(bytes, self.window).then_some(()))
    }

    pub(super) fn enter_barrier(&self, barrier: Barrier) {
        let mut state = self.lock();
        let sent = state.sent;
        state.barriers.push_back(SentBarrier { barrier, sent });
    }

    /// Takes an acknowledgement; returns the marks that it makes durable.
    pub(super) fn acknowledge(&self, seq: Sequence) -> Result<Vec<u64>, SyncError> {
        let mut state = self.lock();
        let mut newest = None;
        while state.barriers.front().is_some_and(|sent| sent.barrier.seq <= seq) {
            let Some(sent) = state.barriers.pop_front() else { break };
            state.acknowledged = sent.sent;
            state.ticket = sent.barrier.ticket.unwrap_or(state.ticket);
            sent.barrier.settles.iter().for_each(|settled| settled.add_to(&mut state.settled));
            newest = Some(sent.barrier);
        }
        state.acknowledged_once = true;
        self.changed.notify_all();
        let newest = newest.filter(|barrier| barrier.seq == seq);
        let unknown = || SyncError::Protocol(format!("barrier {} was acknowledged, but never sent", seq.0));
        newest.map(|barrier| barrier.marks).ok_or_else(unknown)
    }

    /// Waits until the barrier with this ticket is acknowledged.
    pub(super) fn wait_for(&self, ticket: Ticket) -> Result<(), Halt> {
        self.wait(|state| (state.ticket >= ticket).then_some(()))
    }

    /// What became durable since it was asked for last.
    pub(super) fn take_settled(&self) -> Vec<Settled> {
        std::mem::take(&mut self.lock().settled)
    }

    pub(super) fn ask(&self, id: DigestId, chunk: DigestChunk) {
        self.lock().questions.insert(id, Question { chunk, answer: None });
    }

    /// Takes an answer; there may only be one to each question.
    pub(super) fn answer(&self, reply: &DigestReply<'_>) -> Result<(), SyncError> {
        let mut state = self.lock();
        match state.questions.get_mut(&reply.id) {
            Some(Question { chunk, answer: answer @ None }) if *chunk == reply.chunk => {
                *answer = Some(Answer::of(reply))
            }
            _ => return Err(SyncError::Protocol("digests came that were not asked for".into())),
        }
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn wait_for_answer(&self, id: DigestId) -> Result<Answer, Halt> {
        self.wait(|state| {
            let answer = state.questions.get_mut(&id)?.answer.take()?;
            state.questions.remove(&id);
            Some(answer)
        })
    }

    /// The session is over; the first reason given is the one that counts.
    pub(super) fn end(&self, error: Option<SyncError>) {
        let mut state = self.lock();
        if !state.over {
            state.over = true;
            state.error = error;
        }
        self.changed.notify_all();
    }

    /// [`Halt`] if the session is over or was told to stop.
    pub(super) fn check(&self) -> Result<(), Halt> {
        self.halted(&self.lock())
    }

    pub(super) fn into_result(self) -> Closing {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Closing { error: state.error, acknowledged: state.acknowledged_once }
    }

    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> Result<T, Halt> {
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            self.halted(&state)?;
            let woken = self.changed.wait_timeout(state, LOOK_UP);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn halted(&self, state: &State) -> Result<(), Halt> {
        match (state.over, self.control.stopped()) {
            (true, _) => Err(Halt::Ended),
            (false, true) => Err(Halt::Stopped),
            (false, false) => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left of a ledger.
pub(super) struct Closing {
    pub(super) error: Option<SyncError>,
    /// Something became durable: the session was not in vain.
    pub(super) acknowledged: bool,
}

/// A request for digests.
struct Question {
    chunk: DigestChunk,
    answer: Option<Answer>,
}

/// A barrier, and what was sent before it.
struct SentBarrier {
    barrier: Barrier,
    sent: u64,
}

impl State {
    fn try_reserve(&mut self, bytes: u64, window: u64) -> bool {
        let under_way = self.sent - self.acknowledged;
        let fits = under_way == 0 || under_way + bytes <= window;
        if fits {
            self.sent += bytes;
        }
        fits
    }
}

impl Answer {
    fn of(reply: &DigestReply<'_>) -> Self {
        let run = |run| match run {
            DigestRun::Zero(count) => Run::Zero(count),
            DigestRun::Digests(digests) => Run::Digests(digests.to_vec()),
        };
        Self { covered: reply.covered.0, runs: reply.runs.iter().map(run).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barrier(seq: u64, mark: u64) -> Barrier {
        let range = ByteRange { offset: mark, length: 5 };
        let settles = vec![Settled { place: 0, range }];
        Barrier { seq: Sequence(seq), marks: vec![mark], settles, ticket: Some(Ticket(seq)) }
    }

    #[test]
    fn the_window_opens_with_acknowledgements() {
        let control = SyncControl::new();
        let ledger = Ledger::new(&control, 100);
        assert!(ledger.try_reserve(60));
        ledger.enter_barrier(barrier(1, 60));
        assert!(ledger.try_reserve(40));
        assert!(!ledger.try_reserve(1));
        assert_eq!(ledger.acknowledge(Sequence(1)).unwrap(), [60]);
        assert!(ledger.try_reserve(60));
        assert!(!ledger.try_reserve(1));
    }

    #[test]
    fn a_block_larger_than_the_window_travels_alone() {
        let control = SyncControl::new();
        let ledger = Ledger::new(&control, 10);
        assert!(ledger.try_reserve(500));
        assert!(!ledger.try_reserve(1));
    }

    #[test]
    fn one_acknowledgement_covers_what_came_before() {
        let control = SyncControl::new();
        let ledger = Ledger::new(&control, 100);
        for seq in 1..=3 {
            ledger.enter_barrier(barrier(seq, seq * 10));
        }
        assert_eq!(ledger.acknowledge(Sequence(3)).unwrap(), [30]);
        assert!(ledger.acknowledge(Sequence(3)).is_err());
        assert!(ledger.acknowledge(Sequence(9)).is_err());
        ledger.wait_for(Ticket(3)).unwrap();
        let range = ByteRange { offset: 10, length: 25 };
        assert_eq!(ledger.take_settled(), [Settled { place: 0, range }]);
        assert_eq!(ledger.take_settled(), []);
    }

    #[test]
    fn the_first_reason_counts_and_wakes_who_waits() {
        let control = SyncControl::new();
        let ledger = Ledger::new(&control, 100);
        ledger.end(Some(SyncError::NotConverging { passes: 1 }));
        ledger.end(Some(SyncError::Protocol("later".into())));
        assert!(matches!(ledger.wait_for(Ticket(1)), Err(Halt::Ended)));
        assert!(matches!(ledger.into_result().error, Some(SyncError::NotConverging { .. })));
    }
}
