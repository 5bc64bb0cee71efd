//! What Cognito's audit log says of hosts' tags, out of the sentence in which it says so (`cognito.md` 4.2 and 4.3).
//!
//! Nothing is decided from it: an entry tells which hosts to look at, and its tags are a hint. Pure.

/// A change of tags that an audit entry tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagChange {
    /// `[table:host][id:N] with tags [OLD] was changed to [NEW]`.
    List {
        /// The host's id as written: digits, perhaps too many for an id.
        host: String,
        /// OLD and NEW; `None` when they cannot be read.
        lists: Option<(Vec<String>, Vec<String>)>,
    },
    /// `Tag T has been added to hosts with ids [N, ...]`, or `removed from`.
    One {
        /// T.
        tag: String,
        /// Whether it was added.
        added: bool,
        /// The hosts' ids as written: digits each; at least one.
        hosts: Vec<String>,
    },
}

impl TagChange {
    /// What `message`, the text of an audit entry, says of hosts' tags; `None` when it speaks of something else.
    #[must_use]
    pub fn parse(message: &str) -> Option<Self> {
        let message = message.trim_end_matches(['\n', '\r']);
        if message.contains(['\n', '\r']) {
            return None;
        }
        Self::list(message).or_else(|| Self::one(message))
    }

    fn list(message: &str) -> Option<Self> {
        const CHANGED: &str = " was changed to ";
        let rest = message.strip_prefix("[table:host][id:")?;
        let (host, rest) = rest.split_at_checked(rest.bytes().take_while(u8::is_ascii_digit).count())?;
        let rest = rest.strip_prefix("] with tags ").filter(|rest| rest.contains(CHANGED) && !host.is_empty())?;
        let lists = python_list(rest).and_then(|(before, rest)| {
            let (after, rest) = python_list(rest.strip_prefix(CHANGED)?)?;
            rest.is_empty().then_some((before, after))
        });
        Some(Self::List { host: host.to_owned(), lists })
    }

    fn one(message: &str) -> Option<Self> {
        let (rest, ids) = message.strip_prefix("Tag ")?.strip_suffix(']')?.rsplit_once(" hosts with ids [")?;
        let (tag, added) = match rest.strip_suffix(" has been added to") {
            Some(tag) => (tag, true),
            None => (rest.strip_suffix(" has been removed from")?, false),
        };
        let hosts: Vec<String> =
            ids.split(',').map(|id| id.strip_prefix(' ').unwrap_or(id)).map(str::to_owned).collect();
        let written = hosts.iter().all(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()));
        // The first id has no space before it.
        (written && !ids.starts_with(' ') && !tag.is_empty()).then(|| Self::One { tag: tag.to_owned(), added, hosts })
    }
}

/// Reads a list of texts as Python prints one, `['VIP', "it's", u'\xe9']`: the texts, and what follows the list.
fn python_list(text: &str) -> Option<(Vec<String>, &str)> {
    let mut rest = text.strip_prefix('[')?;
    let mut items = Vec::new();
    if let Some(rest) = rest.strip_prefix(']') {
        return Some((items, rest));
    }
    loop {
        let (item, after) = python_text(rest)?;
        items.push(item);
        if let Some(after) = after.strip_prefix(']') {
            return Some((items, after));
        }
        rest = after.strip_prefix(", ").or_else(|| after.strip_prefix(','))?;
    }
}

/// Reads one quoted text, `u` before it or not: the text, and what follows its closing quote.
fn python_text(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('u').unwrap_or(text);
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let mut read = String::new();
    let mut rest = text[1..].chars();
    loop {
        match rest.next()? {
            '\\' => read.push(escaped(&mut rest)?),
            c if c == quote => return Some((read, rest.as_str())),
            c => read.push(c),
        }
    }
}

/// The character of an escape whose backslash has been read.
fn escaped(rest: &mut std::str::Chars<'_>) -> Option<char> {
    let digits = match rest.next()? {
        plain @ ('\\' | '\'' | '"') => return Some(plain),
        'n' => return Some('\n'),
        'r' => return Some('\r'),
        't' => return Some('\t'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        // Python prints no others.
        _ => return None,
    };
    let mut code = 0;
    for _ in 0..digits {
        code = (code << 4) | rest.next()?.to_digit(16)?;
    }
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(host: &str, before: &[&str], after: &[&str]) -> Option<TagChange> {
        let owned = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
        Some(TagChange::List { host: host.into(), lists: Some((owned(before), owned(after))) })
    }

    fn unread(host: &str) -> Option<TagChange> {
        Some(TagChange::List { host: host.into(), lists: None })
    }

    fn one(tag: &str, added: bool, hosts: &[&str]) -> Option<TagChange> {
        let hosts = hosts.iter().map(|id| (*id).to_owned()).collect();
        Some(TagChange::One { tag: tag.into(), added, hosts })
    }

    #[test]
    fn lists_are_read_as_python_prints_them() {
        for (message, expected) in [
            (
                "[table:host][id:4711] with tags ['VIP'] was changed to ['VIP', 'block']",
                list("4711", &["VIP"], &["VIP", "block"]),
            ),
            ("[table:host][id:1] with tags [] was changed to []\n", list("1", &[], &[])),
            (
                "[table:host][id:1] with tags [u'a', u\"b's\"] was changed to ['\\xe9\\u20ac\\U0001f600']",
                list("1", &["a", "b's"], &["é€😀"]),
            ),
            (
                r"[table:host][id:1] with tags ['a\'b', '\\', '\n\r\t'] was changed to ['ä', 'a, b', ']']",
                list("1", &["a'b", "\\", "\n\r\t"], &["ä", "a, b", "]"]),
            ),
            (
                "[table:host][id:1] with tags ['x was changed to y'] was changed to ['z']",
                list("1", &["x was changed to y"], &["z"]),
            ),
            ("[table:host][id:1] with tags ['a','b'] was changed to ['a']", list("1", &["a", "b"], &["a"])),
        ] {
            assert_eq!(TagChange::parse(message), expected, "{message}");
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_still_names_its_host() {
        for message in [
            "[table:host][id:7] with tags None was changed to ['block']",
            "[table:host][id:7] with tags ['a'] was changed to ['block'",
            "[table:host][id:7] with tags ['a'] was changed to ['block'] and more",
            "[table:host][id:7] with tags ['a' was changed to ['block']",
            "[table:host][id:7] with tags [1] was changed to [2]",
            r"[table:host][id:7] with tags ['\q'] was changed to []",
            r"[table:host][id:7] with tags ['\ud800'] was changed to []",
            "[table:host][id:7] with tags  was changed to ",
        ] {
            assert_eq!(TagChange::parse(message), unread("7"), "{message}");
        }
    }

    #[test]
    fn one_tag_is_put_on_many_hosts_or_taken_from_them() {
        for (message, expected) in [
            ("Tag block has been added to hosts with ids [4711, 4712]", one("block", true, &["4711", "4712"])),
            ("Tag a b has been removed from hosts with ids [1,2, 3]", one("a b", false, &["1", "2", "3"])),
            (
                "Tag x has been added to hosts with ids [1] has been removed from hosts with ids [2]",
                one("x has been added to hosts with ids [1]", false, &["2"]),
            ),
        ] {
            assert_eq!(TagChange::parse(message), expected, "{message}");
        }
    }

    #[test]
    fn everything_else_is_none_of_it() {
        for message in [
            "",
            "log in",
            "[table:linked_account][id:4711] with tags ['VIP'] was changed to ['VIP', 'block']",
            "[table:host][id:] with tags ['VIP'] was changed to []",
            "[table:host][id:-1] with tags ['VIP'] was changed to []",
            "[table:host][id:4711] with tags ['VIP']",
            " [table:host][id:4711] with tags [] was changed to []",
            "[table:host][id:4711] with tags ['a']\n was changed to []",
            "Tag block has been added to detections with ids [1]",
            "Tag block has been added to hosts with ids []",
            "Tag block has been added to hosts with ids [ 1]",
            "Tag block has been added to hosts with ids [1,  2]",
            "Tag block has been added to hosts with ids [1, x]",
            "Tag block has been added to hosts with ids [1].",
            "Tag  has been added to hosts with ids [1]",
            "Tag block has been moved to hosts with ids [1]",
        ] {
            assert_eq!(TagChange::parse(message), None, "{message}");
        }
    }

    /// As Python's `repr` writes a text.
    fn repr(text: &str) -> String {
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        let mut written = String::from(quote);
        for c in text.chars() {
            match c {
                '\\' => written.push_str("\\\\"),
                '\n' => written.push_str("\\n"),
                '\r' => written.push_str("\\r"),
                '\t' => written.push_str("\\t"),
                c if c == quote => written.extend(['\\', c]),
                c if c.is_control() && u32::from(c) < 0x100 => written.push_str(&format!("\\x{:02x}", u32::from(c))),
                // Which characters Python holds to be printable changes from version to version; both forms are read.
                c if u32::from(c) > 0xffff => written.push_str(&format!("\\U{:08x}", u32::from(c))),
                c if u32::from(c) % 2 == 1 && u32::from(c) > 0xff => {
                    written.push_str(&format!("\\u{:04x}", u32::from(c)))
                }
                c => written.push(c),
            }
        }
        written.push(quote);
        written
    }

    fn repr_of_list(tags: &[String]) -> String {
        format!("[{}]", tags.iter().map(|tag| repr(tag)).collect::<Vec<_>>().join(", "))
    }

    proptest! {
        #[test]
        fn lists_return_as_they_were(
            before in prop::collection::vec(any::<String>(), 0..5),
            after in prop::collection::vec(any::<String>(), 0..5),
            host in 1_u64..,
        ) {
            let message =
                format!("[table:host][id:{host}] with tags {} was changed to {}", repr_of_list(&before), repr_of_list(&after));
            let read = TagChange::parse(&message);
            prop_assert_eq!(read, Some(TagChange::List { host: host.to_string(), lists: Some((before, after)) }));
        }

        #[test]
        fn nothing_panics(message in any::<String>(), inside in "(\\[|\\]|'|\"|\\\\|u|U|x|0|d|8|,| |a|é){0,40}") {
            let _ = TagChange::parse(&message);
            let _ = TagChange::parse(&format!("[table:host][id:1] with tags {inside} was changed to {inside}"));
            let _ = TagChange::parse(&format!("Tag {inside} has been added to hosts with ids [{inside}]"));
        }
    }
}
