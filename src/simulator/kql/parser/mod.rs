//! Tokens to syntax tree: `let` statements, then one tabular expression.
//!
//! Recursive descent with a bound on depth, so that hostile nesting ends in an error instead of the stack's end.

mod scalar;
mod steps;

use super::KqlError;
use super::ast::{Item, Let, LetValue, Pipeline, Query, Source};
use super::lexer::{Lexeme, Token, lex, syntax_error};
use super::value::Type;

/// How deep expressions and pipelines may nest, together. Far above any hunting query; low enough for a thread with a
/// stack of 2 MB in a debug build.
const MAX_DEPTH: usize = 32;

/// Operators in a row and `let` statements, each. Bounds the depth of the plan.
const MAX_STEPS: usize = 200;

/// Operators that the service has and the interpreter has not.
const UNSUPPORTED_OPERATORS: [&str; 30] = [
    "as",
    "consume",
    "evaluate",
    "externaldata",
    "facet",
    "filter",
    "find",
    "fork",
    "getschema",
    "graph-match",
    "invoke",
    "lookup",
    "make-graph",
    "make-series",
    "mv-apply",
    "parse",
    "parse-kv",
    "parse-where",
    "project-keep",
    "project-reorder",
    "range",
    "reduce",
    "render",
    "sample",
    "sample-distinct",
    "scan",
    "search",
    "serialize",
    "top-hitters",
    "top-nested",
];

/// Reads a query.
pub(super) fn parse(query: &str) -> Result<Query, KqlError> {
    let mut parser = Parser { query, lexemes: lex(query)?, at: 0, depth: 0 };
    let mut lets = Vec::new();
    while parser.take_word("let") {
        lets.push(parser.let_statement()?);
        parser.bounded(lets.len(), "let statements")?;
    }
    let body = parser.pipeline()?;
    parser.take(";");
    if *parser.token() != Token::End {
        return Err(parser.unexpected());
    }
    Ok(Query { lets, body })
}

struct Parser<'a> {
    query: &'a str,
    lexemes: Vec<Lexeme>,
    at: usize,
    depth: usize,
}

type Parsed<T> = Result<T, KqlError>;

impl Parser<'_> {
    fn token(&self) -> &Token {
        &self.lexemes[self.at].token
    }

    /// Moves on; stays at the end token, which is always the last.
    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.lexemes.len() - 1);
    }

    fn unexpected(&self) -> KqlError {
        let lexeme = &self.lexemes[self.at];
        syntax_error(self.query, lexeme.start, lexeme.end)
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.token(), Token::Symbol(found) if *found == symbol)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.token(), Token::Word(found) if found == word)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        if found {
            self.advance();
        }
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, symbol: &str) -> Parsed<()> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn expect_word(&mut self, word: &str) -> Parsed<()> {
        if self.take_word(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn name(&mut self) -> Parsed<String> {
        match self.token() {
            Token::Word(name) if !scalar::is_reserved(name) => {
                let name = name.clone();
                self.advance();
                Ok(name)
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Whether the token after the present one is `symbol`.
    fn then(&self, symbol: &str) -> bool {
        matches!(self.lexemes.get(self.at + 1).map(|lexeme| &lexeme.token), Some(Token::Symbol(found)) if *found == symbol)
    }

    fn comma_list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut all = vec![one(self)?];
        while self.take(",") {
            all.push(one(self)?);
        }
        Ok(all)
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return Err(KqlError::Limit("The query is nested too deeply.".into()));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn bounded(&self, count: usize, what: &str) -> Parsed<()> {
        if count > MAX_STEPS { Err(KqlError::Limit(format!("The query has too many {what}."))) } else { Ok(()) }
    }

    fn type_name(&mut self) -> Parsed<Type> {
        let Token::Word(name) = self.token() else { return Err(self.unexpected()) };
        let kind = Type::parse(name).ok_or_else(|| self.unexpected())?;
        self.advance();
        Ok(kind)
    }

    fn let_statement(&mut self) -> Parsed<Let> {
        let name = self.name()?;
        self.expect("=")?;
        let start = self.at;
        let value = match self.scalar().map(LetValue::Scalar) {
            Ok(value) if self.is(";") => value,
            scalar => {
                // No scalar up to the semicolon: then it is a table, or the error of whichever reading got further.
                let reached = self.at;
                let error = scalar.err().unwrap_or_else(|| self.unexpected());
                self.at = start;
                let pipeline = self.pipeline().map_err(|other| if reached > self.at { error } else { other })?;
                LetValue::Tabular(pipeline)
            }
        };
        self.expect(";")?;
        Ok(Let { name, value })
    }

    fn pipeline(&mut self) -> Parsed<Pipeline> {
        self.nested(|parser| {
            let source = parser.source()?;
            let mut steps = Vec::new();
            while parser.take("|") {
                steps.push(parser.step()?);
                parser.bounded(steps.len(), "operators")?;
            }
            Ok(Pipeline { source, steps })
        })
    }

    fn source(&mut self) -> Parsed<Source> {
        if self.take("(") {
            let inner = self.pipeline()?;
            self.expect(")")?;
            return Ok(Source::Nested(Box::new(inner)));
        }
        if self.take_word("print") {
            return Ok(Source::Print(self.comma_list(Self::item)?));
        }
        if self.take_word("datatable") {
            return self.datatable();
        }
        if self.take_word("union") {
            return Ok(Source::Union(self.union_members()?));
        }
        let operator = self.at;
        let name = self.name()?;
        if !(self.is("|") || self.is(")") || self.is(";") || self.is(",") || *self.token() == Token::End) {
            if UNSUPPORTED_OPERATORS.contains(&name.as_str()) || self.is("(") {
                return Err(KqlError::Unsupported(format!("'{name}' as a source")));
            }
            // Two names in a row: the first is no operator.
            if matches!(self.token(), Token::Word(_)) {
                self.at = operator;
            }
            return Err(self.unexpected());
        }
        Ok(Source::Name(name))
    }

    fn datatable(&mut self) -> Parsed<Source> {
        self.expect("(")?;
        let columns = self.comma_list(|parser| {
            let name = parser.name()?;
            parser.expect(":")?;
            Ok((name, parser.type_name()?))
        })?;
        self.expect(")")?;
        self.expect("[")?;
        let mut cells = Vec::new();
        while !self.is("]") {
            cells.push(self.scalar()?);
            if !self.take(",") {
                break;
            }
        }
        self.expect("]")?;
        Ok(Source::Datatable { columns, cells })
    }

    /// `[kind=outer] [isfuzzy=false] T1, (T2 | ...), ...`
    fn union_members(&mut self) -> Parsed<Vec<Pipeline>> {
        while self.then("=") {
            let name = self.name()?;
            self.expect("=")?;
            match (name.as_str(), self.token()) {
                ("kind", Token::Word(value)) if value == "outer" => self.advance(),
                ("isfuzzy", Token::Word(value)) if value == "false" => self.advance(),
                ("kind" | "isfuzzy" | "withsource", _) => {
                    return Err(KqlError::Unsupported(format!("this '{name}' of union")));
                }
                _ => return Err(self.unexpected()),
            }
        }
        self.comma_list(|parser| {
            if !parser.is("(") {
                return Ok(Pipeline { source: Source::Name(parser.name()?), steps: Vec::new() });
            }
            parser.nested(|parser| Ok(Pipeline { source: parser.source()?, steps: Vec::new() }))
        })
    }

    fn item(&mut self) -> Parsed<Item> {
        let name = if self.then("=") {
            let name = self.name()?;
            self.expect("=")?;
            Some(name)
        } else {
            None
        };
        Ok(Item { name, value: self.scalar()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn misspelt_and_misplaced_words_are_syntax_errors_that_name_them() {
        for (query, token) in [
            ("DeviceInfo | wher A == 1", "Token: wher."),
            ("DeviceInfo | where A == ", "Token: <end>."),
            ("DeviceInfo | where A === 1", "Token: =."),
            ("DeviceInfo | where (A == 1", "Token: <end>."),
            ("DeviceInfo | where A == 1 == 2", "Token: ==."),
            ("DeviceInfo | take 1 take 2", "Token: take."),
            ("DeviceInfo where A == 1", "Token: DeviceInfo."),
            ("let A = 1", "Token: <end>."),
            ("let A = 1;", "Token: <end>."),
            ("let A = 1; let", "Token: <end>."),
            ("DeviceInfo | where A in (", "Token: <end>."),
            ("DeviceInfo | mv - expand A", "Token: mv."),
            ("DeviceInfo |", "Token: <end>."),
            ("DeviceInfo; AlertInfo", "Token: AlertInfo."),
            ("DeviceInfo | where A between (1 2)", "Token: 2."),
            ("DeviceInfo | sort A asc", "Token: A."),
            ("print A = dynamic([1,])", "Token: ]."),
            ("print A = dynamic(now())", "Token: now."),
            ("", "Token: <end>."),
        ] {
            let error = parse(query).unwrap_err();
            assert!(matches!(error, KqlError::Syntax(_)), "{query}: {error}");
            assert!(error.to_string().contains(token), "{query}: {error}");
        }
    }

    #[test]
    fn what_the_service_has_and_the_interpreter_has_not_is_said_so() {
        for query in [
            "DeviceInfo | summarize count() by A | render piechart",
            "search \"x\"",
            "DeviceInfo | join (AlertInfo) on A",
            "DeviceInfo | join kind=fullouter (AlertInfo) on A",
            "union isfuzzy=true DeviceInfo, AlertInfo",
            "DeviceInfo | where A in (AlertInfo | project A)",
            "DeviceInfo | partition hint.strategy=shuffle by A (take 1)",
            "print A = ```x```",
            "DeviceInfo | mv-expand A, B",
            "FileProfile(A)",
        ] {
            let error = parse(query).unwrap_err();
            assert!(matches!(error, KqlError::Unsupported(_)), "{query}: {error}");
        }
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        for (open, close) in [("(", ")"), ("not(", ")"), ("-", ""), ("a[", "]"), ("1+(", ")"), ("a.", "")] {
            let query = format!("T | where {}1{}", open.repeat(20_000), close.repeat(20_000));
            assert!(parse(&query).is_err(), "{open}");
        }
        assert!(matches!(parse(&"(".repeat(20_000)), Err(KqlError::Limit(_))));
        assert!(matches!(parse(&format!("let A = {}", "(".repeat(20_000))), Err(KqlError::Limit(_))));
        assert!(parse(&format!("print A = dynamic({}", "[".repeat(20_000))).is_err());
        assert!(parse(&format!("T{}", "| take 1".repeat(20_000))).is_err());
        assert!(parse(&format!("T | where 1{} > 1", "+1".repeat(20_000))).is_err());
        let tall = (0..30).fold("1".to_owned(), |inner, _| format!("({inner}){}", "+1".repeat(30)));
        assert!(matches!(parse(&format!("print A = {tall}")), Err(KqlError::Limit(_))));
        let query = format!("T | where {}1{}", "(".repeat(20), ")".repeat(20));
        assert!(parse(&query).is_ok());
    }

    #[test]
    fn long_chains_of_conditions_are_fine() {
        let query = format!("T | where A == 1{}", " or A == 1".repeat(5_000));
        assert!(parse(&query).is_ok());
    }

    /// Pieces of the language, so that random text gets past the first token.
    fn piece() -> impl Strategy<Value = String> {
        let words = "let|A|=|;|T| | |where|extend|project|summarize|by|mv-expand|to|typeof|(|)|[|]|{|}|,|1|30d|\"x\"|\
            dynamic|in~|in|between|..|.|and|or|not|datatable|:|string|print|join|kind|inner|on|partition|hint.strategy|\
            native|top|asc|desc|sort|take|union|==|!has|has_any|datetime(null)|-|+|*|count"
            .split('|')
            .map(str::to_owned)
            .chain(["|".to_owned()])
            .collect::<Vec<_>>();
        prop_oneof![9 => proptest::sample::select(words), 1 => any::<String>()]
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_parsed_or_refused_but_never_breaks(pieces in proptest::collection::vec(piece(), 0..40)) {
            let _ = parse(&pieces.join(" "));
            let _ = parse(&format!("T | where {}", pieces.join("")));
            let _ = parse(&format!("T | {}", pieces.join(" ")));
        }
    }
}
