//! The floors: the least work that anything doing this job must do, served as replicon serves.
//!
//! Each function is a whole process: it prints `floor ready http=ADDRESS` and serves until killed.
//! Knows nothing of replicon, so that nothing of it is in the floor.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::de::IgnoredAny;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tower_service::Service;

use crate::settings::Outcome;

/// The argument that makes a process floor A.
pub const BARE: &str = "--floor-bare";
/// The argument, followed by a file, that makes a process floor B.
pub const COMMIT: &str = "--floor-commit";

/// The route of replicon that is driven.
const ROUTE: &str = "/ingress/{channel}/add";
/// As long as replicon's answer to one event.
const ACCEPTED: &str = "{\"status\":\"accepted\",\"accepted_count\":1,\"origin_dc\":\"dc1\",\
    \"first_seq\":351830000000000,\"last_seq\":351830000000000}\n";

/// Floor A: reads the body and answers 202.
pub fn bare() -> Outcome<()> {
    serve(Router::new().route(ROUTE, post(take)))
}

/// Floor B: hands the body to one thread that checks the JSON and commits in groups, then answers.
pub fn commit(file: &Path) -> Outcome<()> {
    let file = File::create(file)?;
    let inbox = Arc::new(Inbox::default());
    let work = inbox.clone();
    std::thread::spawn(move || commit_groups(&work, file));
    serve(Router::new().route(ROUTE, post(hand_over)).with_state(inbox))
}

fn serve(router: Router) -> Outcome<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(accept(router))
}

async fn accept(router: Router) -> Outcome<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(4096)?;
    println!("floor ready http={}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let mut router = router.clone();
                router.call(request)
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        });
    }
}

fn accepted() -> Response {
    let head = [(CONTENT_TYPE, "application/json")];
    (StatusCode::ACCEPTED, head, ACCEPTED).into_response()
}

async fn take(_body: Bytes) -> Response {
    accepted()
}

struct Waiting {
    body: Bytes,
    answer: oneshot::Sender<bool>,
}

#[derive(Default)]
struct Inbox {
    waiting: Mutex<Vec<Waiting>>,
    bell: Condvar,
}

impl Inbox {
    fn push(&self, one: Waiting) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(one);
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            self.bell.notify_one();
        }
    }

    /// Everything that waits, at least one.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.is_empty() {
            waiting = self.bell.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut *waiting)
    }
}

async fn hand_over(State(inbox): State<Arc<Inbox>>, body: Bytes) -> Response {
    let (answer, answered) = oneshot::channel();
    inbox.push(Waiting { body, answer });
    match answered.await {
        Ok(true) => accepted(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn commit_groups(inbox: &Inbox, mut file: File) {
    let mut group = Vec::new();
    loop {
        let waiting = inbox.take();
        let mut answers = Vec::with_capacity(waiting.len());
        group.clear();
        for one in waiting {
            let good = serde_json::from_slice::<IgnoredAny>(&one.body).is_ok();
            if good {
                group.extend_from_slice(&one.body);
            }
            answers.push((one.answer, good));
        }
        let written = file.write_all(&group).and_then(|()| file.sync_data());
        for (answer, good) in answers {
            let _ = answer.send(good && written.is_ok());
        }
    }
}
