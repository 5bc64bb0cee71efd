//! Tells the program which commit it was built from, for `--version`.
//!
//! `BRIDGE_COMMIT` says it where there is no repository, as in the image's build; else git does, for release builds
//! only: a debug build would be compiled anew after every commit. Without either, as from a source archive, the version
//! stands alone.

use std::path::Path;
use std::process::Command;

/// What a release is made of: a change of it that is not committed shows as `modified`.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];

/// Digits of a commit's id: enough to name one commit of any repository of this size.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BRIDGE_COMMIT");
    let version = variable("CARGO_PKG_VERSION");
    let build = match (variable("BRIDGE_COMMIT"), variable("PROFILE").as_str()) {
        (told, _) if is_id(&told) => Some(shortened(&told)),
        (_, "release") => commit(),
        (_, profile) => Some(profile.to_owned()),
    };
    let version = build.map_or(version.clone(), |build| format!("{version} ({build})"));
    println!("cargo::rustc-env=BRIDGE_VERSION={version}");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default().trim().to_owned()
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn shortened(id: &str) -> String {
    id.chars().take(DIGITS).collect()
}

/// The commit that is checked out, if this folder is a repository of its own and not an archive inside another one.
fn commit() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&variable("CARGO_MANIFEST_DIR")).canonicalize().ok()? {
        return None;
    }
    // HEAD itself for a checkout, its log for a commit.
    for name in ["HEAD", "logs/HEAD"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", name])?);
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let id = shortened(&git(&["rev-parse", "HEAD"]).filter(|id| is_id(id))?);
    let changed = [&["status", "--porcelain", "--"], &SOURCES[..]].concat();
    Some(if git(&changed)?.is_empty() { id } else { format!("{id}, modified") })
}

/// What git prints; `None` if it is not there or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
