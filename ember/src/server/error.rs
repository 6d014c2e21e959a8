//! Errors as clients of OpenAI's and Anthropic's APIs expect them.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use emberlm::model::Error;
use emberlm::model::engine::Refused;
use serde_json::{Value, json};

/// Seconds after which a client that was refused for want of room may ask again.
const RETRY_AFTER: u64 = 1;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    /// For people.
    pub message: String,
    /// The field of the body that is at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

/// Whose shape an error takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    OpenAi,
    Anthropic,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// 400: what the client sent cannot be used.
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        Self { param: param.map(str::to_owned), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 400: a field of the body.
    pub fn field(param: &str, message: impl std::fmt::Display) -> Self {
        Self::invalid(Some(param), format!("{param}: {message}"))
    }

    /// 503: come back later.
    pub fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        Self { code: Some(code), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 500: a mistake of this program.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// Anthropic's `type`.
    fn anthropic_kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The body of the answer, or of an event in a stream.
    pub fn body(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => json!({
                "error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}
            }),
            Dialect::Anthropic => json!({
                "type": "error",
                "error": {"type": self.anthropic_kind(), "message": self.message}
            }),
        }
    }

    /// The answer to a request that is not answered.
    pub fn response(&self, dialect: Dialect) -> Response {
        let body = self.body(dialect).to_string();
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], body).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER.into());
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.response(Dialect::OpenAi);
        // For paths whose clients know another shape.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for ApiError {
    /// What a request asked for that the library refuses is the client's; what went wrong inside is not.
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Option { option, .. } => Self::invalid(Some(&option), message),
            Error::Template(_) => Self::invalid(Some("messages"), message),
            Error::Prompt(_) | Error::Tokenizer(_) => Self::invalid(None, message),
            // Asked for again, the same schema meets the same end.
            Error::Grammar(_) => Self::invalid(None, message),
            Error::Memory { .. } | Error::Buffer { .. } => {
                Self::invalid(None, message).with_code("context_length_exceeded")
            }
            _ => Self::internal(message),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy { waiting, room } => Self::queue_full(waiting, room),
            Refused::TooMany { asked, most } => {
                let room = "those that are generated and those that wait together (--parallel, --max-queue)";
                let message = format!("{asked} answers at once, but at most {most} are taken, {room}; ask for fewer");
                Self::invalid(None, message)
            }
            Refused::Invalid(error) => error.into(),
            Refused::Draining => Self::draining(),
            Refused::Stopped => {
                Self::unavailable("the engine has stopped; the server has to be started again", "stopped")
            }
        }
    }
}

impl ApiError {
    /// Besides those that wait there is room for these alone. When to ask again is in `Retry-After`, which clients and the page tell in their words.
    pub fn queue_full(waiting: usize, room: usize) -> Self {
        let message = match (room, waiting) {
            (0, 0) => "every place is taken, and none may wait".to_owned(),
            (0, 1) => "every place is taken, and 1 request waits already".to_owned(),
            (0, _) => format!("every place is taken, and {waiting} requests wait already"),
            _ => format!("there is room for {room} more now, and more answers are asked for"),
        };
        Self::unavailable(message, "queue_full")
    }

    /// The server is going down.
    pub fn draining() -> Self {
        Self::unavailable("the server is being shut down", "draining")
    }

    /// The model is not there yet.
    pub fn loading() -> Self {
        Self::unavailable("the model is being loaded", "loading")
    }
}
