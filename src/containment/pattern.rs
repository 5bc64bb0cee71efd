//! Patterns of the names of machines that are never isolated (`cognito.md` 6.3).

use std::fmt;
use std::str::FromStr;

use super::names;

/// Longest pattern, in characters: no host name is longer.
const MAX_CHARS: usize = 253;

/// A pattern of names: `*` stands for any text, `?` for one character, letter case does not count.
///
/// It fits a name when it fits the whole of it or its first label, so `dc-*` and `dc-01` both protect
/// `dc-01.corp.example.com`: who names a machine without its domain still means that machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing in it.
    #[error("must not be empty")]
    Empty,
    /// Longer than any name.
    #[error("must have at most {MAX_CHARS} characters")]
    Long,
    /// A control character can be in no name.
    #[error("must not hold control characters")]
    Control,
}

impl NamePattern {
    /// Whether it fits `name`, or the first label of `name`.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        let name = name.trim().trim_end_matches('.').to_lowercase();
        fits(&self.0, &name) || fits(&self.0, names::first_label(&name))
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.chars().count() > MAX_CHARS {
            return Err(PatternError::Long);
        }
        if text.chars().any(char::is_control) {
            return Err(PatternError::Control);
        }
        Ok(Self(text.trim_end_matches('.').to_lowercase()))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `pattern` fits the whole of `text`. On a mismatch only the last `*` takes one more character, which is enough
/// and keeps the work at length times length.
fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_fit_whole_names_or_first_labels() {
        let rows = [
            ("dc-*", "dc-01.corp.example.com", true),
            ("dc-*", "DC-01", true),
            ("DC-??", "dc-01.corp.example.com", true),
            ("dc-??", "dc-001", false),
            ("dc-01", "dc-01.corp.example.com", true),
            ("dc-01", "dc-011.corp.example.com", false),
            ("*.servers.example.com", "db.servers.example.com", true),
            ("*.servers.example.com", "servers.example.com", false),
            ("*.servers.example.com", "db.servers.example.com.evil.example", false),
            ("*", "anything", true),
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**a**", "bab", true),
            ("db.example.com.", "db.example.com", true),
            ("db.example.com", "DB.example.com.", true),
            ("*prod*", "Billing DB (prod)", true),
            ("ü*", "ÜBER-01", true),
        ];
        for (pattern, name, expected) in rows {
            let read: NamePattern = pattern.parse().unwrap();
            assert_eq!(read.fits(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_rule() {
        assert_eq!(" ".parse::<NamePattern>(), Err(PatternError::Empty));
        assert_eq!("a".repeat(254).parse::<NamePattern>(), Err(PatternError::Long));
        assert_eq!("a\u{7}".parse::<NamePattern>(), Err(PatternError::Control));
    }

    /// What the words say, without any cleverness.
    fn plainly(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| plainly(rest, &text[taken..])),
            Some(('?', rest)) => !text.is_empty() && plainly(rest, &text[1..]),
            Some((c, rest)) => text.first() == Some(c) && plainly(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_means_what_it_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(fits(&pattern, &text), plainly(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn a_name_is_its_own_pattern(name in "[a-z0-9-]{1,20}(\\.[a-z]{1,10}){0,2}") {
            prop_assert!(name.parse::<NamePattern>().unwrap().fits(&name));
        }

        #[test]
        fn no_text_is_a_panic(pattern in any::<String>(), name in any::<String>()) {
            if let Ok(pattern) = pattern.parse::<NamePattern>() {
                let _ = pattern.fits(&name);
            }
        }
    }
}
