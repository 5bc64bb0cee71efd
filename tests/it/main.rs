//! Integration tests: one binary, one link step, shared helpers. Cases that need RabbitMQ are ignored by default and
//! read its address from `TEST_RABBITMQ_URL`; `tests/run` provides one and runs them all.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may fail loudly too; the lint's own exception knows test functions only"
)]

mod breakable;
mod bridge;
mod broker_conformance;
mod campaign;
mod check;
mod cli;
mod cognito_client;
mod collector;
mod dashboards;
mod dead_letters;
mod defender_client;
mod deployment;
mod desk;
mod forwarder;
mod hosts;
mod hunting_interpreter;
mod layering;
mod messages;
mod module;
mod namespaces;
mod notifications;
mod openapi;
mod outbound;
mod poll;
mod processes;
mod rabbitmq_faults;
mod relay;
mod relay_examples;
mod scripted;
mod secrets;
mod shutdown;
mod simulator;
mod spawned;
mod startup;
mod story;
mod sweep;
mod traced_deployment;
mod tracing;
mod webhook;
