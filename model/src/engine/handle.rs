//! An engine on a thread of its own, for programs with many threads.
//!
//! Requests wait in a bounded queue until the engine's thread takes them between two steps. What becomes of them is told to a sink, a
//! closure that is called on that thread. Nothing here blocks but [`EngineHandle::join`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use emberlm_quant::CompactBackend;
use emberlm_quant::panics::catch_quietly;

use super::check::RequestCheck;
use super::request::{EventKind, Request, Summary};
use super::totals::EngineTotals;
use super::{Engine, EngineOptions, SequenceId};
use crate::causal_lm::CausalLm;
use crate::error::{Error, Result};
use crate::text::TextProcessor;

/// Limits of a handle.
#[derive(Clone, Copy, Debug)]
pub struct HandleOptions {
    /// Requests that may wait for a place; places are [`EngineOptions::max_running`].
    pub max_waiting: usize,
}

impl Default for HandleOptions {
    fn default() -> Self {
        Self { max_waiting: 256 }
    }
}

/// An engine that runs on a thread of its own. Clones name the same engine.
///
/// When the last clone is gone the engine takes nothing more; what it has goes on to its end.
#[derive(Clone)]
pub struct EngineHandle(Arc<Front>);

/// What becomes of a request. `Finished`, without the cache, or `Failed` is the last of them.
pub type Update = EventKind<Summary>;

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no room for all of them now.
    #[error("{waiting} requests are waiting already, and there is room for {room} more; try again later")]
    Busy {
        /// Requests that wait.
        waiting: usize,
        /// Requests that would be taken.
        room: usize,
    },
    /// More at once than there is ever room for.
    #[error("{asked} requests at once, but at most {most} are taken; submit fewer at a time")]
    TooMany {
        /// Requests that were to be taken together.
        asked: usize,
        /// Requests that take part and wait at most.
        most: usize,
    },
    /// The request itself cannot be met: its prompt, an option, or memory.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// The engine takes nothing more, and ends.
    #[error("the engine takes no more requests; it is about to end")]
    Draining,
    /// The engine has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// What an engine is doing.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct EngineStatus {
    /// Requests that take part.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that take part at most.
    pub max_running: usize,
    /// Requests that wait at most.
    pub max_waiting: usize,
    /// Bytes of all caches, free slots and kept prefixes included.
    pub cache_bytes: usize,
    /// Of them those of kept prefixes.
    pub prefix_cache_bytes: usize,
    /// The most that they may take, where there is a limit.
    pub cache_limit: Option<usize>,
    /// What was done so far.
    pub totals: EngineTotals,
    /// When the last step ended; none before the first.
    pub last_step: Option<Instant>,
    /// When the step in progress began; none while nothing is to be done. One that began long ago hangs.
    pub step_began: Option<Instant>,
    /// Whether nothing more is taken.
    pub draining: bool,
    /// Whether the thread has ended, or is about to tell its requests so.
    pub stopped: bool,
}

/// A request that was taken. Dropping it cancels the request, within one step; one that has ended is not touched.
#[must_use = "dropping it cancels the request"]
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
    detached: bool,
}

impl Ticket {
    /// Ends the request within one step; its last update says so.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Lets the request run without the ticket.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.detached {
            self.cancel();
        }
    }
}

impl EngineHandle {
    /// Moves a model to a new thread, which serves requests until the last handle is gone or it is [told to end](Self::drain).
    ///
    /// # Errors
    /// [`Error::Stopped`] when the system gives no thread.
    pub fn spawn<B: CompactBackend>(
        model: CausalLm<B>,
        text: &TextProcessor,
        options: EngineOptions,
        handle: HandleOptions,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (check, empty) = (RequestCheck::new(&model, &options), model.new_cache(options.kv_format));
        let check = move |request: &Request| check.check(&empty, request);
        let (text, of_thread) = (text.clone(), shared.clone());
        let thread = std::thread::Builder::new().name("emberlm-engine".into());
        let thread = thread
            .spawn(move || run(&of_thread, model, &text, options))
            .map_err(|error| Error::Stopped(format!("the system gives it no thread ({error})")))?;
        let limits = Limits {
            max_running: options.max_running.max(1),
            max_waiting: handle.max_waiting,
            cache_bytes: options.cache_bytes,
        };
        Ok(Self(Arc::new(Front { shared, check: Box::new(check), limits, thread: Mutex::new(Some(thread)) })))
    }

    /// Hands a request over. `sink` is called on the engine's thread with every update; it must not block, since all requests wait
    /// for it. When it says `false` the request is cancelled and `sink` is not called again.
    ///
    /// # Errors
    /// [`Refused`], at once; `sink` was then never called.
    pub fn submit(
        &self,
        request: Request,
        sink: impl FnMut(Update) -> bool + Send + 'static,
    ) -> std::result::Result<Ticket, Refused> {
        let (client, ticket) = Client::new(sink);
        self.admit(vec![(request, client)])?;
        Ok(ticket)
    }

    /// As [`submit`](Self::submit), for requests that belong together: all of them are taken, or none.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); [`Refused::TooMany`] where there is never room for so many.
    pub fn submit_all<S: FnMut(Update) -> bool + Send + 'static>(
        &self,
        requests: impl IntoIterator<Item = (Request, S)>,
    ) -> std::result::Result<Vec<Ticket>, Refused> {
        let with_client = |(request, sink)| {
            let (client, ticket) = Client::new(sink);
            ((request, client), ticket)
        };
        let (requests, tickets) = requests.into_iter().map(with_client).unzip();
        self.admit(requests)?;
        Ok(tickets)
    }

    fn admit(&self, requests: Vec<(Request, Client)>) -> std::result::Result<(), Refused> {
        requests.iter().try_for_each(|(request, _)| (self.0.check)(request))?;
        let Limits { max_running, max_waiting, .. } = self.0.limits;
        let (asked, most) = (requests.len(), max_waiting.saturating_add(max_running));
        if asked > most {
            return Err(Refused::TooMany { asked, most });
        }
        let mut state = self.0.shared.lock();
        if state.stopped {
            return Err(Refused::Stopped);
        }
        if state.draining {
            return Err(Refused::Draining);
        }
        // Those that find a place at the next step do not wait. Where some wait although there are places, memory is short.
        let free = if state.engine.waiting > 0 { 0 } else { max_running.saturating_sub(state.engine.running) };
        let waiting = state.waiting();
        let room = max_waiting.saturating_add(free).saturating_sub(waiting);
        if asked > room {
            return Err(Refused::Busy { waiting: waiting.saturating_sub(free), room });
        }
        state.incoming.extend(requests);
        drop(state);
        self.0.shared.changed.notify_all();
        Ok(())
    }

    /// What the engine is doing, as of the end of its last step.
    pub fn status(&self) -> EngineStatus {
        let Limits { max_running, max_waiting, cache_bytes: cache_limit } = self.0.limits;
        let state = self.0.shared.lock();
        let waiting = state.waiting();
        let (draining, stopped) = (state.draining, state.stopped);
        let Published { running, cache_bytes, prefix_cache_bytes, totals, last_step, step_began, .. } = state.engine;
        EngineStatus {
            running,
            waiting,
            max_running,
            max_waiting,
            cache_bytes,
            prefix_cache_bytes,
            cache_limit,
            totals,
            last_step,
            step_began,
            draining,
            stopped,
        }
    }

    /// Takes no more requests. Those that were taken go on to their end; then the thread ends.
    pub fn drain(&self) {
        self.0.shared.update(|state| state.draining = true);
    }

    /// As [`drain`](Self::drain), and what was taken is cancelled within one step.
    pub fn shut_down(&self) {
        self.0.shared.update(|state| (state.draining, state.cancel_all) = (true, true));
    }

    /// [Drains](Self::drain) and waits for the thread to end, `limit` at most; whether it has ended. From a sink, which runs on that
    /// thread, it never has.
    pub fn join(self, limit: Option<Duration>) -> bool {
        self.drain();
        let thread = || self.0.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread().as_ref().is_some_and(|thread| thread.thread().id() == std::thread::current().id()) {
            return false;
        }
        if !self.0.shared.wait_for_end(limit) {
            return false;
        }
        if let Some(thread) = thread().take() {
            // It catches its panics.
            let _ = thread.join();
        }
        true
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EngineHandle").field(&self.status()).finish()
    }
}

/// What is wrong with a request, as far as that can be told without the model.
type Check = Box<dyn Fn(&Request) -> Result<()> + Send + Sync>;

/// What all handles of an engine share.
struct Front {
    shared: Arc<Shared>,
    check: Check,
    limits: Limits,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.update(|state| state.draining = true);
    }
}

#[derive(Clone, Copy)]
struct Limits {
    max_running: usize,
    max_waiting: usize,
    cache_bytes: Option<usize>,
}

/// Between the handles and the thread. The lock is held for a few instructions, never during a step or in a sink.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Not yet the engine's.
    incoming: VecDeque<(Request, Client)>,
    draining: bool,
    cancel_all: bool,
    /// Nothing that comes in now would be seen.
    stopped: bool,
    /// The thread does nothing any more.
    ended: bool,
    engine: Published,
}

/// What the engine says about itself after each step.
#[derive(Clone, Copy, Default)]
struct Published {
    running: usize,
    waiting: usize,
    /// Requests that the step in progress has taken in; whether they run or wait is published at its end.
    taken_in: usize,
    cache_bytes: usize,
    prefix_cache_bytes: usize,
    totals: EngineTotals,
    last_step: Option<Instant>,
    step_began: Option<Instant>,
}

impl State {
    /// Requests that wait, here or in the engine, and those of which it is not known yet.
    fn waiting(&self) -> usize {
        self.engine.waiting + self.engine.taken_in + self.incoming()
    }

    /// Requests that the engine has not seen and that are still wanted.
    fn incoming(&self) -> usize {
        self.incoming.iter().filter(|(_, client)| !client.is_cancelled()).count()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// What to take in before the next step, and whether everything is to be cancelled; an idle engine waits for it. None at the end.
    fn next(&self, idle: bool) -> Option<(VecDeque<(Request, Client)>, bool)> {
        let mut state = self.lock();
        while idle && state.incoming.is_empty() {
            if state.draining {
                state.stopped = true;
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.engine.step_began = Some(Instant::now());
        state.engine.taken_in = state.incoming();
        Some((std::mem::take(&mut state.incoming), state.cancel_all))
    }

    fn publish<B: CompactBackend>(&self, engine: &Engine<'_, B>) {
        let (running, waiting) = engine.sequences();
        let (cache_bytes, prefix_cache_bytes) = (engine.cache_bytes(), engine.prefix_cache_bytes());
        let (totals, last_step) = (engine.totals(), Some(Instant::now()));
        self.lock().engine =
            Published { running, waiting, cache_bytes, prefix_cache_bytes, totals, last_step, ..Published::default() };
    }

    /// Waits until the thread has ended; false after `limit`.
    fn wait_for_end(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut state = self.lock();
        while !state.ended {
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Who wants to know about a request.
struct Client {
    sink: Box<dyn FnMut(Update) -> bool + Send>,
    cancelled: Arc<AtomicBool>,
}

impl Client {
    fn new(sink: impl FnMut(Update) -> bool + Send + 'static) -> (Self, Ticket) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = Ticket { cancelled: cancelled.clone(), detached: false };
        (Self { sink: Box::new(sink), cancelled }, ticket)
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether it wants to hear more. One that panics does not, and nobody else is touched.
    fn tell(&mut self, update: Update) -> bool {
        catch_quietly(|| (self.sink)(update)).unwrap_or_else(|message| {
            tracing::error!("a sink panicked, and its request is cancelled: {message}");
            false
        })
    }
}

/// The clients of the sequences that have not ended.
type Clients = BTreeMap<SequenceId, Client>;

/// The thread: serves requests to the end, and after a failure tells everybody.
fn run<B: CompactBackend>(shared: &Shared, model: CausalLm<B>, text: &TextProcessor, options: EngineOptions) {
    /// Tells those that wait for the end, whatever happens.
    struct End<'a>(&'a Shared);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.update(|state| (state.stopped, state.ended) = (true, true));
        }
    }
    let _end = End(shared);
    let mut clients = Clients::new();
    // The engine is gone after a panic, so that nothing half changed is used.
    let outcome = catch_quietly(|| {
        let model = model;
        serve(&mut Engine::new(&model, text, options), shared, &mut clients)
    });
    let Err(reason) = outcome.unwrap_or_else(|message| Err(format!("a panic: {message}"))) else { return };
    tracing::error!("the engine has stopped: {reason}");
    let mut incoming = VecDeque::new();
    shared.update(|state| {
        state.stopped = true;
        let Published { totals, last_step, .. } = state.engine;
        state.engine = Published { totals, last_step, ..Published::default() };
        incoming = std::mem::take(&mut state.incoming);
    });
    for mut client in clients.into_values().chain(incoming.into_iter().map(|(_, client)| client)) {
        client.tell(Update::Failed(Error::Stopped(reason.clone())));
    }
}

/// Steps until nothing is left and nothing more comes.
///
/// # Errors
/// Why the engine cannot go on.
fn serve<B: CompactBackend>(
    engine: &mut Engine<'_, B>,
    shared: &Shared,
    clients: &mut Clients,
) -> std::result::Result<(), String> {
    while let Some((incoming, cancel_all)) = shared.next(engine.is_idle()) {
        for (request, mut client) in incoming {
            match engine.submit(request) {
                Ok(id) => drop(clients.insert(id, client)),
                Err(error) => drop(client.tell(Update::Failed(error))),
            }
        }
        for (&id, client) in clients.iter() {
            if cancel_all || client.is_cancelled() {
                engine.cancel(id);
            }
        }
        let events = engine.step();
        shared.publish(engine);
        let mut lost = None;
        for event in events {
            let id = event.sequence;
            let Some(client) = clients.get_mut(&id) else { continue };
            if let EventKind::Failed(Error::Device(message)) = &event.kind {
                lost = Some(message.clone());
            }
            let last = matches!(event.kind, EventKind::Finished(_) | EventKind::Failed(_));
            let update = event.kind.map_finished(|finished| finished.summary);
            let goes_on = client.tell(update);
            if last || !goes_on {
                clients.remove(&id);
            }
            if !goes_on {
                engine.cancel(id);
            }
        }
        // A device that stopped working does so for everybody, and does not come back.
        if let Some(message) = lost {
            return Err(message);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_a_step_takes_in_are_counted_while_it_runs() {
        let shared = Shared::default();
        let client = |cancelled| Client { sink: Box::new(|_| true), cancelled: Arc::new(AtomicBool::new(cancelled)) };
        shared.update(|state| {
            state.incoming.extend([false, true, false].map(|cancelled| (Request::new(vec![1]), client(cancelled))));
        });
        let (incoming, _) = shared.next(false).unwrap();
        assert_eq!(incoming.len(), 3);
        shared.update(|state| state.incoming.push_back((Request::new(vec![1]), client(false))));
        assert_eq!(shared.lock().waiting(), 3);
    }
}
