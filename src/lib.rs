//! defender-bridge: a queue worker between Cisco Threat Response, Vectra Cognito and Microsoft Defender for Endpoint.
//!
//! ```text
//! relay   caller -> ingress -> [queue, ask] -> worker -> Entra/Defender/Graph -> mapping -> reply -> caller
//! hosts   webhook or sweep -> [queue, durable] -> worker: read host, decide, guard, act -> tags, note
//! ```
//!
//! The edges (HTTP, queue, vendor APIs) are thin; the middle (mapping, query building, retry arithmetic) is pure: values
//! and `now` in, values out. The ingress authenticates, validates, publishes and writes the answer; it never calls a
//! vendor. Workers do the rest, so that the service scales by adding worker processes.

pub mod admin;
pub mod broker;
pub mod cli;
pub mod cognito;
pub mod config;
pub mod containment;
pub mod credentials;
pub mod defender;
pub mod desk;
pub mod ingress;
pub mod job;
pub mod key_sets;
pub mod listen;
pub mod mapping;
pub mod notify;
pub mod outbound;
pub mod platform;
pub mod quota;
pub mod redact;
pub mod relay;
pub mod retry;
pub mod shutdown;
pub mod simulator;
pub mod sweep;
pub mod telemetry;
pub mod worker;
