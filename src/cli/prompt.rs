//! Asking the person at the terminal. A secret is typed unseen.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use secrecy::SecretString;

/// Whether somebody can be asked.
pub(super) fn somebody_is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// A line that is typed; on standard error, because standard output may go into a file.
pub(super) fn text(question: &str) -> anyhow::Result<String> {
    eprint!("{question}: ");
    std::io::stderr().flush().context("the terminal cannot be written to")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("the terminal cannot be read")?;
    let line = line.trim();
    if line.is_empty() {
        bail!("{question}: nothing was typed");
    }
    Ok(line.to_owned())
}

/// A line that is typed and not shown.
pub(super) fn secret(question: &str) -> anyhow::Result<SecretString> {
    let line = rpassword::prompt_password(format!("{question}: ")).context("the terminal cannot be read")?;
    if line.trim().is_empty() {
        bail!("{question}: nothing was typed");
    }
    Ok(line.trim().into())
}
