//! The `defender-bridge` command.

fn main() {}
