//! What every request may look at.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use emberlm::model::engine::EngineHandle;
use emberlm::model::text::{AnswerFormat, AnswerMarkers, StopSet, TextProcessor};
use tokio::sync::Semaphore;

use super::access::Access;
use super::error::ApiError;
use super::form::Compiler;
use super::metrics::{CacheKind, Metrics};
use super::options::Defaults;

/// What is served, and how.
pub struct App {
    pub text: TextProcessor,
    pub stop_tokens: StopSet,
    pub format: AnswerFormat,
    pub markers: AnswerMarkers,
    /// Keeps answers to a form, where this build and this model's tokens allow it.
    pub compiler: Option<Compiler>,
    /// The names of the model; the first is told.
    pub names: Vec<String>,
    pub model: Arc<str>,
    pub card: ModelCard,
    pub created: u64,
    /// Tokens of prompt and answer at most.
    pub context: usize,
    pub defaults: Defaults,
    pub access: Access,
    /// An engine whose step takes so long hangs. A step is a chunk of a prompt, which can take half a minute on a small machine.
    pub stall_limit: Duration,
    pub keep_alive: Option<Duration>,
    pub metrics: Arc<Metrics>,
    /// There once the model is loaded.
    pub engine: OnceLock<EngineHandle>,
    pub phase: Arc<Phase>,
    /// Bounds what is parsed, rendered and tokenised at once.
    pub preparing: Semaphore,
}

/// What is told of the model besides its name.
#[derive(Clone, Debug)]
pub struct ModelCard {
    pub family: String,
    pub parameters: usize,
    /// Tokens that the model was trained for.
    pub trained_context: usize,
    /// Layers, steps at most and the usual threshold, of models with adaptive depth.
    pub depth: Option<(usize, usize, f32)>,
    pub has_chat_template: bool,
    pub cache: CacheKind,
}

/// How far the server has come.
///
/// 0 is serving.
#[derive(Debug, Default)]
pub struct Phase(AtomicU8);

impl Phase {
    const LEAVING: u8 = 1;
    const CLOSED: u8 = 2;
    const GIVEN_UP: u8 = 3;

    /// Told to end: `/health` says so, and requests are still taken.
    pub fn leave(&self) {
        self.0.fetch_max(Self::LEAVING, Ordering::Relaxed);
    }

    /// No more requests are taken.
    pub fn close(&self) {
        self.0.fetch_max(Self::CLOSED, Ordering::Relaxed);
    }

    /// What is still generated is cut off.
    pub fn give_up(&self) {
        self.0.fetch_max(Self::GIVEN_UP, Ordering::Relaxed);
    }

    /// Whether answers that do not reach their end are cut off by the server, and not by their clients.
    pub fn has_given_up(&self) -> bool {
        self.now() >= Self::GIVEN_UP
    }

    fn now(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

impl App {
    /// The engine, where requests are taken.
    ///
    /// # Errors
    /// 503 before the model is loaded, and once the server is ending.
    pub fn engine(&self) -> Result<&EngineHandle, ApiError> {
        if self.phase.now() >= Phase::CLOSED {
            return Err(ApiError::draining());
        }
        self.engine.get().ok_or_else(ApiError::loading)
    }

    /// Whether requests can be answered, now and in a while.
    ///
    /// # Errors
    /// 503 that says why not.
    pub fn health(&self) -> Result<(), ApiError> {
        if self.phase.now() >= Phase::LEAVING {
            return Err(ApiError::draining());
        }
        let status = self.engine()?.status();
        if status.stopped {
            return Err(ApiError::unavailable("the engine has stopped", "stopped"));
        }
        match status.step_began.map(|at| at.elapsed()) {
            Some(step) if step > self.stall_limit => {
                let message = format!("a pass of the model has been going on for {:.1} s", step.as_secs_f64());
                Err(ApiError::unavailable(message, "stalled"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a request is for the model that is here; without a name it is.
    ///
    /// # Errors
    /// 404.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.names.iter().any(|known| known == name) => {
                let message = format!("there is no model {name:.100?}; this server has {}", self.names.join(", "));
                let mut error = ApiError::new(axum::http::StatusCode::NOT_FOUND, message);
                error.param = Some("model".into());
                Err(error.with_code("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    /// Runs work that takes a while off the thread that serves connections, and not too much of it at once.
    ///
    /// # Errors
    /// Those of the work; 500 when it panics.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(_permit) = self.preparing.acquire().await else { return Err(ApiError::draining()) };
        let app = self.clone();
        match tokio::task::spawn_blocking(move || work(&app)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::internal("the request could not be prepared")),
        }
    }
}
