//! Many measurements as one figure, and figures as text.
//!
//! Knows nothing of what was measured.

/// What is said of several measurements of the same thing.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The middle one, or between the two in the middle; `NaN` for none at all.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Self { median, min, max }
    }

    /// `median (min-max)`, each written by `form`.
    pub fn show(self, form: fn(f64) -> String) -> String {
        let (median, min, max) = (form(self.median), form(self.min), form(self.max));
        format!("{median} ({min}-{max})")
    }
}

/// `105.2k`, `1.53M`, `87`.
pub fn short(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.2}M", value / 1e6)
    } else if value >= 1e3 {
        format!("{:.1}k", value / 1e3)
    } else {
        format!("{value:.0}")
    }
}

/// `0.712`.
pub fn ratio(value: f64) -> String {
    format!("{value:.3}")
}
