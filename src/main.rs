//! The `defender-bridge` command.

use std::process::ExitCode;

use clap::Parser as _;
use defender_bridge::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
