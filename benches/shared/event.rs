//! The events that are sent: 120 bytes of ordinary JSON each.
//!
//! Knows nothing of who takes them.

/// Bytes of one event.
pub const EVENT_BYTES: usize = 120;

const WORDS: &str = "order accepted, payment pending, ";

/// One event of exactly [`EVENT_BYTES`].
pub fn event(n: usize) -> String {
    let head = format!(
        "{{\"ts\":\"2026-02-19T12:00:00Z\",\"service\":\"checkout\",\"level\":\"info\",\"n\":{n},\"message\":\""
    );
    let left = EVENT_BYTES.saturating_sub(head.len() + 2);
    let message: String = WORDS.chars().cycle().take(left).collect();
    format!("{head}{message}\"}}")
}

/// A request body: one event as an object, several as an array.
pub fn body(events: usize) -> String {
    if events == 1 {
        return event(0);
    }
    let all: Vec<String> = (0..events).map(event).collect();
    format!("[{}]", all.join(","))
}
