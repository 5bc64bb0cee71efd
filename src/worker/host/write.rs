//! Writing to the host: tags by difference, notes by reference (`cognito.md` 5.3, 5.8, 5.10).

use std::sync::atomic::Ordering;

use super::{Failed, Look};
use crate::cognito::model::Note;
use crate::cognito::{Class, CognitoError, Session};
use crate::containment::difference::{Difference, MAX_WRITES};
use crate::containment::failure::Failure;
use crate::containment::matching::Context;
use crate::containment::notes::{self, ActionNote};
use crate::containment::state::{Change, State};
use crate::containment::tags;

/// What a host's tags should say.
pub(super) struct Wanted<'a> {
    /// What was found out about the machine; `None`: what the tags say already.
    pub(super) context: Option<&'a Context>,
    /// What happened to the state.
    pub(super) change: &'a Change,
    /// Triggers whose request is settled.
    pub(super) consumed: &'a [String],
}

/// A host that is gone needs nothing any more.
pub(super) enum Written {
    /// The tags are as they should be.
    Done,
    /// There is no such host.
    Gone,
}

impl Look<'_> {
    /// Makes the host's tags say what is `wanted`: read, write the difference if there is one, and look at what came of
    /// it, up to [`MAX_WRITES`] times. `first` are tags read a moment ago, to save the first reading.
    pub(super) async fn write_tags(
        &self,
        cognito: &Session,
        wanted: &Wanted<'_>,
        mut first: Option<Vec<String>>,
    ) -> Result<Written, Failed> {
        let prefix = &self.hosts.settings.policy.tag_prefix;
        let mut last = String::new();
        let mut lost = Vec::new();
        for _ in 0..MAX_WRITES {
            let present = match first.take() {
                Some(present) => present,
                None => match cognito.tags(self.event.host_id).await {
                    Ok(Some(present)) => present,
                    Ok(None) => return Ok(Written::Gone),
                    Err(error) => return Err(error.into()),
                },
            };
            let state = State::read(prefix, &present).after(wanted.change, self.now);
            let ours = tags::wanted(prefix, wanted.context, &state, &present);
            let mut difference = Difference::between(prefix, &present, &ours, wanted.consumed);
            difference.add.extend(lost.drain(..).filter(|tag| !present.contains(tag)));
            if difference.is_empty() {
                return Ok(Written::Done);
            }
            let answer = match cognito.replace_tags(self.event.host_id, &difference.apply(&present)).await {
                Ok(answer) => answer,
                Err(error) if error.class() == Class::Gone => return Ok(Written::Gone),
                // It may have arrived: the next round sees.
                Err(error) if error.may_have_happened() => {
                    last = error.to_string();
                    continue;
                }
                Err(error) if error.class() == Class::Configuration => {
                    return Err(Failed::of(Failure::CognitoWriteRefused, error));
                }
                Err(error) => return Err(error.into()),
            };
            self.hosts.tags_refused.store(false, Ordering::Relaxed);
            let found = difference.verify(&present, &answer);
            if found.is_good() {
                return Ok(Written::Done);
            }
            self.hosts.metrics.tag_repairs(found.lost.len(), found.missing.len(), found.remaining.len());
            tracing::warn!(
                host.id = self.event.host_id,
                lost = found.lost.len(),
                missing = found.missing.len(),
                remaining = found.remaining.len(),
                "the tags are not what was written; they are read and written again"
            );
            last = "the tags do not stay as they are written".to_owned();
            // What our own write took away is put back; in a list read later it may be an analyst's doing.
            lost = found.lost;
        }
        Err(Failed::of(Failure::CognitoTransient, last))
    }

    /// Writes the context note in place, or adds it. Best effort: a note that cannot be written costs a line in the log.
    pub(super) async fn context_note(&self, cognito: &Session, present: &[Note], text: &str) {
        let host_id = self.event.host_id;
        let own = notes::find_context(present, self.hosts.settings.self_user.as_deref());
        let written = match own {
            Some(note) if note.text == text => Ok(()),
            Some(note) => cognito.update_note(host_id, note.id, text).await,
            None => cognito.add_note(host_id, text).await.map(|_| ()),
        };
        self.note_written(written);
    }

    /// Adds an action note, unless the host has it.
    pub(super) async fn action_note(&self, cognito: &Session, present: &[Note], note: &ActionNote) {
        if notes::is_there(present, &note.reference, self.hosts.settings.self_user.as_deref()) {
            return;
        }
        let written = cognito.add_note(self.event.host_id, &note.text).await.map(|_| ());
        self.note_written(written);
    }

    /// The host's notes; none when they cannot be read, which is not worth failing for.
    pub(super) async fn notes(&self, cognito: &Session) -> Option<Vec<Note>> {
        match cognito.notes(self.event.host_id).await {
            Ok(notes) => Some(notes),
            Err(error) => {
                self.note_written(Err(error));
                None
            }
        }
    }

    fn note_written(&self, written: Result<(), CognitoError>) {
        if let Err(error) = written {
            tracing::warn!(host.id = self.event.host_id, error = %error, "a note could not be written");
        }
    }
}
