//! How `has` and `has_any` find a needle: by terms.
//!
//! A term is the longest run of letters and digits. A needle is found where its text stands in the haystack with no
//! letter or digit touching an end of it that is itself a letter or digit: `bad.example.com` is found in
//! `https://bad.example.com/x`, but not in `notbad.example.com`. An end that is punctuation asks for nothing next to it,
//! so `has "."` is a plain search for a point; the documentation does not say, and this reading agrees with its examples.

use std::collections::HashMap;

/// Needles, ready for many haystacks: the cost of a search does not grow with their number.
#[derive(Debug, Clone, Default)]
pub(super) struct Needles {
    fold: bool,
    by_first_term: HashMap<String, Vec<Needle>>,
    /// Needles without any term, found as plain text.
    bare: Vec<String>,
}

#[derive(Debug, Clone)]
struct Needle {
    text: String,
    /// Bytes before the first term.
    lead: usize,
}

impl Needles {
    /// `fold` ignores case.
    pub(super) fn new<'a>(needles: impl IntoIterator<Item = &'a str>, fold: bool) -> Self {
        let mut all = Self { fold, ..Self::default() };
        for needle in needles {
            let text = if fold { needle.to_lowercase() } else { needle.to_owned() };
            let first = terms(&text).next().map(|(start, end)| (start, text[start..end].to_owned()));
            match first {
                Some((lead, term)) => all.by_first_term.entry(term).or_default().push(Needle { text, lead }),
                None => all.bare.push(text),
            }
        }
        all
    }

    /// Whether any of the needles is in `text`.
    pub(super) fn any_in(&self, text: &str) -> bool {
        let folded = if self.fold { Some(text.to_lowercase()) } else { None };
        let text = folded.as_deref().unwrap_or(text);
        if self.bare.iter().any(|needle| text.contains(needle.as_str())) {
            return true;
        }
        if self.by_first_term.is_empty() {
            return false;
        }
        terms(text).any(|(start, end)| {
            let needles = self.by_first_term.get(&text[start..end]);
            needles.is_some_and(|needles| needles.iter().any(|needle| needle.stands_at(text, start)))
        })
    }
}

impl Needle {
    /// Whether the needle stands in `text` with its first term at byte `term`.
    fn stands_at(&self, text: &str, term: usize) -> bool {
        let Some(found) = term.checked_sub(self.lead).and_then(|start| text.get(start..)) else { return false };
        let Some(after) = found.strip_prefix(self.text.as_str()) else { return false };
        !(self.text.ends_with(char::is_alphanumeric) && after.starts_with(char::is_alphanumeric))
    }
}

/// Byte ranges of the terms of `text`.
fn terms(text: &str) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(char::is_alphanumeric)?;
        let end = text[start..].find(|c: char| !c.is_alphanumeric()).map_or(text.len(), |length| start + length);
        at = end;
        Some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_needle_is_found_as_whole_terms_only() {
        for (text, needle, found) in [
            ("https://bad.example.com/x", "bad.example.com", true),
            ("https://BAD.example.com:443", "bad.Example.com", true),
            ("sub.bad.example.com", "bad.example.com", true),
            ("notbad.example.com", "bad.example.com", false),
            ("bad.example.community", "bad.example.com", false),
            ("bad-example.com", "bad.example.com", false),
            ("North America", "america", true),
            ("North America", "amer", false),
            ("aa a", "a", true),
            ("[{\"IPAddress\":\"192.0.2.17\"}]", "192.0.2.17", true),
            ("[{\"IPAddress\":\"192.0.2.170\"}]", "192.0.2.17", false),
            ("::ffff:203.0.113.7", ".", true),
            ("2001:db8::7", ".", false),
            ("a::ffff:1", "::ffff:", true),
            ("anything", "", true),
            ("x_y", "x", true),
        ] {
            assert_eq!(Needles::new([needle], true).any_in(text), found, "{text} has {needle}");
        }
        assert!(!Needles::new(["America"], false).any_in("north america"));
        assert!(Needles::new(["x", "america"], true).any_in("North America"));
        assert!(!Needles::new([], true).any_in("x"));
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_a_plain_search(text in "[ab.é ]{0,12}", needle in "[ab.é ]{0,4}") {
            let alnum = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            let slow = text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| {
                text[at..].strip_prefix(needle.as_str()).is_some_and(|after| {
                    !(alnum(needle.chars().next()) && alnum(text[..at].chars().next_back())
                        || alnum(needle.chars().next_back()) && alnum(after.chars().next()))
                })
            });
            prop_assert_eq!(Needles::new([needle.as_str()], false).any_in(&text), slow);
        }
    }
}
