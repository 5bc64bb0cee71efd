//! Text to tokens.
//!
//! Literals are decoded here, so that a string means the same in a comparison and inside `dynamic(...)`. Raw line breaks
//! of any kind end an ordinary string with an error, as in the service: whoever renders a query must escape them.

use jiff::Timestamp;

use super::KqlError;
use super::value::{TICKS_PER_DAY, TICKS_PER_SECOND, parse_datetime};

/// Longest string literal, in bytes (contract 6.2: about 1 MB).
const MAX_LITERAL_BYTES: usize = 1 << 20;

/// How much of an offending token an error repeats, in characters.
const MAX_QUOTED_CHARS: usize = 40;

/// Longest first, so that the first that fits is the right one.
const SYMBOLS: [&str; 25] = [
    "==", "=~", "!=", "!~", "<=", ">=", "..", "<", ">", "=", "|", "(", ")", "[", "]", "{", "}", ",", ";", ":", ".",
    "+", "-", "*", "/",
];

/// Operators that are a word behind an exclamation mark.
const NEGATED: [&str; 10] = [
    "!in",
    "!has",
    "!contains",
    "!startswith",
    "!endswith",
    "!has_cs",
    "!contains_cs",
    "!startswith_cs",
    "!endswith_cs",
    "!between",
];

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A name or keyword.
    Word(String),
    /// A string literal, decoded.
    Text(String),
    Long(i64),
    Real(f64),
    /// A span such as `30d`, in ticks.
    Span(i64),
    /// `datetime(...)`; `None` for `datetime(null)`.
    Moment(Option<Timestamp>),
    /// Punctuation, or an operator that is no plain word.
    Symbol(&'static str),
    End,
}

/// A token and where it stands, as byte offsets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A syntax error at byte `at`, worded like the service's.
pub(super) fn syntax_error(query: &str, at: usize, end: usize) -> KqlError {
    let before = query.get(..at).unwrap_or(query);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    let found: String = query.get(at..end).unwrap_or("").chars().take(MAX_QUOTED_CHARS).collect();
    let found = if found.is_empty() { "<end>".to_owned() } else { found };
    KqlError::Syntax(format!(
        "A recognition error occurred. Token: {found}. Line: {line}, Position: {column}. Fix syntax errors in your query."
    ))
}

/// Splits `query` into tokens; the last is always [`Token::End`].
pub(super) fn lex(query: &str) -> Result<Vec<Lexeme>, KqlError> {
    let mut lexer = Lexer { query, at: 0 };
    let mut lexemes = Vec::new();
    loop {
        lexer.skip_blanks();
        let start = lexer.at;
        let token = lexer.token().map_err(|failure| match failure {
            Failure::Syntax => syntax_error(query, start, lexer.at.max(start + 1)),
            Failure::Other(error) => error,
        })?;
        let last = token == Token::End;
        lexemes.push(Lexeme { token, start, end: lexer.at });
        if last {
            return Ok(lexemes);
        }
    }
}

enum Failure {
    Syntax,
    Other(KqlError),
}

struct Lexer<'a> {
    query: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.query[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let found = self.peek()?;
        self.at += found.len_utf8();
        Some(found)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn skip_blanks(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn token(&mut self) -> Result<Token, Failure> {
        let Some(first) = self.peek() else { return Ok(Token::End) };
        match first {
            'a'..='z' | 'A'..='Z' | '_' => self.word(),
            '0'..='9' => self.number(),
            '"' | '\'' => {
                self.at += 1;
                self.text(first)
            }
            '@' if self.rest()[1..].starts_with(['"', '\'']) => self.verbatim(),
            '`' => Err(Failure::Other(KqlError::Unsupported("literals in back-ticks".into()))),
            '!' if self.rest()[1..].starts_with(|c: char| c.is_ascii_alphabetic()) => self.negated(),
            _ => match SYMBOLS.into_iter().find(|symbol| self.take(symbol)) {
                Some(symbol) => Ok(Token::Symbol(symbol)),
                None => Err(Failure::Syntax),
            },
        }
    }

    fn identifier(&mut self) -> &'a str {
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn word(&mut self) -> Result<Token, Failure> {
        let word = self.identifier();
        match word {
            "in" if self.take("~") => Ok(Token::Symbol("in~")),
            "datetime" if self.rest().trim_start_matches([' ', '\t']).starts_with('(') => {
                self.take_while(|c| c != '(');
                self.at += 1;
                let text = self.take_while(|c| c != ')').trim();
                if !self.take(")") {
                    return Err(Failure::Syntax);
                }
                match (text, parse_datetime(text)) {
                    ("null", _) => Ok(Token::Moment(None)),
                    (_, Some(moment)) => Ok(Token::Moment(Some(moment))),
                    (_, None) => Err(Failure::Syntax),
                }
            }
            _ => Ok(Token::Word(word.into())),
        }
    }

    fn negated(&mut self) -> Result<Token, Failure> {
        let start = self.at;
        self.at += 1;
        self.identifier();
        let word = &self.query[start..self.at];
        if word == "!in" && self.take("~") {
            return Ok(Token::Symbol("!in~"));
        }
        NEGATED.into_iter().find(|symbol| *symbol == word).map(Token::Symbol).ok_or(Failure::Syntax)
    }

    fn number(&mut self) -> Result<Token, Failure> {
        let start = self.at;
        self.take_while(|c| c.is_ascii_digit());
        let mut whole = true;
        let after_point = self.rest().strip_prefix('.');
        if after_point.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
            whole = false;
        }
        let exponent = self.rest().strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
        if exponent.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            self.at += 1;
            self.take_while(|c| matches!(c, '+' | '-'));
            self.take_while(|c| c.is_ascii_digit());
            whole = false;
        }
        let digits = &self.query[start..self.at];
        let ticks_per_unit = match self.identifier() {
            "" if whole => return digits.parse().map(Token::Long).map_err(|_| Failure::Syntax),
            "" => return digits.parse().map(Token::Real).map_err(|_| Failure::Syntax),
            "d" => TICKS_PER_DAY,
            "h" => 3600 * TICKS_PER_SECOND,
            "m" => 60 * TICKS_PER_SECOND,
            "s" => TICKS_PER_SECOND,
            "ms" => TICKS_PER_SECOND / 1000,
            _ => return Err(Failure::Syntax),
        };
        if whole {
            let count: i64 = digits.parse().map_err(|_| Failure::Syntax)?;
            return count.checked_mul(ticks_per_unit).map(Token::Span).ok_or(Failure::Syntax);
        }
        let count: f64 = digits.parse().map_err(|_| Failure::Syntax)?;
        // A tick more or less is all that the detour over a real can cost; past the range the cast saturates.
        Ok(Token::Span((count * ticks_per_unit as f64).round() as i64))
    }

    /// The rest of an ordinary string, behind its opening quote.
    fn text(&mut self, quote: char) -> Result<Token, Failure> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some(end) if end == quote => return bounded(text),
                Some('\\') => text.push(self.escape()?),
                Some(c) if !is_line_break(c) => text.push(c),
                _ => return Err(Failure::Syntax),
            }
        }
    }

    fn verbatim(&mut self) -> Result<Token, Failure> {
        self.at += 1;
        let quote = self.next().ok_or(Failure::Syntax)?;
        let mut text = String::new();
        loop {
            match self.next() {
                Some(end) if end == quote => {
                    if self.peek() != Some(quote) {
                        return bounded(text);
                    }
                    self.at += 1;
                    text.push(quote);
                }
                Some(c) if !is_line_break(c) => text.push(c),
                _ => return Err(Failure::Syntax),
            }
        }
    }

    /// The character behind a backslash.
    fn escape(&mut self) -> Result<char, Failure> {
        Ok(match self.next().ok_or(Failure::Syntax)? {
            same @ ('\\' | '"' | '\'') => same,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => '\0',
            'x' => char::from_u32(self.hex(2)?).ok_or(Failure::Syntax)?,
            'u' => {
                let high = self.hex(4)?;
                if !(0xD800..0xDC00).contains(&high) {
                    return char::from_u32(high).ok_or(Failure::Syntax);
                }
                let low = if self.take("\\u") { self.hex(4)? } else { 0 };
                if !(0xDC00..0xE000).contains(&low) {
                    return Err(Failure::Syntax);
                }
                char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)).ok_or(Failure::Syntax)?
            }
            _ => return Err(Failure::Syntax),
        })
    }

    fn hex(&mut self, digits: usize) -> Result<u32, Failure> {
        let digits = self.rest().get(..digits).ok_or(Failure::Syntax)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::Syntax);
        }
        self.at += digits.len();
        u32::from_str_radix(digits, 16).map_err(|_| Failure::Syntax)
    }
}

fn bounded(text: String) -> Result<Token, Failure> {
    if text.len() > MAX_LITERAL_BYTES {
        return Err(Failure::Other(KqlError::Limit("A string literal exceeds the allowed size.".into())));
    }
    Ok(Token::Text(text))
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(query: &str) -> Vec<Token> {
        let mut tokens: Vec<Token> = lex(query).unwrap().into_iter().map(|lexeme| lexeme.token).collect();
        assert_eq!(tokens.pop(), Some(Token::End));
        tokens
    }

    #[test]
    fn every_kind_of_token_is_read() {
        let moment = parse_datetime("2026-11-20").unwrap();
        for (query, expected) in [
            ("a_1 // note", vec![Token::Word("a_1".into())]),
            (r#""a\\\"\n\u2028\uD83D\uDE00\x41""#, vec![Token::Text("a\\\"\n\u{2028}\u{1F600}A".into())]),
            (r#"'a"b'"#, vec![Token::Text("a\"b".into())]),
            (r#"@"C:\x""y""#, vec![Token::Text("C:\\x\"y".into())]),
            ("12 1.5 1e3", vec![Token::Long(12), Token::Real(1.5), Token::Real(1000.0)]),
            (
                "30d 1.5h 2ms",
                vec![Token::Span(30 * TICKS_PER_DAY), Token::Span(5400 * TICKS_PER_SECOND), Token::Span(20_000)],
            ),
            ("1 .. 2", vec![Token::Long(1), Token::Symbol(".."), Token::Long(2)]),
            ("1..2", vec![Token::Long(1), Token::Symbol(".."), Token::Long(2)]),
            (
                "in in~ !in !in~ !~ !=",
                vec![
                    Token::Word("in".into()),
                    Token::Symbol("in~"),
                    Token::Symbol("!in"),
                    Token::Symbol("!in~"),
                    Token::Symbol("!~"),
                    Token::Symbol("!="),
                ],
            ),
            ("datetime(2026-11-20)", vec![Token::Moment(Some(moment))]),
            ("datetime (null)", vec![Token::Moment(None)]),
            (
                "typeof(datetime)",
                vec![
                    Token::Word("typeof".into()),
                    Token::Symbol("("),
                    Token::Word("datetime".into()),
                    Token::Symbol(")"),
                ],
            ),
        ] {
            assert_eq!(tokens(query), expected, "{query}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_with_its_place() {
        for query in [
            "\"open",
            "\"a\nb\"",
            "\"a\u{2028}b\"",
            r#""\q""#,
            r#""\uD83D""#,
            r#""\u12"#,
            "1x",
            "#",
            "é",
            "!foo",
            "@x",
            "datetime(x)",
            "datetime(",
            "99999999999999999999",
            "999999999999999d",
            "'a\r'",
        ] {
            assert!(matches!(lex(query), Err(KqlError::Syntax(_))), "{query}");
        }
        let error = lex("a\n| where é").unwrap_err().to_string();
        assert!(error.contains("Line: 2, Position: 9"), "{error}");
    }

    /// Contract 6.6, rule 2, written here on its own.
    fn escaped(text: &str) -> String {
        let mut literal = String::from("\"");
        for c in text.chars() {
            match c {
                '\\' => literal.push_str("\\\\"),
                '"' => literal.push_str("\\\""),
                '\n' => literal.push_str("\\n"),
                '\r' => literal.push_str("\\r"),
                '\t' => literal.push_str("\\t"),
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                    literal.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c => literal.push(c),
            }
        }
        literal + "\""
    }

    proptest! {
        #[test]
        fn any_escaped_string_reads_back_equal(text in any::<String>()) {
            prop_assert_eq!(tokens(&escaped(&text)), vec![Token::Text(text)]);
        }

        #[test]
        fn arbitrary_text_is_read_or_refused_but_never_breaks(text in any::<String>()) {
            let _ = lex(&text);
        }
    }
}
