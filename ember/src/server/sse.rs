//! Server-sent events: a body that turns what the engine says into events as it comes.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};

use super::error::ApiError;
use super::run::{Delta, Run, Usage};

/// Turns deltas into the events of one kind of API.
pub trait Encoder: Send + 'static {
    /// Before anything is generated.
    fn begin(&mut self, events: &mut Events);
    /// What became of an answer.
    fn delta(&mut self, delta: Delta, events: &mut Events);
    /// Every answer has ended.
    fn end(&mut self, usage: Usage, events: &mut Events);
    /// The answers could not be ended.
    fn error(&mut self, error: &ApiError, events: &mut Events);
}

/// Events that wait to be sent.
#[derive(Debug, Default)]
pub struct Events {
    waiting: VecDeque<Bytes>,
}

impl Events {
    /// An event of data alone.
    pub fn data(&mut self, data: &Value) {
        // JSON has no line breaks outside of texts, and in texts they are escaped.
        self.waiting.push_back(format!("data: {data}\n\n").into());
    }

    /// An event with a name.
    pub fn named(&mut self, name: &str, data: &Value) {
        self.waiting.push_back(format!("event: {name}\ndata: {data}\n\n").into());
    }

    /// The end of a stream in OpenAI's older APIs.
    pub fn done(&mut self) {
        self.waiting.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}

/// The body of a stream. Dropping it cancels what is generated.
struct EventStream {
    run: Option<Run>,
    encoder: Box<dyn Encoder>,
    events: Events,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
}

/// The answer that streams a run. Where nothing was sent for `keep_alive`, a comment is.
pub fn stream(run: Run, mut encoder: impl Encoder, keep_alive: Option<Duration>) -> Response {
    let mut events = Events::default();
    encoder.begin(&mut events);
    let keep_alive = keep_alive.map(|every| (every, Box::pin(sleep(every))));
    let body = EventStream { run: Some(run), encoder: Box::new(encoder), events, keep_alive };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the answer first.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl EventStream {
    /// Turns what has come into events. Pending: there is nothing to send, and more will come.
    fn poll_run(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(run) = &mut self.run else { return Poll::Ready(()) };
        while self.events.waiting.is_empty() {
            match run.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(delta))) => self.encoder.delta(delta, &mut self.events),
                Poll::Ready(Some(Err(error))) => {
                    self.encoder.error(&error, &mut self.events);
                    self.run = None;
                    break;
                }
                Poll::Ready(None) => {
                    let usage = run.usage();
                    self.encoder.end(usage, &mut self.events);
                    self.run = None;
                    break;
                }
            }
        }
        Poll::Ready(())
    }
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.events.waiting.is_empty() && self.poll_run(context).is_pending() {
            if let Some((every, sleep)) = &mut self.keep_alive
                && sleep.as_mut().poll(context).is_ready()
            {
                sleep.as_mut().reset(Instant::now() + *every);
                // So that the timer wakes this task again.
                let _ = sleep.as_mut().poll(context);
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": waiting\n\n")))));
            }
            return Poll::Pending;
        }
        if let Some((every, sleep)) = &mut self.keep_alive {
            sleep.as_mut().reset(Instant::now() + *every);
        }
        // Several events that came together are sent together.
        let mut together = Vec::new();
        match (self.events.waiting.pop_front(), self.events.waiting.is_empty()) {
            (None, _) => return Poll::Ready(None),
            (Some(one), true) => return Poll::Ready(Some(Ok(Frame::data(one)))),
            (Some(first), false) => together.extend_from_slice(&first),
        }
        self.events.waiting.drain(..).for_each(|event| together.extend_from_slice(&event));
        Poll::Ready(Some(Ok(Frame::data(together.into()))))
    }
}

/// What encoders share: a name for the answer, when it began, and the model.
#[derive(Clone, Debug)]
pub struct Head {
    pub id: String,
    pub created: u64,
    pub model: Arc<str>,
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use emberlm::model::engine::{Piece, Update};
    use emberlm::model::text::{AnswerFormat, AnswerParser, AnswerPart, DeclaredTools, Thinking, ToolFormat};
    use http_body::Body as _;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::server::metrics::{CacheKind, Metrics};
    use crate::server::record::Record;

    /// Tells what parts there are.
    struct Parts;

    impl Encoder for Parts {
        fn begin(&mut self, _: &mut Events) {}

        fn delta(&mut self, delta: Delta, events: &mut Events) {
            for part in delta.parts {
                match part {
                    AnswerPart::Content(text) => events.data(&text.into()),
                    part => events.data(&format!("{part:?}").into()),
                }
            }
        }

        fn end(&mut self, _: Usage, _: &mut Events) {}

        fn error(&mut self, error: &ApiError, _: &mut Events) {
            panic!("{error:?}");
        }
    }

    /// Tokens come all the time, but their text may be that of a call, and goes out when the call is known.
    #[test]
    fn comments_come_while_the_text_of_a_call_is_held_back() {
        let tools = json!([{"type": "function", "function": {"name": "look_up_a_word_in_the_book", "parameters": {"type": "object"}}}]);
        let format = AnswerFormat { tools: ToolFormat::Qwen3Coder, thinking: false };
        let parser = AnswerParser::new(format, Thinking::Closed, DeclaredTools::parse(&tools).unwrap(), 0);
        let (send, updates) = mpsc::channel(64);
        let metrics = Metrics::new(CacheKind { cache_type: "f16", cache_hidden: false });
        let record = Record::new("POST", "/v1/chat/completions", &metrics, &Arc::default());
        let every = Duration::from_millis(20);
        let run = Run::of(updates, parser, &record);
        let saying = std::thread::spawn(move || {
            let call = "Wait.<tool_call>\n<function=look_up_a_word_in_the_book>\n";
            for (id, text) in (0..).zip(call.chars()) {
                std::thread::sleep(Duration::from_millis(5));
                let piece = Piece { text: text.into(), token: Some(id), depth: None, log_probabilities: None };
                // The reader goes when it has seen enough.
                let _ = send.blocking_send((0, Update::Token(piece)));
            }
            send
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let told = runtime.block_on(async {
            let mut body = stream(run, Parts, Some(every)).into_body();
            let mut told: Vec<String> = Vec::new();
            while told.len() < 12 {
                let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap();
                told.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
            }
            told
        });
        drop(saying.join().unwrap());
        let comments = told.iter().filter(|frame| *frame == ": waiting\n\n").count();
        assert!(comments >= 3, "{told:?}");
        let said: Vec<&String> = told.iter().filter(|frame| frame.starts_with("data: ")).collect();
        assert!(said.iter().all(|frame| !frame.contains('<') && !frame.contains('_')), "{told:?}");
    }
}
