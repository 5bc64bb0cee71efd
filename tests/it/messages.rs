//! Messages as every version of the program wrote them, kept as they were: this build reads them all, and what it writes of
//! them says the same. A version that writes something new adds a folder; samples are never changed.
//!
//! Credentials in them were sealed by another program that follows the description of the format, so a change of it by
//! accident shows here too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use defender_bridge::credentials::SealKeys;
use defender_bridge::job::{DecodeError, HOSTS, Host, Job, RELAY, VERSION};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use uuid::Uuid;

/// `SECRET_KEY` of the samples.
const KEY: &str = "a secret key of the samples, kept since version 1";

/// A message as it was kept.
struct Sample {
    path: PathBuf,
    queue: String,
    id: Uuid,
    body: Value,
}

fn samples() -> Vec<Sample> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages");
    let mut found = Vec::new();
    for version in 1..=VERSION {
        let folder = root.join(format!("v{version}"));
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("a sample");
            let sample: Value = serde_json::from_str(&text).expect("JSON");
            let word = |name: &str| sample[name].as_str().expect("a word").to_owned();
            found.push(Sample {
                queue: word("queue"),
                id: word("id").parse().expect("an id"),
                body: sample["body"].clone(),
                path,
            });
        }
    }
    found
}

#[test]
fn messages_of_every_version_are_read_and_written_as_they_were() {
    let mut kinds = BTreeSet::new();
    for Sample { path, queue, body, .. } in samples() {
        let bytes = serde_json::to_vec(&body).unwrap();
        let written: Bytes = if queue == RELAY.name {
            Job::decode(&bytes).map(|job| job.encode()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        } else {
            assert_eq!(queue, HOSTS.name, "{}", path.display());
            Host::decode(&bytes).map(|host| host.encode()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let written: Value = serde_json::from_slice(&written).unwrap();
        for (name, value) in body.as_object().unwrap().iter().filter(|(name, _)| *name != "v") {
            assert_eq!(&written[name], value, "{}: {name}", path.display());
        }
        kinds.insert(body.get("job").or(body.get("kind")).unwrap().as_str().unwrap().to_owned());
    }
    let all = [
        "action",
        "health",
        "host.reconcile",
        "host.scored",
        "host.tag.added",
        "host.tag.removed",
        "host.tags.changed",
        "observe",
        "respond",
        "trigger",
    ];
    assert!(all.iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
}

#[test]
fn credentials_of_every_version_are_opened() {
    let keys = SealKeys::derive(&[&SecretString::from(KEY)]);
    let mut opened = 0;
    for Sample { path, id, body, .. } in samples() {
        let Ok(job) = Job::decode(&serde_json::to_vec(&body).unwrap()) else { continue };
        let sealed = job.credentials();
        let credentials = keys.open(sealed, id).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(credentials.client_secret.expose_secret(), "a secret of the samples");
        opened += 1;
        let other = keys.open(sealed, Uuid::nil());
        assert!(other.is_err(), "{}: the seal is not bound to its message", path.display());
    }
    assert!(opened >= 5, "{opened}");
}

#[test]
fn a_message_of_the_next_version_is_left_for_a_newer_worker() {
    for Sample { path, queue, mut body, .. } in samples() {
        body["v"] = (VERSION + 1).into();
        body["something"] = "new".into();
        let bytes = serde_json::to_vec(&body).unwrap();
        let refused = if queue == RELAY.name { Job::decode(&bytes).err() } else { Host::decode(&bytes).err() };
        assert_eq!(refused, Some(DecodeError::Newer(VERSION + 1)), "{}", path.display());
    }
}
