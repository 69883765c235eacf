//! Named threads and tasks whose unexpected end stops the node: a node that has lost a part of its
//! spine must not go on as if it had not.
//!
//! Knows nothing of what they do.

use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::watch;

/// Watches over the spine. Clones watch together.
#[derive(Clone)]
pub struct Spine {
    death: Arc<watch::Sender<Option<String>>>,
    stopping: Arc<AtomicBool>,
}

impl Default for Spine {
    fn default() -> Self {
        Self { death: Arc::new(watch::channel(None).0), stopping: Arc::default() }
    }
}

impl Spine {
    /// From now on an ending is expected.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Waits until a part died; its name and why.
    pub async fn died(&self) -> String {
        let mut seen = self.death.subscribe();
        loop {
            if let Some(why) = seen.borrow_and_update().clone() {
                return why;
            }
            if seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn ended(&self, name: &str, panic: Option<&(dyn Any + Send)>) {
        let why = match panic {
            Some(panic) => format!("{name} panicked: {}", panic_text(panic)),
            None if self.stopping.load(Ordering::SeqCst) => return,
            None => format!("{name} ended unexpectedly"),
        };
        self.death.send_modify(|death| {
            death.get_or_insert(why);
        });
    }

    /// Starts a thread of the spine.
    ///
    /// # Errors
    /// The system's, where it gives no thread.
    pub fn thread<F>(&self, name: &str, run: F) -> io::Result<JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let (spine, label) = (self.clone(), name.to_owned());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(run));
            spine.ended(&label, result.err().as_deref());
        })
    }

    /// Starts a task of the spine on the current runtime.
    pub fn task<F>(&self, name: &str, run: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (spine, label) = (self.clone(), name.to_owned());
        spawn(async move {
            match spawn(run).await {
                Ok(()) => spine.ended(&label, None),
                Err(e) if e.is_panic() => spine.ended(&label, Some(&*e.into_panic())),
                Err(_) => {}
            }
        })
    }
}

/// The one place where tasks are started.
#[allow(clippy::disallowed_methods)]
pub fn spawn<F>(run: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(run)
}

/// Runs `work` where blocking harms nobody; a panic in it goes on in the caller.
#[allow(clippy::disallowed_methods)]
pub async fn blocking<F, R>(work: F) -> R
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // the runtime is going down: nobody will look at the result
        Err(_) => std::future::pending().await,
    }
}

/// Lets time pass without holding a thread.
pub async fn sleep(time: std::time::Duration) {
    tokio::time::sleep(time).await;
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_the_spine_is_named() {
        let spine = Spine::default();
        spine.task("writer 1", async { panic!("boom") });
        assert_eq!(spine.died().await, "writer 1 panicked: boom");
    }

    #[tokio::test]
    async fn an_end_is_a_death_unless_it_was_asked_for() {
        let spine = Spine::default();
        spine.thread("log", || {}).unwrap().join().unwrap();
        assert_eq!(spine.died().await, "log ended unexpectedly");
        let calm = Spine::default();
        calm.stopping();
        calm.thread("log", || {}).unwrap().join().unwrap();
        assert!(calm.death.borrow().is_none());
    }
}
