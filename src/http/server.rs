//! The accept loop: limits, deadlines, and the end of every connection.
//!
//! Does not know what the routes are.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::header::CONNECTION;
use axum::response::IntoResponse;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::conn::{Conns, Deadlines, Entry, NotedIo};
use super::error::ApiError;
use super::{Answer, Routes};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::task;

/// How often overdue connections are looked for: no more than this later are they closed.
const REAP_EVERY: Duration = Duration::from_millis(250);
/// What is still read of a body whose answer was given early, so that the client sees the answer.
const LINGER_BYTES: usize = 1 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);
const BACKLOG: i32 = 4096;
/// Connections above the limit that are told so at once.
const MAX_TURNED_AWAY: usize = 256;

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time that each phase may take.
    pub deadlines: Deadlines,
    /// `http_max_connections`.
    pub max_connections: usize,
    /// `http_max_header_bytes`.
    pub max_header_bytes: usize,
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    clock: Clock,
    metrics: Metrics,
    conns: Arc<Conns>,
    turned_away: Arc<Semaphore>,
}

impl Server {
    /// Binds. `addr` is `host:port`.
    ///
    /// # Errors
    /// The system's, such as an address in use.
    pub async fn bind(
        addr: &str,
        limits: Limits,
        clock: Clock,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let addr = tokio::net::lookup_host(addr).await?.next();
        let addr = addr.ok_or_else(|| io::Error::other("the name has no address"))?;
        let domain = socket2::Domain::for_address(addr);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let turned_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
        Ok(Self { listener, limits, clock, metrics, conns: Arc::default(), turned_away })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// The system's.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` turns true, then finishes the requests under way.
    pub async fn run(self, routes: Routes, mut stop: watch::Receiver<bool>) {
        let mut reap = tokio::time::interval(REAP_EVERY);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                _ = reap.tick() => self.conns.reap(self.clock.mono()),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.enter(stream, &routes),
                    Err(e) => self.not_accepted(&e).await,
                },
            }
        }
        let Self { listener, conns, clock, .. } = self;
        drop(listener);
        conns.finish();
        while conns.len() > 0 {
            reap.tick().await;
            conns.reap(clock.mono());
            // a connection accepted at the last moment had not heard the bell
            conns.finish();
        }
    }

    /// No descriptors left, say: the connection waits in the kernel, and so do we for a moment.
    async fn not_accepted(&self, e: &io::Error) {
        tracing::error!("a connection could not be accepted: {e}");
        task::sleep(Duration::from_millis(50)).await;
    }

    fn enter(&self, stream: TcpStream, routes: &Routes) {
        if self.conns.len() >= self.limits.max_connections {
            self.metrics.closed_connections.with_label_values(&["limit"]).inc();
            // in a flood, closing is all there is descriptors for
            if let Ok(place) = self.turned_away.clone().try_acquire_owned() {
                task::spawn(async move {
                    turn_away(stream).await;
                    drop(place);
                });
            }
            return;
        }
        let _ = stream.set_nodelay(true);
        let entry = self.conns.enter(self.clock.clone(), self.limits.deadlines);
        let metrics = self.metrics.clone();
        let (max_header_bytes, routes) = (self.limits.max_header_bytes, routes.clone());
        metrics.connections.inc();
        task::spawn(async move {
            serve(stream, &entry, max_header_bytes, routes, &metrics).await;
            metrics.connections.dec();
        });
    }
}

/// Waits until the node stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // the guard that comes back must not live on across the next wait
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

/// Says why in one answer, so that a balancer sees a node that is full and not one that is broken.
async fn turn_away(mut stream: TcpStream) {
    const BODY: &str = "{\"status\":\"error\",\"code\":\"connections\",\
        \"error\":\"http_max_connections are open\",\"stored\":\"no\"}\n";
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         connection: close\r\nretry-after: 1\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let _ = tokio::time::timeout(LINGER_TIME, stream.write_all(answer.as_bytes())).await;
    linger(stream).await;
}

async fn serve(
    stream: TcpStream,
    entry: &Entry,
    max_header_bytes: usize,
    routes: Routes,
    metrics: &Metrics,
) {
    let conn = entry.conn.clone();
    let noted = conn.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        noted.serving();
        let long = header_bytes(&request) > max_header_bytes;
        let (routes, noted) = (routes.clone(), noted.clone());
        // boxed, since hyper drives only a future that may move when the stream is to come back
        Box::pin(async move {
            let response = if long {
                ApiError::HeadersTooLarge(max_header_bytes).into_response().map(Either::Right)
            } else {
                routes.call(request).await
            };
            if response.headers().get(CONNECTION).is_some_and(|value| value == "close") {
                noted.early.store(true, Ordering::Relaxed);
            }
            noted.served();
            Ok::<Answer, Infallible>(response)
        })
    });
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        // what is only a little too long gets our answer; what is far too long, hyper's
        .max_buf_size(2 * max_header_bytes)
        .serve_connection(NotedIo::new(stream, conn.clone()), service);
    loop {
        tokio::select! {
            biased;
            done = std::future::poll_fn(|cx| http.poll_without_shutdown(cx)) => {
                match done {
                    Ok(()) => break,
                    // hyper has answered what it could not read: that answer is to be seen too
                    Err(e) if e.is_parse() => {
                        conn.early.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(_) => return,
                }
            }
            () = conn.bell.notified() => {
                if conn.expired() {
                    metrics.closed_connections.with_label_values(&["deadline"]).inc();
                    return;
                }
                if conn.is_finishing() {
                    std::pin::Pin::new(&mut http).graceful_shutdown();
                }
            }
        }
    }
    let stream = http.into_parts().io.into_stream();
    if conn.early.load(Ordering::Relaxed) {
        linger(stream).await;
    }
}

/// What the request line and the headers take, as HTTP/1.1 writes them.
fn header_bytes(request: &hyper::Request<Incoming>) -> usize {
    let path = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    let headers =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    path + headers.sum::<usize>()
}

/// Closes without a reset while the client is still sending: says that nothing more will come, then
/// drops what does, within bounds.
async fn linger(mut stream: TcpStream) {
    let _ = tokio::time::timeout(LINGER_TIME, async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut waste = vec![0; 16 << 10];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    })
    .await;
}
