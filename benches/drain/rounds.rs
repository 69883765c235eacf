//! Measurements in turns, another one first each round, and the lines that are printed of them.
//!
//! Does not know how anything is measured.

use crate::figures::{Spread, ratio, short};
use crate::settings::Outcome;

/// What writes the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The database's own bulk loader, all rows in one go.
    Whole,
    /// The same, a thousand rows at a time.
    Batches,
    /// replicon, with so many workers.
    Replicon(usize),
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Rows a second.
    pub rate: f64,
    /// The same from the start of the process on, where that is not what is compared.
    pub with_start: Option<f64>,
}

/// What is compared, and under which names.
pub struct Comparison {
    /// The line above.
    pub title: String,
    /// Who takes turns.
    pub subjects: &'static [Subject],
    /// The name of [`Subject::Whole`].
    pub whole: &'static str,
    /// The name of [`Subject::Batches`].
    pub batches: &'static str,
    /// The least ratio to the loader in one go that is the goal of one worker.
    pub least: Option<f64>,
}

impl Comparison {
    /// Measures all of them and prints their lines.
    pub fn run(
        &self,
        rounds: usize,
        mut measure: impl FnMut(Subject) -> Outcome<Sample>,
    ) -> Outcome<()> {
        let mut samples: Vec<Vec<Sample>> = self.subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            for turn in 0..self.subjects.len() {
                let who = (round + turn) % self.subjects.len();
                let subject = self.subjects[who];
                let sample = measure(subject).map_err(|e| format!("{}: {e}", self.name(subject)));
                samples[who].push(sample?);
            }
        }
        self.print(&samples);
        Ok(())
    }

    fn name(&self, subject: Subject) -> String {
        match subject {
            Subject::Whole => self.whole.to_owned(),
            Subject::Batches => self.batches.to_owned(),
            Subject::Replicon(workers) => format!("replicon, writer_workers = {workers}"),
        }
    }

    fn print(&self, samples: &[Vec<Sample>]) {
        println!("\n{}", self.title);
        println!(
            "{:<32} {:>24} {:>21} {:>7} {:<8} {:>21} {:>10}",
            "", "rows/s", "of one go", "goal", "", "of 1,000 each", "with start"
        );
        let of = |wanted: Subject| {
            let at = self.subjects.iter().position(|subject| *subject == wanted)?;
            Some(samples[at].as_slice())
        };
        let (whole, batches) = (of(Subject::Whole), of(Subject::Batches));
        for (subject, ours) in self.subjects.iter().zip(samples) {
            self.print_line(*subject, ours, beside(ours, whole), beside(ours, batches));
        }
    }

    fn print_line(
        &self,
        subject: Subject,
        ours: &[Sample],
        of_whole: Option<Spread>,
        of_batches: Option<Spread>,
    ) {
        let shown = |spread: Option<Spread>| spread.map_or_else(String::new, |s| s.show(ratio));
        let (mut goal, mut verdict) = (String::new(), "");
        if let (Some(least), Some(of_whole), Subject::Replicon(1)) = (self.least, of_whole, subject)
        {
            goal = format!(">={least:.2}");
            verdict = if of_whole.median >= least { "reached" } else { "missing" };
        }
        let with_start: Vec<f64> = ours.iter().filter_map(|sample| sample.with_start).collect();
        let with_start = match with_start.is_empty() {
            true => String::new(),
            false => short(Spread::of(with_start).median),
        };
        println!(
            "{:<32} {:>24} {:>21} {goal:>7} {verdict:<8} {:>21} {with_start:>10}",
            self.name(subject),
            Spread::of(ours.iter().map(|sample| sample.rate).collect()).show(short),
            shown(of_whole),
            shown(of_batches),
        );
    }
}

/// The rates of each round beside a floor's of the same round.
fn beside(ours: &[Sample], floor: Option<&[Sample]>) -> Option<Spread> {
    let ratios = ours.iter().zip(floor?).map(|(ours, floor)| ours.rate / floor.rate);
    Some(Spread::of(ratios.collect()))
}
