//! The part of OData that Defender's lists take: `$filter`, `$top`, `$skip`, `$expand` (`defender.md` 5.0).
//!
//! Strict: an option, property, operator or literal that the service does not document is refused, because a query
//! that the real service refuses must not pass a test here.

use jiff::Timestamp;
use serde_json::Value;

/// The most entries `$top` may ask for.
const TOP_LIMIT: u64 = 10_000;

/// How deep a filter may nest; deeper ones are nonsense or an attack on the parser.
const DEPTH_LIMIT: usize = 32;

/// What can be filtered: name and kind of each property.
pub(super) type Properties = &'static [(&'static str, Kind)];

/// The kind of a property, and so of the literals it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Quoted text.
    Text,
    /// An unquoted time.
    Time,
    /// An unquoted number.
    Number,
}

/// The options of one request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub(super) filter: Option<Filter>,
    pub(super) top: Option<usize>,
    pub(super) skip: usize,
    pub(super) expand_evidence: bool,
}

impl Options {
    /// Reads the query's members.
    ///
    /// # Errors
    /// What is wrong, for the message of `ODataError`.
    pub(super) fn read(query: &[(String, String)], properties: Properties, expand: bool) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in query {
            match name.as_str() {
                "$top" => {
                    let top = number(name, value)?;
                    if top > TOP_LIMIT {
                        return Err(format!("The limit of '{TOP_LIMIT}' for Top query has been exceeded."));
                    }
                    options.top = Some(top as usize);
                }
                "$skip" => options.skip = number(name, value)? as usize,
                "$filter" => options.filter = Some(Filter::parse(value, properties)?),
                "$expand" if expand && value == "evidence" => options.expand_evidence = true,
                other => return Err(format!("The query option '{other}={value}' is not supported.")),
            }
        }
        Ok(options)
    }
}

fn number(name: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("Invalid value '{value}' for {name} query option."))
}

/// A filter that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    Compare { property: &'static str, operator: Operator, literal: Literal },
    In { property: &'static str, literals: Vec<Literal> },
    Matches { function: Function, property: &'static str, text: String },
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

/// A text function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    StartsWith,
    EndsWith,
    Contains,
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Literal {
    Text(String),
    Time(Timestamp),
    Number(f64),
    Null,
}

impl Filter {
    /// Reads the decoded text of `$filter`.
    ///
    /// # Errors
    /// What is wrong, for the message of `ODataError`.
    pub(super) fn parse(text: &str, properties: Properties) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0, properties };
        let filter = parser.either()?;
        match parser.next() {
            None => Ok(filter),
            Some(token) => Err(format!("Syntax error near '{token}' in the filter.")),
        }
    }

    /// Whether `entry` passes. A property that is null passes only comparisons with null and `ne`.
    pub(super) fn passes(&self, entry: &Value) -> bool {
        match self {
            Self::And(a, b) => a.passes(entry) && b.passes(entry),
            Self::Or(a, b) => a.passes(entry) || b.passes(entry),
            Self::Not(inner) => !inner.passes(entry),
            Self::Compare { property, operator, literal } => compare(&entry[*property], *operator, literal),
            Self::In { property, literals } => {
                literals.iter().any(|literal| compare(&entry[*property], Operator::Eq, literal))
            }
            Self::Matches { function, property, text } => {
                entry[*property].as_str().is_some_and(|value| match function {
                    Function::StartsWith => value.starts_with(text.as_str()),
                    Function::EndsWith => value.ends_with(text.as_str()),
                    Function::Contains => value.contains(text.as_str()),
                })
            }
        }
    }
}

/// What an index is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup<'a> {
    /// Entries whose property is this text.
    Is(&'a str),
    /// Entries whose property begins with this text.
    StartsWith(&'a str),
}

/// The places of the entries that a lookup finds, in order, and maybe of some that it should not; `None`: no index tells.
pub(super) type Index<'a> = &'a dyn Fn(&str, Lookup<'_>) -> Option<Vec<usize>>;

impl Filter {
    /// The places of the entries that can pass, in order; `None`: any can. A list need only look at these.
    pub(super) fn candidates(&self, index: Index<'_>) -> Option<Vec<usize>> {
        let union = |parts: Vec<Vec<usize>>| {
            let mut all = parts.concat();
            all.sort_unstable();
            all.dedup();
            all
        };
        match self {
            Self::And(a, b) => match (a.candidates(index), b.candidates(index)) {
                (Some(a), Some(b)) => Some(if a.len() <= b.len() { a } else { b }),
                (a, b) => a.or(b),
            },
            Self::Or(a, b) => Some(union(vec![a.candidates(index)?, b.candidates(index)?])),
            Self::Compare { property, operator: Operator::Eq, literal: Literal::Text(text) } => {
                index(property, Lookup::Is(text))
            }
            Self::In { property, literals } => {
                let texts = literals.iter().map(|literal| match literal {
                    Literal::Text(text) => index(property, Lookup::Is(text)),
                    _ => None,
                });
                texts.collect::<Option<Vec<_>>>().map(union)
            }
            Self::Matches { function: Function::StartsWith, property, text } => {
                index(property, Lookup::StartsWith(text))
            }
            Self::Compare { .. } | Self::Matches { .. } | Self::Not(_) => None,
        }
    }

    /// Whether there is an `in` in it.
    pub(super) fn has_in(&self) -> bool {
        match self {
            Self::And(a, b) | Self::Or(a, b) => a.has_in() || b.has_in(),
            Self::Not(inner) => inner.has_in(),
            Self::In { .. } => true,
            Self::Compare { .. } | Self::Matches { .. } => false,
        }
    }
}

fn compare(value: &Value, operator: Operator, literal: &Literal) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (value, literal) {
        (Value::Null, Literal::Null) => Some(Equal),
        (Value::String(value), Literal::Text(literal)) => Some(value.as_str().cmp(literal)),
        (Value::String(value), Literal::Time(literal)) => value.parse::<Timestamp>().ok().map(|time| time.cmp(literal)),
        (Value::Number(value), Literal::Number(literal)) => value.as_f64().and_then(|value| value.partial_cmp(literal)),
        (Value::Bool(value), Literal::Text(literal)) => (value.to_string() == *literal).then_some(Equal),
        _ => None,
    };
    match operator {
        Operator::Eq => order == Some(Equal),
        Operator::Ne => order != Some(Equal),
        Operator::Gt => order == Some(Greater),
        Operator::Ge => matches!(order, Some(Greater | Equal)),
        Operator::Lt => order == Some(Less),
        Operator::Le => matches!(order, Some(Less | Equal)),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Text(text) => write!(f, "'{text}'"),
            Self::Open => f.write_str("("),
            Self::Close => f.write_str(")"),
            Self::Comma => f.write_str(","),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            ' ' => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            ',' => tokens.push(Token::Comma),
            '\'' => {
                let mut literal = String::new();
                loop {
                    match rest.next() {
                        None => return Err(format!("There is an unterminated string literal in '{text}'.")),
                        Some('\'') if rest.peek() == Some(&'\'') => {
                            rest.next();
                            literal.push('\'');
                        }
                        Some('\'') => break,
                        Some(other) => literal.push(other),
                    }
                }
                tokens.push(Token::Text(literal));
            }
            first if first.is_ascii_alphanumeric() || matches!(first, '-' | '+' | '_') => {
                let mut word = String::from(first);
                while let Some(&more) = rest.peek() {
                    if !(more.is_ascii_alphanumeric() || matches!(more, '-' | '+' | '_' | ':' | '.')) {
                        break;
                    }
                    word.push(more);
                    rest.next();
                }
                tokens.push(Token::Word(word));
            }
            other => return Err(format!("Syntax error: character '{other}' is not valid in '{text}'.")),
        }
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    properties: Properties,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn takes(&mut self, wanted: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(wanted);
        if found {
            self.at += 1;
        }
        found
    }

    fn takes_word(&mut self, wanted: &str) -> bool {
        self.takes(&Token::Word(wanted.to_owned()))
    }

    fn needs(&mut self, wanted: &Token) -> Result<(), String> {
        if self.takes(wanted) { Ok(()) } else { Err(format!("Syntax error: '{wanted}' expected in the filter.")) }
    }

    fn either(&mut self) -> Result<Filter, String> {
        let mut left = self.both()?;
        while self.takes_word("or") {
            left = Filter::Or(Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Filter, String> {
        let mut left = self.one()?;
        while self.takes_word("and") {
            left = Filter::And(Box::new(left), Box::new(self.one()?));
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            return Err("The filter is nested too deeply.".to_owned());
        }
        let filter = self.unnested();
        self.depth -= 1;
        filter
    }

    fn unnested(&mut self) -> Result<Filter, String> {
        match self.next() {
            Some(Token::Open) => {
                let inner = self.either()?;
                self.needs(&Token::Close)?;
                Ok(inner)
            }
            Some(Token::Word(word)) if word == "not" => Ok(Filter::Not(Box::new(self.one()?))),
            Some(Token::Word(word)) => match function(&word) {
                Some(function) if self.takes(&Token::Open) => self.call(function),
                _ => self.comparison(&word),
            },
            Some(token) => Err(format!("Syntax error near '{token}' in the filter.")),
            None => Err("Expression expected in the filter.".to_owned()),
        }
    }

    fn call(&mut self, function: Function) -> Result<Filter, String> {
        let Some(Token::Word(name)) = self.next() else {
            return Err("A property is expected as first argument.".to_owned());
        };
        let (property, kind) = self.property(&name)?;
        self.needs(&Token::Comma)?;
        let Some(Token::Text(text)) = self.next() else {
            return Err("A string literal is expected as second argument.".to_owned());
        };
        self.needs(&Token::Close)?;
        if kind != Kind::Text {
            return Err(format!("The property '{name}' is no text."));
        }
        Ok(Filter::Matches { function, property, text })
    }

    fn comparison(&mut self, name: &str) -> Result<Filter, String> {
        let (property, kind) = self.property(name)?;
        let Some(Token::Word(operator)) = self.next() else {
            return Err(format!("An operator is expected after '{name}'."));
        };
        let operator = match operator.as_str() {
            "eq" => Operator::Eq,
            "ne" => Operator::Ne,
            "gt" => Operator::Gt,
            "ge" => Operator::Ge,
            "lt" => Operator::Lt,
            "le" => Operator::Le,
            "in" => {
                self.needs(&Token::Open)?;
                let mut literals = vec![self.literal(kind)?];
                while self.takes(&Token::Comma) {
                    literals.push(self.literal(kind)?);
                }
                self.needs(&Token::Close)?;
                return Ok(Filter::In { property, literals });
            }
            other => return Err(format!("Syntax error: '{other}' is no operator.")),
        };
        Ok(Filter::Compare { property, operator, literal: self.literal(kind)? })
    }

    fn literal(&mut self, kind: Kind) -> Result<Literal, String> {
        let token = self.next().ok_or("A literal is expected at the end of the filter.")?;
        match (&token, kind) {
            (Token::Word(word), _) if word == "null" => Ok(Literal::Null),
            (Token::Text(text), Kind::Text) => Ok(Literal::Text(text.clone())),
            (Token::Word(word), Kind::Text) if matches!(word.as_str(), "true" | "false") => {
                Ok(Literal::Text(word.clone()))
            }
            (Token::Word(word), Kind::Time) => {
                word.parse().map(Literal::Time).map_err(|_| format!("'{word}' is no valid time."))
            }
            (Token::Word(word), Kind::Number) => {
                word.parse().map(Literal::Number).map_err(|_| format!("'{word}' is no valid number."))
            }
            _ => Err(format!("A literal of another type than {token} is expected.")),
        }
    }

    fn property(&self, name: &str) -> Result<(&'static str, Kind), String> {
        self.properties
            .iter()
            .find(|(known, _)| *known == name)
            .copied()
            .ok_or_else(|| format!("Could not find a filterable property named '{name}'."))
    }
}

fn function(word: &str) -> Option<Function> {
    Some(match word {
        "startswith" => Function::StartsWith,
        "endswith" => Function::EndsWith,
        "contains" => Function::Contains,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MACHINE: Properties =
        &[("name", Kind::Text), ("seen", Kind::Time), ("group", Kind::Number), ("risk", Kind::Text)];

    #[test]
    fn candidates_are_narrowed_by_indexes_and_lose_nobody() {
        // Places by name; the other properties have no index.
        let places = |text: &str| match text {
            "a" => vec![0, 3],
            "b" => vec![1],
            _ => vec![],
        };
        let index = |property: &str, lookup: Lookup<'_>| match (property, lookup) {
            ("name", Lookup::Is(text)) => Some(places(text)),
            ("name", Lookup::StartsWith(_)) => Some(vec![0, 1, 3]),
            _ => None,
        };
        for (filter, expected) in [
            ("name eq 'a'", Some(vec![0, 3])),
            ("name eq 'x'", Some(vec![])),
            ("name ne 'a'", None),
            ("name eq 'b' or name eq 'a'", Some(vec![0, 1, 3])),
            ("name eq 'a' or risk eq 'High'", None),
            ("name eq 'a' and risk eq 'High'", Some(vec![0, 3])),
            ("startswith(name,'a') and name eq 'b'", Some(vec![1])),
            ("name in ('a','b')", Some(vec![0, 1, 3])),
            ("endswith(name,'a')", None),
            ("not (name eq 'a')", None),
            ("risk eq 'a'", None),
        ] {
            assert_eq!(Filter::parse(filter, MACHINE).unwrap().candidates(&index), expected, "{filter}");
        }
        assert!(Filter::parse("not (risk eq 'a' and name in ('a'))", MACHINE).unwrap().has_in());
        assert!(!Filter::parse("risk eq 'in' or name eq 'a'", MACHINE).unwrap().has_in());
    }

    #[test]
    fn filters_pass_what_they_say() {
        let entry = json!({"name": "ws-17's", "seen": "2026-11-20T09:00:00.1234567Z", "group": 140, "risk": null});
        for (filter, passes) in [
            ("name eq 'ws-17''s'", true),
            ("name ne 'ws-17''s'", false),
            ("startswith(name,'ws-')", true),
            ("endswith(name,'x') or contains(name,'17')", true),
            ("seen gt 2026-11-20T09:00:00Z", true),
            ("seen lt 2026-11-20T09:00:00Z", false),
            ("group ge 140 and group le 140", true),
            ("name in ('a','ws-17''s')", true),
            ("not (name eq 'a') and risk eq null", true),
            ("risk eq 'High'", false),
            ("name eq 'a' or name eq 'b' and group eq 140", false),
        ] {
            assert_eq!(Filter::parse(filter, MACHINE).unwrap().passes(&entry), passes, "{filter}");
        }
    }

    #[test]
    fn what_is_not_documented_is_refused() {
        for filter in [
            "",
            "name",
            "name eq",
            "name eq ws",
            "name = 'a'",
            "nope eq 'a'",
            "Name eq 'a'",
            "seen gt 'yesterday'",
            "seen gt yesterday",
            "name eq 'a",
            "name eq 'a' extra",
            "(name eq 'a'",
            "name EQ 'a'",
            "group eq '140'",
            "startswith(name)",
            "startswith(group,'1')",
            "name eq 'a'; drop",
            "name in ()",
        ] {
            assert!(Filter::parse(filter, MACHINE).is_err(), "{filter}");
        }
        assert!(Filter::parse(&"(".repeat(10_000), MACHINE).is_err());
        assert!(Filter::parse(&format!("{}name eq 'a'", "not ".repeat(10_000)), MACHINE).is_err());
    }

    #[test]
    fn options_are_read_or_refused() {
        let read = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            Options::read(&pairs, MACHINE, true)
        };
        assert_eq!(
            read(&[("$top", "5"), ("$skip", "2")]).unwrap(),
            Options { top: Some(5), skip: 2, ..Options::default() }
        );
        assert!(read(&[("$expand", "evidence")]).unwrap().expand_evidence);
        for wrong in
            [("$top", "10001"), ("$top", "-1"), ("$top", "x"), ("$skip", ""), ("$select", "a"), ("$expand", "x")]
        {
            assert!(read(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_quoted_text_is_found_again(text in "\\PC{0,40}") {
            let filter = format!("name eq '{}'", text.replace('\'', "''"));
            let entry = json!({"name": text});
            prop_assert!(Filter::parse(&filter, MACHINE).unwrap().passes(&entry), "{}", filter);
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,60}") {
            let _ = Filter::parse(&text, MACHINE);
        }
    }
}
