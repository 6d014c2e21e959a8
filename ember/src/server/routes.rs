//! Which path is answered by what.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::anthropic::{self, MessageEvents, StopSequences};
use super::anthropic_in;
use super::app::App;
use super::blocks::BlockStream;
use super::chat::{self, Chunks, TokenReports};
use super::completions::{self, TextChunks, Told};
use super::error::{ApiError, Dialect};
use super::fields::Fields;
use super::generate::{ChatJob, completion_asks};
use super::ids::{new_id, now};
use super::limits;
use super::metrics;
use super::models;
use super::places::Places;
use super::record::{Record, RecordedBody};
use super::responses::{self, ResponseEvents};
use super::responses_echo::Echo;
use super::responses_in;
use super::run::{Ask, Run, collect};
use super::sse::{self, Head};
use super::tokens;

/// The page at `/`.
const PAGE: &str = include_str!("page.html");

/// What the page may load is in the page itself; this cannot be said there.
const PAGE_POLICY: &str = "frame-ancestors 'none'";

type Shared = State<Arc<App>>;
type Recorded = Extension<Arc<Record>>;

/// All routes.
pub fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics_text))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/responses", post(create_response))
        .route("/v1/messages", post(create_message))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard))
        .layer(cors(app))
        .layer(from_fn_with_state(app.clone(), recorded))
        .with_state(app.clone())
}

/// Lets browsers show answers to pages that may ask. What browsers ask beforehand is answered here, without a key.
fn cors(app: &Arc<App>) -> CorsLayer {
    let app = app.clone();
    let may_ask = move |origin: &HeaderValue, request: &Parts| app.access.answers_page(origin, &request.headers);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(may_ask))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .allow_private_network(true)
        .max_age(Duration::from_secs(600))
}

/// Errors in the shape that clients of a path know.
fn dialect(path: &str) -> Dialect {
    if path.starts_with("/v1/messages") { Dialect::Anthropic } else { Dialect::OpenAi }
}

/// Who may ask.
async fn guard(State(app): Shared, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let headers = request.headers();
    let mut allowed = app.access.check_names(headers);
    // What a browser and a gateway ask for without a key.
    if !matches!(path.as_str(), "/" | "/health") {
        allowed = allowed.and_then(|()| app.access.check_key(headers));
    }
    if let Err(error) = allowed {
        return error.response(dialect(&path));
    }
    let response = next.run(request).await;
    match response.extensions().get::<ApiError>() {
        Some(error) if dialect(&path) != Dialect::OpenAi => error.response(dialect(&path)),
        _ => response,
    }
}

/// Before and after everything: the line in the log. What a browser asks before a page's request is answered without a key, but to no
/// other pages than the request.
async fn recorded(State(app): Shared, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let record = Record::new(request.method().as_str(), &path, &app.metrics, &app.phase);
    let beforehand = request.method() == Method::OPTIONS;
    let response = match app.access.check_names(request.headers()) {
        Err(error) if beforehand => error.response(dialect(&path)),
        _ => {
            request.extensions_mut().insert(record.clone());
            next.run(request).await
        }
    };
    record.status(response.status().as_u16());
    let (mut parts, body) = response.into_parts();
    parts.headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    Response::from_parts(parts, Body::new(RecordedBody::new(body, record)))
}

async fn not_found(request: Request) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {:.100?}", request.uri().path()))
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("{:.100?} does not take {:.16}", request.uri().path(), request.method().as_str());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, PAGE).into_response()
}

async fn health(State(app): Shared) -> Response {
    let error = match (app.health(), app.engine()) {
        (Ok(()), Ok(engine)) => {
            let status = engine.status();
            return json_response(&json!({"status": "ok", "running": status.running, "waiting": status.waiting}));
        }
        (Err(error), _) | (_, Err(error)) => error,
    };
    let mut response = error.response(Dialect::OpenAi);
    let mut body = error.body(Dialect::OpenAi);
    if let Some(body) = body.as_object_mut() {
        body.insert("status".into(), error.code.into());
    }
    *response.body_mut() = Body::from(body.to_string());
    response
}

async fn metrics_text(State(app): Shared) -> Result<Response, ApiError> {
    let status = app.engine.get().map(|engine| engine.status());
    let text = app.metrics.text(status.as_ref()).map_err(|_| ApiError::internal("the metrics cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))], text).into_response())
}

async fn list_models(State(app): Shared) -> Response {
    json_response(&models::list(&app))
}

async fn one_model(State(app): Shared, name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::invalid(None, "the name of the model in the path is no UTF-8"))?;
    app.check_model(Some(&name))?;
    Ok(json_response(&models::one(&app, &name)))
}

async fn chat_completions(
    State(app): Shared,
    Extension(record): Recorded,
    request: Request,
) -> Result<Response, ApiError> {
    let map = body(&app, request).await?;
    let (body, asks) = app
        .blocking(move |app| {
            let body = chat::read(checked(app, &map)?, &app.defaults)?;
            let asks = body.job.asks(app)?;
            Ok((body, asks))
        })
        .await?;
    let head = head(&app, "chatcmpl-");
    let reports = TokenReports { text: app.text.clone(), shape: body.shape };
    let n = asks.len();
    let run = Run::start(app.engine()?, asks, &record)?;
    if body.stream {
        return Ok(sse::stream(run, Chunks::new(head, reports, n), app.keep_alive));
    }
    let (answers, usage) = collect(run).await?;
    Ok(json_response(&chat::whole(&head, &answers, usage, &reports)))
}

async fn text_completions(
    State(app): Shared,
    Extension(record): Recorded,
    request: Request,
) -> Result<Response, ApiError> {
    let map = body(&app, request).await?;
    let (body, asks, echoes) = app
        .blocking(move |app| {
            let body = completions::read(checked(app, &map)?, &app.defaults)?;
            let prompts = body.tokens(app)?;
            let echoes = body.echoes(app, &prompts)?;
            let asks = completion_asks(app, &body.options, &body.form, prompts, body.echo)?;
            Ok((body, asks, echoes))
        })
        .await?;
    let head = head(&app, "cmpl-");
    let reports = TokenReports { text: app.text.clone(), shape: body.shape };
    let told = Told { head, reports, echoes };
    let run = Run::start(app.engine()?, asks, &record)?;
    if body.stream {
        return Ok(sse::stream(run, TextChunks::new(told), app.keep_alive));
    }
    let (answers, usage) = collect(run).await?;
    Ok(json_response(&told.whole(&answers, usage)))
}

async fn create_response(
    State(app): Shared,
    Extension(record): Recorded,
    request: Request,
) -> Result<Response, ApiError> {
    let map = body(&app, request).await?;
    let (stream, asks, echo) = app
        .blocking(move |app| {
            let (stream, asks) = converted(app, &map, responses_in::to_chat(&map)?)?;
            let sampling = asks.first().map(|ask| ask.request.sampling).unwrap_or_default();
            Ok((stream, asks, Echo::of(&map, &sampling)?))
        })
        .await?;
    let head = head(&app, "resp_");
    let run = Run::start(app.engine()?, asks, &record)?;
    if stream {
        return Ok(sse::stream(run, BlockStream::new(ResponseEvents::new(head, echo)), app.keep_alive));
    }
    let (mut answers, usage) = collect(run).await?;
    Ok(json_response(&responses::whole(&head, &echo, &answers.pop().unwrap_or_default(), usage)))
}

async fn create_message(
    State(app): Shared,
    Extension(record): Recorded,
    request: Request,
) -> Result<Response, ApiError> {
    let map = body(&app, request).await?;
    let (stream, asks, stops) = app
        .blocking(move |app| {
            if !map.contains_key("max_tokens") {
                return Err(ApiError::field("max_tokens", "is missing"));
            }
            let (stream, asks) = converted(app, &map, anthropic_in::to_chat(&map)?)?;
            Ok((stream, asks, StopSequences::of(&map)))
        })
        .await?;
    let head = head(&app, "msg_");
    let run = Run::start(app.engine()?, asks, &record)?;
    if stream {
        let prompt = run.usage().prompt;
        return Ok(sse::stream(run, BlockStream::new(MessageEvents::new(head, stops, prompt)), app.keep_alive));
    }
    let (mut answers, usage) = collect(run).await?;
    Ok(json_response(&anthropic::whole(&head, &answers.pop().unwrap_or_default(), &stops, usage)))
}

async fn count_tokens(State(app): Shared, request: Request) -> Result<Response, ApiError> {
    let map = read_object(&app, request).await?;
    let tokens = app
        .blocking(move |app| {
            let (chat, places) = anthropic_in::to_chat(&map)?;
            let prompt = job(app, &chat).and_then(|job| job.prompt(app));
            Ok(prompt.map_err(|error| places.told(error))?.tokens.len())
        })
        .await?;
    Ok(json_response(&json!({"input_tokens": tokens})))
}

/// One ask for a body that was made that of a chat, and whether its answer is streamed.
fn converted(
    app: &App,
    map: &Map<String, Value>,
    (chat, places): (Map<String, Value>, Places),
) -> Result<(bool, Vec<Ask>), ApiError> {
    let stream = Fields::root(map).bool("stream")?.unwrap_or(false);
    let asks = job(app, &chat).and_then(|job| job.asks(app));
    Ok((stream, asks.map_err(|error| places.told(error))?))
}

fn job(app: &App, chat: &Map<String, Value>) -> Result<ChatJob, ApiError> {
    Ok(chat::read(checked(app, chat)?, &app.defaults)?.job)
}

async fn tokenize(State(app): Shared, request: Request) -> Result<Response, ApiError> {
    let map = read_object(&app, request).await?;
    let told = app.blocking(move |app| tokens::tokenize(app, Fields::root(&map))).await?;
    Ok(json_response(&told))
}

async fn detokenize(State(app): Shared, request: Request) -> Result<Response, ApiError> {
    let map = read_object(&app, request).await?;
    let told = app.blocking(move |app| tokens::detokenize(app, Fields::root(&map))).await?;
    Ok(json_response(&told))
}

async fn tokenizer_info(State(app): Shared) -> Response {
    json_response(&tokens::info(&app))
}

fn head(app: &App, prefix: &str) -> Head {
    Head { id: new_id(prefix), created: now(), model: app.model.clone() }
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string()).into_response()
}

/// The fields of a body for the model that is here.
fn checked<'a>(app: &App, map: &'a Map<String, Value>) -> Result<Fields<'a>, ApiError> {
    let fields = Fields::root(map);
    app.check_model(fields.text("model")?)?;
    Ok(fields)
}

/// The body of a request that generates; it is not read where there is no room for it anyway.
async fn body(app: &Arc<App>, request: Request) -> Result<Map<String, Value>, ApiError> {
    let status = app.engine()?.status();
    if status.waiting >= status.max_waiting && status.running >= status.max_running {
        return Err(ApiError::queue_full(status.waiting, 0));
    }
    read_object(app, request).await
}

/// A body that is a JSON object.
async fn read_object(app: &Arc<App>, request: Request) -> Result<Map<String, Value>, ApiError> {
    let bytes = read(request).await?;
    app.blocking(move |_| {
        limits::check_depth(&bytes)?;
        // Some programs write a byte order mark before their texts.
        let json = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        match serde_json::from_slice(json) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(_) => Err(ApiError::invalid(None, "the body is JSON, but no object")),
            Err(error) => Err(ApiError::invalid(None, format!("the body is no JSON: {error}"))),
        }
    })
    .await
}

async fn read(request: Request) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body is larger than {} MiB", limits::BODY >> 20);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let encoding = request.headers().get(header::CONTENT_ENCODING).map(|name| name.to_str().unwrap_or_default());
    if let Some(name) = encoding.filter(|name| !name.eq_ignore_ascii_case("identity")) {
        let message = format!("Content-Encoding: {name:.40?} is not read; send the body as it is");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.is_some_and(|length| length.parse::<usize>().is_ok_and(|length| length > limits::BODY)) {
        return Err(too_large());
    }
    let bytes = axum::body::to_bytes(request.into_body(), limits::BODY);
    match tokio::time::timeout(limits::ARRIVAL, bytes).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::invalid(None, "the body ended early")),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

fn is_length_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    // What axum's `to_bytes` puts inside; its type is in http-body-util.
    let mut error = Some(error);
    while let Some(inner) = error {
        if inner.to_string() == "length limit exceeded" {
            return true;
        }
        error = inner.source();
    }
    false
}
