//! Connections: accepting them, and ending in order.

use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::app::App;
use super::error::{ApiError, Dialect};
use super::limits;
use super::routes::router;

/// A client that takes nothing of its answer for so long is given up.
const UNREAD: Duration = Duration::from_secs(60);

/// Told to connections beyond the limit.
fn full() -> String {
    let body = ApiError::unavailable("too many connections", "connections").body(Dialect::OpenAi).to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// How the server ends.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// After SIGTERM, time in which requests are still taken while `/health` says that the server ends.
    pub delay: Duration,
    /// Time that answers have from then on.
    pub finish: Duration,
}

/// What ended the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Terminated,
    Interrupted,
}

/// Serves until a signal says otherwise.
///
/// # Errors
/// When the system has no sockets or signals to give.
pub fn run(app: &Arc<App>, listener: TcpListener, shutdown: Shutdown) -> io::Result<Ended> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(limits::PREPARING).thread_name("ember-serve").build()?;
    let (ended, waits) = runtime.block_on(serve(app, listener, shutdown))?;
    // What still goes on is given up: it is dropped here, and each is a line in the log.
    app.phase.give_up();
    runtime.shutdown_background();
    if !waits {
        std::process::exit(ended.code());
    }
    Ok(ended)
}

/// What ended the server, and whether the pass in progress is waited for: not after a second signal, nor before there is a model.
async fn serve(app: &Arc<App>, listener: TcpListener, shutdown: Shutdown) -> io::Result<(Ended, bool)> {
    let mut signals = signals()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let graceful = Arc::new(GracefulShutdown::new());
    let accepting = tokio::spawn(accept(listener, app.clone(), Arc::downgrade(&graceful)));
    let ended = signals.recv().await.unwrap_or(Ended::Terminated);
    app.phase.leave();
    let Some(engine) = app.engine.get() else {
        tracing::info!(target: "ember::serve", "ending; no model is loaded yet");
        return Ok((ended, false));
    };
    let status = engine.status();
    tracing::info!(target: "ember::serve", "{}", ending(ended, shutdown, status.running, status.waiting));
    let in_order = pin!(async {
        if ended == Ended::Terminated {
            sleep(shutdown.delay).await;
        }
        app.phase.close();
        engine.drain();
        // Connections from here on are told that the server ends, as `/health` has to be, and are not waited for. The task that accepts holds
        // `graceful` only while it runs, which is not now: both are on one thread.
        if let Ok(graceful) = Arc::try_unwrap(graceful)
            && timeout(shutdown.finish, graceful.shutdown()).await.is_err()
        {
            tracing::warn!(target: "ember::serve", "answers were given up after {} s", shutdown.finish.as_secs());
        }
    });
    let again = unless_signalled(in_order, &mut signals).await;
    accepting.abort();
    if let Some(again) = again {
        tracing::warn!(target: "ember::serve", "ending at once, after a second signal");
        return Ok((again, false));
    }
    Ok((ended, true))
}

/// Does the work, or what of it is done before a signal comes.
async fn unless_signalled(
    mut work: Pin<&mut impl Future<Output = ()>>,
    signals: &mut mpsc::Receiver<Ended>,
) -> Option<Ended> {
    poll_fn(|context| match (signals.poll_recv(context), work.as_mut().poll(context)) {
        (Poll::Ready(Some(signal)), _) => Poll::Ready(Some(signal)),
        (_, Poll::Ready(())) => Poll::Ready(None),
        _ => Poll::Pending,
    })
    .await
}

/// What is told when the server begins to end: what is waited for, how long, and how not to wait.
fn ending(ended: Ended, shutdown: Shutdown, running: usize, waiting: usize) -> String {
    let (delay, finish) = (shutdown.delay.as_secs(), shutdown.finish.as_secs());
    let delayed = ended == Ended::Terminated && delay > 0;
    let mut parts = vec!["ending".to_owned()];
    match (running, waiting) {
        (0, 0) => parts.push("no answer is being generated".to_owned()),
        (1, 0) => parts.push("1 answer is being generated".to_owned()),
        (running, 0) => parts.push(format!("{running} answers are being generated")),
        (running, waiting) => parts.push(format!("answers that are being generated: {running}, that wait: {waiting}")),
    }
    if delayed {
        parts.push(format!("requests are taken for {delay} s more"));
    }
    if delayed || running + waiting > 0 {
        parts.push(format!("answers {}have {finish} s", if delayed { "then " } else { "" }));
        let again = if ended == Ended::Interrupted { "Ctrl-C" } else { "signal" };
        parts.push(format!("a second {again} ends at once"));
    }
    parts.join("; ")
}

impl Ended {
    /// Exit code of the program.
    pub fn code(self) -> i32 {
        match self {
            Self::Terminated => 0,
            Self::Interrupted => 130,
        }
    }
}

#[cfg(unix)]
fn signals() -> io::Result<mpsc::Receiver<Ended>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (send, receive) = mpsc::channel(2);
    for (kind, ended) in [(SignalKind::terminate(), Ended::Terminated), (SignalKind::interrupt(), Ended::Interrupted)] {
        let mut signal = signal(kind)?;
        let send = send.clone();
        tokio::spawn(async move { while signal.recv().await.is_some() && send.send(ended).await.is_ok() {} });
    }
    Ok(receive)
}

#[cfg(not(unix))]
fn signals() -> io::Result<mpsc::Receiver<Ended>> {
    let (send, receive) = mpsc::channel(2);
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() && send.send(Ended::Interrupted).await.is_ok() {}
    });
    Ok(receive)
}

/// Serves connections. `graceful` waits for those that come as long as it is there.
async fn accept(listener: tokio::net::TcpListener, app: Arc<App>, graceful: std::sync::Weak<GracefulShutdown>) {
    let router = router(&app);
    let full = full();
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of one connection that is gone already, or of too many open files.
                tracing::warn!(target: "ember::serve", "a connection cannot be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            let _ = stream.try_write(full.as_bytes());
            continue;
        };
        // Tokens are small, and each is worth a packet.
        let _ = stream.set_nodelay(true);
        let watcher = graceful.upgrade().map(|graceful| graceful.watcher());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits::ARRIVAL).keep_alive(watcher.is_some());
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(Timed::new(stream), service);
        tokio::spawn(async move {
            // An error is the client's: it is gone, or speaks no HTTP.
            let _ = match watcher {
                Some(watcher) => watcher.watch(connection).await,
                None => connection.await,
            };
            drop(permit);
        });
    }
}

/// A connection that ends when its peer takes nothing for [`UNREAD`].
struct Timed {
    inner: TokioIo<TcpStream>,
    unread: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn new(stream: TcpStream) -> Self {
        Self { inner: TokioIo::new(stream), unread: None }
    }

    fn checked<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + UNREAD)));
        match unread.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Read for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Timed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.checked(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.checked(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.checked(context, written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_about_the_end_says_what_is_waited_for() {
        let shutdown = |delay| Shutdown { delay: Duration::from_secs(delay), finish: Duration::from_secs(60) };
        for (ended, delay, running, waiting, told) in [
            (Ended::Interrupted, 5, 0, 0, "ending; no answer is being generated"),
            (Ended::Terminated, 0, 0, 0, "ending; no answer is being generated"),
            (
                Ended::Interrupted,
                5,
                1,
                0,
                "ending; 1 answer is being generated; answers have 60 s; a second Ctrl-C ends at once",
            ),
            (
                Ended::Terminated,
                0,
                2,
                0,
                "ending; 2 answers are being generated; answers have 60 s; a second signal ends at once",
            ),
            (
                Ended::Interrupted,
                0,
                8,
                3,
                "ending; answers that are being generated: 8, that wait: 3; answers have 60 s; a second Ctrl-C ends at once",
            ),
            (
                Ended::Terminated,
                5,
                0,
                0,
                "ending; no answer is being generated; requests are taken for 5 s more; answers then have 60 s; a second signal ends at once",
            ),
        ] {
            assert_eq!(ending(ended, shutdown(delay), running, waiting), told);
        }
    }
}
