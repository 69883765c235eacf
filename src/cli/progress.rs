//! A bar on stderr for what takes long, where somebody watches.
//!
//! The only module that knows indicatif. Does not know what takes so long.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Clock;

/// What ends sooner shows no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// The progress of one piece of work; its bar goes with it.
pub struct Progress {
    what: &'static str,
    clock: Clock,
    watched: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins now.
    pub fn of(what: &'static str) -> Self {
        Self { what, clock: Clock::system(), watched: stderr().is_terminal(), bar: None }
    }

    /// So much of it is done.
    pub fn show(&mut self, done: u64, of: u64) {
        if self.watched && self.bar.is_none() && self.clock.mono() >= PATIENCE {
            self.bar = Some(bar(self.what));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(of);
            bar.set_position(done);
        }
    }

    /// Prints something else, with the bar out of its way.
    pub fn aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {percent} %");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(what);
    bar
}
