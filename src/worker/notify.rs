//! A notification: posted, tried again by the ladder of delays, or a dead letter.

use super::{NEWER_VERSION_DELAY, Worked};
use crate::broker::{Cause, Message, Settlement};
use crate::containment::delays;
use crate::job::{DecodeError, Notification};
use crate::notify::Post;

/// Decides what becomes of a delivery.
pub(super) async fn step(message: &Message, attempt: u32, post: &Post) -> Worked {
    let worked = |outcome, failed, settlement| Worked { kind: Notification::KIND, outcome, failed, settlement };
    let dead = |code: &'static str, detail: String| {
        post.given_up();
        worked(code, true, Settlement::DeadLetter(Cause { code: code.to_owned(), detail }))
    };
    let notification = match Notification::decode(&message.body) {
        Ok(notification) => notification,
        Err(DecodeError::Newer(_)) => {
            return worked("newer_version", false, Settlement::Later { after: NEWER_VERSION_DELAY, body: None });
        }
        Err(error) => return dead("undecodable", error.to_string()),
    };
    match post.send(&notification, attempt.saturating_sub(1)).await {
        Ok(()) => worked("sent", false, Settlement::Done { reply: None }),
        Err(error) => {
            tracing::warn!(attempt, error = %error, "a notification was not taken");
            // The last byte of the id is random: what failed together is not tried together.
            let [.., chance] = *message.id.as_bytes();
            match delays::retry(attempt, error.retry_after, f64::from(chance) / f64::from(u8::MAX)) {
                Some(after) => worked("failed", true, Settlement::Retry { after, body: None }),
                None => dead("attempts", error.to_string()),
            }
        }
    }
}
