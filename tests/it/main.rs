//! The one integration binary. Modules are named after what they attack.

// a test that meets what it did not expect is to panic, and it measures real time
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod cli;
mod cli_check;
mod crash;
mod dead;
mod dialects;
mod differential;
mod dlq_commands;
mod history;
mod http;
mod http_codes;
mod log;
mod log_commands;
mod look;
mod model;
mod parked;
mod power;
mod pull_simulator;
mod readme;
mod recovery;
mod redis;
mod replication;
mod schema_command;
mod script;
mod slow;
mod sql;
mod sql_store;
mod support;
mod tidy;
mod words;
