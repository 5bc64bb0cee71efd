//! What is to be done about a host, decided without any call (`cognito.md` 5 and 6): values and `now` in, values out.
//!
//! In the order in which a worker needs them: [`tags`] reads the host's state, [`decide`] says what is asked,
//! [`lookup`] and [`matching`] find the machine, [`guard`] allows or refuses, [`act`] says what to do at Defender,
//! [`state`] what is known afterwards, [`difference`] which tags to write and whether they arrived, [`notes`] what the
//! analyst reads, [`failure`] and [`delays`] what happens when something does not work.

pub mod act;
pub mod answer;
pub mod comment;
pub mod decide;
pub mod delays;
pub mod difference;
pub mod failure;
pub mod guard;
pub mod lookup;
pub mod matching;
pub mod names;
pub mod network;
pub mod notes;
pub mod observables;
pub mod once;
pub mod pattern;
pub mod policy;
pub mod reason;
pub mod state;
pub mod tags;

pub use policy::{Guard, NameMatch, Policy};
pub use reason::{Fate, Reason};
