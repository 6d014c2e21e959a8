//! An engine on a thread of its own: what clients see, and that none can harm the others.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use burn::module::Param;
use burn::tensor::Tensor;
use emberlm::model::Error;
use emberlm::model::engine::{
    EngineHandle, EngineOptions, EngineStatus, Finish, HandleOptions, Refused, Request, Summary, Ticket, Update,
};
use emberlm::model::sampling::SamplingConfig;
use emberlm::quant::CompactBackend;

use super::engine::{Loaded, Outcome, alone, loaded, options, request};
use super::random::Random;

/// Longer than any of these tests should take: a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(120);

fn fixture<B: CompactBackend>(name: &str, device: &B::Device) -> Loaded<B> {
    loaded::<B>(device).find(|loaded| loaded.name == name).expect("a fixture")
}

/// Its model is moved into the handle.
fn spawned<B: CompactBackend>(loaded: Loaded<B>, options: EngineOptions, max_waiting: usize) -> EngineHandle {
    EngineHandle::spawn(loaded.model, &loaded.text, options, HandleOptions { max_waiting }).expect("a thread")
}

/// The updates of a request, through a channel.
struct Client {
    updates: Receiver<Update>,
    ticket: Option<Ticket>,
}

impl Client {
    fn submit(handle: &EngineHandle, request: Request) -> Self {
        let (sender, updates) = channel();
        let ticket = handle.submit(request, move |update| sender.send(update).is_ok()).expect("a place");
        Self { updates, ticket: Some(ticket) }
    }

    /// A sink that holds up the engine's thread at the updates that `at` names, until something comes through the sender.
    fn held_up(
        handle: &EngineHandle,
        request: Request,
        mut at: impl FnMut(&Update) -> bool + Send + 'static,
    ) -> (Self, Receiver<()>, Sender<()>) {
        let (sender, updates) = channel();
        let (arrived, arrivals) = channel();
        let (go, gate) = channel();
        let sink = move |update: Update| {
            if at(&update) {
                arrived.send(()).expect("the test waits");
                gate.recv_timeout(PATIENCE).expect("the test goes on");
            }
            sender.send(update).is_ok()
        };
        let ticket = handle.submit(request, sink).expect("a place");
        (Self { updates, ticket: Some(ticket) }, arrivals, go)
    }

    fn next(&self) -> Update {
        self.updates.recv_timeout(PATIENCE).expect("an update")
    }

    /// Reads to the end, which nothing follows; whether it started, what it was told, and the summary.
    fn finished(self) -> (bool, usize, Outcome, Summary) {
        let (mut started, mut read, mut outcome) = (false, 0, Outcome::default());
        let summary = loop {
            match self.next() {
                Update::Started { prompt, cached } => {
                    assert!(!started && prompt > 0 && cached == 0);
                    started = true;
                }
                Update::PromptRead { tokens, .. } => {
                    assert!(started && outcome.generated.is_empty());
                    read += tokens;
                }
                Update::Token(piece) => {
                    outcome.text.push_str(&piece.text);
                    outcome.generated.extend(piece.token);
                }
                Update::Finished(summary) => break summary,
                other => panic!("{other:?}"),
            }
        };
        outcome.finish = Some(summary.finish);
        assert_eq!(summary.generated, outcome.generated);
        drop(self.ticket);
        assert!(self.updates.recv_timeout(PATIENCE).is_err(), "an update after the end");
        (started, read, outcome, summary)
    }

    fn failed(self) -> Error {
        loop {
            match self.next() {
                Update::Failed(error) => return error,
                Update::Finished(summary) => panic!("{summary:?}"),
                _ => {}
            }
        }
    }
}

/// Waits for what the engine says about itself after a step.
fn wait_for(handle: &EngineHandle, what: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
    for _ in 0..PATIENCE.as_millis() {
        let status = handle.status();
        if what(&status) {
            return status;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{:?}", handle.status());
}

/// Requests from several threads at once get what an engine gives each of them alone, in the order of the protocol.
pub fn updates_are_those_of_the_engine<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let mut random = Random::new(5);
        let requests: Vec<Request> = (0..8)
            .map(|_| {
                let request = request(&mut random, &loaded.ids);
                Request { max_tokens: request.max_tokens.min(8), ..request }
            })
            .collect();
        let expected: Vec<Outcome> = requests.iter().map(|request| alone(&loaded, request)).collect();
        let name = loaded.name.clone();
        let handle = spawned(loaded, EngineOptions { max_running: 5, ..options() }, 8);
        std::thread::scope(|scope| {
            for (request, expected) in requests.iter().zip(&expected) {
                let (handle, name, request) = (handle.clone(), &name, request.clone());
                scope.spawn(move || {
                    let (prompt, wanted) = (request.prompt.len(), request.max_tokens);
                    let (started, read, outcome, summary) = Client::submit(&handle, request).finished();
                    assert_eq!(outcome, *expected, "{name}");
                    // One that asks for nothing ends before its prompt is read.
                    let all = if wanted == 0 { 0 } else { prompt };
                    assert_eq!((started, read, summary.prompt_tokens), (true, all, prompt), "{name}");
                });
            }
        });
        let status = handle.status();
        let totals = status.totals;
        assert_eq!((status.running, status.waiting, status.cache_bytes), (0, 0, 0), "{name}: {status:?}");
        assert!(status.last_step.is_some() && !status.stopped && !status.draining);
        let prompts: usize = requests.iter().map(|request| request.prompt.len()).sum();
        let generated: usize = expected.iter().map(|outcome| outcome.generated.len()).sum();
        assert_eq!((totals.prompt_tokens, totals.generated_tokens), (prompts as u64, generated as u64), "{name}");
        assert_eq!((totals.started, totals.stopped + totals.at_length, totals.failed, totals.cancelled), (8, 8, 0, 0));
        assert!(totals.steps > 0 && totals.cached_tokens == 0, "{name}: {totals:?}");
        assert!(handle.join(Some(PATIENCE)), "{name}");
    }
}

/// What is beyond the limit is refused at once; a request that was cancelled while it waited leaves its place and never starts.
pub fn the_queue_is_bounded<B: CompactBackend>(device: &B::Device) {
    let loaded = fixture::<B>("leanllama", device);
    let short = Request { max_tokens: 3, ..Request::new(loaded.ids[..5].to_vec()) };
    let long = Request { max_tokens: 100, ..short.clone() };
    let handle = spawned(loaded, EngineOptions { max_running: 1, ..options() }, 1);
    let mut tokens = 0;
    let second = move |update: &Update| {
        let token = matches!(update, Update::Token(_));
        tokens += usize::from(token);
        token && tokens == 2
    };
    let (first, arrivals, go) = Client::held_up(&handle, long, second);
    arrivals.recv_timeout(PATIENCE).expect("it runs");
    let waits = Client::submit(&handle, short.clone());
    let refused = || handle.submit(short.clone(), |update| panic!("{update:?}"));
    assert!(matches!(refused(), Err(Refused::Busy { waiting: 1, room: 0 })), "one too many was taken");
    let together = |asked: usize| {
        let sink = |update: Update| -> bool { panic!("{update:?}") };
        handle.submit_all(vec![(short.clone(), sink); asked])
    };
    assert!(matches!(together(2), Err(Refused::Busy { waiting: 1, room: 0 })), "two too many were taken");
    assert!(matches!(together(3), Err(Refused::TooMany { asked: 3, most: 2 })), "there is never room for three");
    let status = handle.status();
    assert_eq!((status.running, status.waiting, status.max_running, status.max_waiting), (1, 1, 1, 1));
    // The place of one that does not want to wait is free at once, also while the engine is busy.
    waits.ticket.as_ref().expect("a ticket").cancel();
    let takes_its_place = Client::submit(&handle, short.clone());
    assert!(matches!(refused(), Err(Refused::Busy { waiting: 1, room: 0 })), "one too many was taken");
    first.ticket.as_ref().expect("a ticket").cancel();
    go.send(()).expect("the engine waits");
    let (started, _, outcome, _) = waits.finished();
    assert!(!started, "one that was cancelled in the queue has started");
    assert_eq!((outcome.finish, outcome.generated.len()), (Some(Finish::Cancelled), 0));
    let (_, _, outcome, _) = first.finished();
    assert_eq!((outcome.finish, outcome.generated.len()), (Some(Finish::Cancelled), 2));
    let (started, _, outcome, _) = takes_its_place.finished();
    assert_eq!((started, outcome.finish, outcome.generated.len()), (true, Some(Finish::Length), 3));
    assert_eq!(handle.status().totals.cancelled, 2);
}

/// Dropped tickets end requests within one step: in the queue, while the prompt is read, and while tokens come. Detached ones do not.
pub fn tickets_cancel_where_the_request_is<B: CompactBackend>(device: &B::Device) {
    let loaded = fixture::<B>("leanllama", device);
    let request = Request { max_tokens: 20, ..Request::new(loaded.ids[..150].to_vec()) };
    let handle = spawned(loaded, EngineOptions { tokens_per_step: 30, ..options() }, 8);
    let reads = |update: &Update| matches!(update, Update::PromptRead { .. });
    let decodes = |update: &Update| matches!(update, Update::Token(_));
    for (at, nth, read, generated) in [(reads as fn(&Update) -> bool, 2, 60, 0), (decodes, 4, 150, 4)] {
        let mut count = 0;
        let here = move |update: &Update| {
            count += usize::from(at(update));
            at(update) && count == nth
        };
        let (mut client, arrivals, go) = Client::held_up(&handle, request.clone(), here);
        arrivals.recv_timeout(PATIENCE).expect("it runs");
        let mut waits = Client::submit(&handle, request.clone());
        drop((client.ticket.take(), waits.ticket.take()));
        go.send(()).expect("the engine waits");
        let (started, got_read, outcome, summary) = client.finished();
        assert_eq!((started, got_read, outcome.generated.len()), (true, read, generated));
        assert_eq!((outcome.finish, summary.prompt_tokens), (Some(Finish::Cancelled), 150));
        let (started, got_read, outcome, _) = waits.finished();
        assert_eq!((started, got_read, outcome.finish), (false, 0, Some(Finish::Cancelled)));
        let status = wait_for(&handle, |status| status.running + status.waiting == 0);
        assert_eq!(status.cache_bytes, 0);
    }
    let mut client = Client::submit(&handle, request);
    client.ticket.take().expect("a ticket").detach();
    assert_eq!(client.finished().2.generated.len(), 20);
}

/// A sink that says `false`, and one that panics, end their own request and are not called again.
pub fn sinks_cancel_and_may_panic<B: CompactBackend>(device: &B::Device) {
    let loaded = fixture::<B>("crest_k2", device);
    let request = Request { max_tokens: 12, ..Request::new(loaded.ids[..9].to_vec()) };
    let expected = alone(&loaded, &request);
    let handle = spawned(loaded, options(), 8);
    for panics in [false, true] {
        let (sender, calls) = channel();
        let mut tokens = 0;
        let sink = move |update: Update| {
            tokens += usize::from(matches!(update, Update::Token(_)));
            sender.send(tokens).expect("the test listens");
            assert!(!panics || tokens < 3, "a sink that fails");
            tokens < 3
        };
        let good = Client::submit(&handle, request.clone());
        let ticket = handle.submit(request.clone(), sink).expect("a place");
        let mut last = 0;
        while let Ok(tokens) = calls.recv_timeout(PATIENCE) {
            last = tokens;
        }
        assert_eq!(last, 3, "it was called after it refused");
        assert_eq!(good.finished().2, expected);
        drop(ticket);
    }
    let status = wait_for(&handle, |status| status.running == 0);
    assert_eq!((status.stopped, status.totals.cancelled, status.cache_bytes), (false, 2, 0));
}

/// What is wrong with a request is said where it is handed over, and its sink is never called.
pub fn requests_are_checked_at_once<B: CompactBackend>(device: &B::Device) {
    let loaded = fixture::<B>("leanllama", device);
    let config = loaded.model.architecture().config.clone();
    let (vocabulary, context) = (config.vocab_size as u32, config.max_position_embeddings);
    let good = Request::new(loaded.ids[..5].to_vec());
    let sampling = SamplingConfig { temperature: -1.0, ..SamplingConfig::default() };
    let bad = [
        (Request::new(Vec::new()), "no tokens"),
        (Request::new(vec![vocabulary]), "outside the vocabulary"),
        (Request::new(vec![1; context + 1]), "the context of this model"),
        (Request { sampling, ..good.clone() }, "temperature"),
        (Request { stop_strings: vec![String::new()], ..good.clone() }, "stop"),
        (Request::new(loaded.ids[..100].to_vec()), "bytes"),
    ];
    let room = loaded.model.new_cache(options().kv_format).bytes_with_room(1) / 4;
    let handle = spawned(loaded, EngineOptions { cache_bytes: Some(room), ..options() }, 8);
    for (request, message) in bad {
        match handle.submit(request, |update| panic!("{update:?}")) {
            Err(Refused::Invalid(error)) => assert!(error.to_string().contains(message), "{error}"),
            other => panic!("{message}: {other:?}"),
        }
    }
    assert_eq!(handle.status().last_step, None);
}

/// A panic in a pass ends the engine; whoever runs or waits is told, and nobody else is taken.
pub fn a_panic_stops_the_engine<B: CompactBackend>(device: &B::Device) {
    let mut loaded = fixture::<B>("leanllama", device);
    // A norm of another width than its input.
    loaded.model.model.norm.weight = Param::from_tensor(Tensor::ones([3], device));
    let request = Request { max_tokens: 4, ..Request::new(loaded.ids[..5].to_vec()) };
    let handle = spawned(loaded, EngineOptions { max_running: 1, ..options() }, 8);
    let (sender, updates) = channel();
    let mut taken = 0;
    for _ in 0..3 {
        let sender = sender.clone();
        match handle.submit(request.clone(), move |update| sender.send(update).is_ok()) {
            Ok(ticket) => {
                ticket.detach();
                taken += 1;
            }
            Err(refused) => assert!(matches!(refused, Refused::Stopped) && taken > 0, "{refused}"),
        }
    }
    drop(sender);
    // All who were taken, and nothing else.
    let errors: Vec<Update> = updates.iter().collect();
    assert_eq!(errors.len(), taken, "{errors:?}");
    for update in errors {
        let Update::Failed(Error::Stopped(message)) = update else { panic!("{update:?}") };
        assert!(message.contains("panic"), "{message}");
    }
    let status = wait_for(&handle, |status| status.stopped);
    assert_eq!((status.running, status.waiting, status.step_began), (0, 0, None));
    assert!(matches!(handle.submit(request, |_| true), Err(Refused::Stopped)));
    assert!(handle.join(Some(PATIENCE)));
}

/// Logits that are no numbers fail each request by itself; the engine serves the next one.
pub fn a_model_without_numbers_fails_its_requests<B: CompactBackend>(device: &B::Device) {
    let mut loaded = fixture::<B>("leanllama", device);
    let width = loaded.model.architecture().config.hidden_size;
    loaded.model.model.norm.weight = Param::from_tensor(Tensor::full([width], f32::NAN, device));
    let request = Request { max_tokens: 4, ..Request::new(loaded.ids[..5].to_vec()) };
    let handle = spawned(loaded, options(), 8);
    for failed in 1..=2 {
        let error = Client::submit(&handle, request.clone()).failed();
        assert!(matches!(&error, Error::NonFinite { step: 0, .. }), "{error}");
        let status = wait_for(&handle, |status| status.running == 0);
        assert_eq!((status.stopped, status.totals.failed, status.cache_bytes), (false, failed, 0));
    }
}

/// Draining refuses what comes and ends what is there; shutting down cancels it; the last handle drains.
pub fn drained_and_shut_down<B: CompactBackend>(device: &B::Device) {
    let first = |update: &Update| matches!(update, Update::Started { .. });
    for shut_down in [false, true] {
        let loaded = fixture::<B>("leanllama", device);
        let request = Request { max_tokens: 6, ..Request::new(loaded.ids[..5].to_vec()) };
        let handle = spawned(loaded, EngineOptions { max_running: 1, ..options() }, 8);
        let (runs, arrivals, go) = Client::held_up(&handle, request.clone(), first);
        arrivals.recv_timeout(PATIENCE).expect("it runs");
        let waits = Client::submit(&handle, request.clone());
        if shut_down {
            handle.shut_down()
        } else {
            handle.drain()
        }
        assert!(matches!(handle.submit(request, |_| true), Err(Refused::Draining)));
        assert!(!handle.clone().join(Some(Duration::from_millis(5))), "it ended before its requests");
        assert!(handle.status().draining && !handle.status().stopped);
        go.send(()).expect("the engine waits");
        let (runs, waits) = (runs.finished().2, waits.finished().2);
        match shut_down {
            true => assert_eq!([runs.finish, waits.finish], [const { Some(Finish::Cancelled) }; 2]),
            false => assert_eq!([runs.generated.len(), waits.generated.len()], [6, 6]),
        }
        assert!(handle.clone().join(Some(PATIENCE)));
        assert!(handle.status().stopped);
    }
    // The last handle goes, and a sink that holds one asks to join its own thread.
    let loaded = fixture::<B>("leanllama", device);
    let request = Request { max_tokens: 6, ..Request::new(loaded.ids[..5].to_vec()) };
    let handle = spawned(loaded, options(), 8);
    let (own, (joined, answers)) = (handle.clone(), channel());
    let sink = move |update: Update| {
        if matches!(update, Update::Started { .. }) {
            joined.send(own.clone().join(None)).expect("the test listens");
        }
        true
    };
    handle.submit(request.clone(), sink).expect("a place").detach();
    assert_eq!(answers.recv_timeout(PATIENCE), Ok(false));
    drop(handle);

    let handle = spawned(fixture::<B>("leanllama", device), options(), 8);
    let (client, arrivals, go) = Client::held_up(&handle, request, first);
    arrivals.recv_timeout(PATIENCE).expect("it runs");
    drop(handle);
    go.send(()).expect("the engine waits");
    assert_eq!(client.finished().2.generated.len(), 6);
}
