//! Cognito escapes the text of notes as for HTML (`cognito.md` 3.3); here it is read back.

/// `text` with the five entities of XML and numeric references resolved, once. What is none of them stays as it is.
pub(super) fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        match reference(rest) {
            Some((character, length)) => {
                plain.push(character);
                rest = &rest[length..];
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// The longest reference is `&#x10FFFF;`; leading zeros are allowed for, up to this many bytes in all.
const LONGEST_REFERENCE_BYTES: usize = 16;

/// The character that `text`, which begins with `&`, refers to, and the length of the reference in bytes.
fn reference(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(LONGEST_REFERENCE_BYTES).position(|byte| byte == b';')?;
    let character = match &text[1..end] {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        name => {
            let number = name.strip_prefix('#')?;
            let (digits, radix) = match number.strip_prefix(['x', 'X']) {
                Some(digits) => (digits, 16),
                None => (number, 10),
            };
            if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            char::from_u32(u32::from_str_radix(digits, radix).ok()?).filter(|character| *character != '\0')?
        }
    };
    Some((character, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", "")]
    #[case("nothing to do", "nothing to do")]
    #[case("machine &quot;fin-lt-0042&quot; &amp; 2 alerts", "machine \"fin-lt-0042\" & 2 alerts")]
    #[case("&lt;b&gt; &apos;x&apos; &#39;y&#39; &#x27;z&#X27;", "<b> 'x' 'y' 'z'")]
    #[case::once_only("&amp;lt;", "&lt;")]
    #[case::numbers("&#228;&#xe4;&#x1F600;&#0065;", "ää😀A")]
    #[case::not_characters("&#0;&#xD800;&#x110000;&#99999999999;", "&#0;&#xD800;&#x110000;&#99999999999;")]
    #[case::not_numbers("&#;&#x;&#12a;&#+5;&#x-1;", "&#;&#x;&#12a;&#+5;&#x-1;")]
    #[case::unknown_names("&nbsp;&AMP;&;& amp;", "&nbsp;&AMP;&;& amp;")]
    #[case::open("a & b &", "a & b &")]
    #[case::open_at_the_end("x &amp", "x &amp")]
    #[case::wide_characters("ä&ö&amp;ü", "ä&ö&ü")]
    #[case::late_semicolon("&aaaaaaaaaaaaaaaaaaaaaaaa;", "&aaaaaaaaaaaaaaaaaaaaaaaa;")]
    fn entities_are_resolved_once(#[case] text: &str, #[case] plain: &str) {
        assert_eq!(unescape(text), plain);
    }

    proptest! {
        #[test]
        fn what_was_escaped_returns_as_it_was(text in ".{0,100}") {
            let escaped = text
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&quot;")
                .replace('\'', "&#x27;");
            prop_assert_eq!(unescape(&escaped), text);
        }

        #[test]
        fn no_text_breaks_it(text in "[&#;xX0-9a-f äö😀]{0,40}") {
            prop_assert!(unescape(&text).len() <= text.len());
        }
    }
}
