//! Scalar expressions, by falling precedence: or, and, one comparison, sums, products, signs, members.

use super::super::KqlError;
use super::super::ast::{Arithmetic, Comparison, Expr, TextTest};
use super::super::dynamic::Dynamic;
use super::super::lexer::Token;
use super::super::value::{Type, Value};
use super::{MAX_DEPTH, Parsed, Parser};

/// Words that cannot be names.
const RESERVED: [&str; 16] = [
    "and",
    "or",
    "in",
    "has",
    "has_any",
    "has_all",
    "has_cs",
    "contains",
    "contains_cs",
    "startswith",
    "startswith_cs",
    "endswith",
    "endswith_cs",
    "between",
    "let",
    "by",
];

/// How tall an expression may grow, so that walking it stays within a thread's stack. Twice the nesting allowed, since
/// chains of operators make it taller, too.
const MAX_HEIGHT: usize = 2 * MAX_DEPTH;

fn bounded_height(value: &Expr) -> Parsed<()> {
    if value.height() > MAX_HEIGHT {
        return Err(KqlError::Limit("The query is nested too deeply.".into()));
    }
    Ok(())
}

pub(super) fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

impl Parser<'_> {
    /// A scalar expression.
    pub(super) fn scalar(&mut self) -> Parsed<Expr> {
        self.nested(|parser| {
            let mut all = vec![parser.conjunction()?];
            while parser.take_word("or") {
                all.push(parser.conjunction()?);
            }
            Ok(if all.len() == 1 { all.remove(0) } else { Expr::Or(all) })
        })
    }

    fn conjunction(&mut self) -> Parsed<Expr> {
        let mut all = vec![self.comparison()?];
        while self.take_word("and") {
            all.push(self.comparison()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::And(all) })
    }

    /// At most one comparison: `a == b == c` is refused.
    fn comparison(&mut self) -> Parsed<Expr> {
        let value = self.sum()?;
        let operator = match self.token() {
            Token::Symbol(symbol) => *symbol,
            Token::Word(word) => match RESERVED.into_iter().find(|reserved| reserved == word) {
                Some(word) if !matches!(word, "and" | "or" | "let" | "by") => word,
                _ => return Ok(value),
            },
            _ => return Ok(value),
        };
        let (plain, negated) = match operator.strip_prefix('!') {
            Some("=") | None => (operator, false),
            Some("~") => ("=~", true),
            Some(word) => (word, true),
        };
        let comparison = match plain {
            "==" => Comparison::Equal,
            "!=" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessOrEqual,
            ">" => Comparison::Greater,
            ">=" => Comparison::GreaterOrEqual,
            _ => return self.word_comparison(value, plain, negated),
        };
        self.advance();
        Ok(Expr::Compare(comparison, Box::new(value), Box::new(self.sum()?)))
    }

    fn word_comparison(&mut self, value: Expr, operator: &str, negated: bool) -> Parsed<Expr> {
        let (test, fold) = match operator {
            "=~" => (TextTest::Equals, true),
            "has" => (TextTest::Has, true),
            "has_cs" => (TextTest::Has, false),
            "contains" => (TextTest::Contains, true),
            "contains_cs" => (TextTest::Contains, false),
            "startswith" => (TextTest::StartsWith, true),
            "startswith_cs" => (TextTest::StartsWith, false),
            "endswith" => (TextTest::EndsWith, true),
            "endswith_cs" => (TextTest::EndsWith, false),
            "in" | "in~" => {
                self.advance();
                let items = self.parenthesised_list()?;
                return Ok(Expr::In { fold: operator == "in~", negated, value: Box::new(value), items });
            }
            "has_any" => {
                self.advance();
                return Ok(Expr::HasAny { value: Box::new(value), items: self.parenthesised_list()? });
            }
            "has_all" => return Err(KqlError::Unsupported("operator 'has_all'".into())),
            "between" => {
                self.advance();
                self.expect("(")?;
                let low = Box::new(self.scalar()?);
                self.expect("..")?;
                let high = Box::new(self.scalar()?);
                self.expect(")")?;
                return Ok(Expr::Between { negated, value: Box::new(value), low, high });
            }
            // Some other symbol: the expression ends before it.
            _ => return Ok(value),
        };
        self.advance();
        Ok(Expr::Text { test, fold, negated, value: Box::new(value), needle: Box::new(self.sum()?) })
    }

    fn parenthesised_list(&mut self) -> Parsed<Vec<Expr>> {
        self.expect("(")?;
        if self.take(")") {
            return Ok(Vec::new());
        }
        let items = self.comma_list(Self::scalar)?;
        if self.is("|") {
            return Err(KqlError::Unsupported("a table on the right of 'in'".into()));
        }
        self.expect(")")?;
        Ok(items)
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.chain(&[("+", Arithmetic::Add), ("-", Arithmetic::Subtract)], Self::product)
    }

    fn product(&mut self) -> Parsed<Expr> {
        self.chain(&[("*", Arithmetic::Multiply), ("/", Arithmetic::Divide)], Self::sign)
    }

    /// Operands of equal rank, grouped from the left. The tree grows tall that way without any nesting.
    fn chain(&mut self, operators: &[(&str, Arithmetic)], operand: fn(&mut Self) -> Parsed<Expr>) -> Parsed<Expr> {
        let mut left = operand(self)?;
        while let Some((symbol, operator)) = operators.iter().find(|(symbol, _)| self.is(symbol)) {
            self.expect(symbol)?;
            left = Expr::Arithmetic(*operator, Box::new(left), Box::new(operand(self)?));
            bounded_height(&left)?;
        }
        Ok(left)
    }

    fn sign(&mut self) -> Parsed<Expr> {
        if self.take("-") {
            return self.nested(|parser| Ok(Expr::Negate(Box::new(parser.sign()?))));
        }
        let mut value = self.primary()?;
        loop {
            if self.take(".") {
                value = Expr::Member(Box::new(value), self.name()?);
            } else if self.take("[") {
                value = Expr::Index(Box::new(value), Box::new(self.scalar()?));
                self.expect("]")?;
            } else {
                return Ok(value);
            }
            bounded_height(&value)?;
        }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        if self.take("(") {
            let inner = self.scalar()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if let Some(literal) = self.literal()? {
            return Ok(literal);
        }
        let name = self.name()?;
        match (name.as_str(), self.take("(")) {
            ("true", false) => Ok(Expr::Literal(Value::Bool(true), Type::Bool)),
            ("false", false) => Ok(Expr::Literal(Value::Bool(false), Type::Bool)),
            (_, false) => Ok(Expr::Name(name)),
            ("dynamic", true) => {
                let value = self.dynamic()?;
                self.expect(")")?;
                Ok(Expr::Literal(value.into(), Type::Dynamic))
            }
            ("bool" | "int" | "long" | "real" | "double" | "string" | "timespan", true) => self.typed_literal(&name),
            (_, true) => {
                let arguments = if self.is(")") { Vec::new() } else { self.comma_list(Self::argument)? };
                self.expect(")")?;
                Ok(Expr::Call(name, arguments))
            }
        }
    }

    fn argument(&mut self) -> Parsed<Expr> {
        if self.take("*") { Ok(Expr::Star) } else { self.scalar() }
    }

    fn literal(&mut self) -> Parsed<Option<Expr>> {
        let (value, kind) = match self.token() {
            Token::Text(_) => (self.joined_text().into(), Type::String),
            Token::Long(number) => (Value::Long(*number), Type::Long),
            Token::Real(number) => (Value::Real(*number), Type::Real),
            Token::Span(ticks) => (Value::Timespan(*ticks), Type::Timespan),
            Token::Moment(moment) => (moment.map_or(Value::Null, Value::DateTime), Type::DateTime),
            _ => return Ok(None),
        };
        if kind != Type::String {
            self.advance();
        }
        Ok(Some(Expr::Literal(value, kind)))
    }

    /// String literals side by side are one string.
    fn joined_text(&mut self) -> String {
        let mut joined = String::new();
        while let Token::Text(text) = self.token() {
            joined.push_str(text);
            self.advance();
        }
        joined
    }

    /// The rest of `long(null)`, `int(5)` and the like, behind the parenthesis.
    fn typed_literal(&mut self, name: &str) -> Parsed<Expr> {
        let kind = Type::parse(name).ok_or_else(|| self.unexpected())?;
        let value = if self.take_word("null") {
            kind.null()
        } else {
            let negative = self.take("-");
            match (kind, self.literal()?) {
                (Type::Int, Some(Expr::Literal(Value::Long(number), _))) => {
                    let number = if negative { -number } else { number };
                    Value::Int(i32::try_from(number).map_err(|_| self.unexpected())?)
                }
                (Type::Long, Some(Expr::Literal(Value::Long(number), _))) => {
                    Value::Long(if negative { -number } else { number })
                }
                (Type::Real, Some(Expr::Literal(Value::Real(number), _))) => {
                    Value::Real(if negative { -number } else { number })
                }
                (Type::Timespan, Some(Expr::Literal(Value::Timespan(ticks), _))) if !negative => Value::Timespan(ticks),
                (Type::Bool, None) if self.take_word("true") => Value::Bool(true),
                (Type::Bool, None) if self.take_word("false") => Value::Bool(false),
                _ => return Err(self.unexpected()),
            }
        };
        self.expect(")")?;
        Ok(Expr::Literal(value, kind))
    }

    /// What stands inside `dynamic(...)`: JSON, strings in either quotes.
    fn dynamic(&mut self) -> Parsed<Dynamic> {
        self.nested(|parser| {
            if parser.take("[") {
                let elements = if parser.is("]") { Vec::new() } else { parser.comma_list(Self::dynamic)? };
                parser.expect("]")?;
                return Ok(Dynamic::Array(elements));
            }
            if parser.take("{") {
                let members = if parser.is("}") { Vec::new() } else { parser.comma_list(Self::dynamic_member)? };
                parser.expect("}")?;
                return Ok(Dynamic::Bag(members));
            }
            let negative = parser.take("-");
            let value = match parser.token() {
                Token::Long(number) => Dynamic::Long(if negative { -number } else { *number }),
                Token::Real(number) => Dynamic::Real(if negative { -number } else { *number }),
                _ if negative => return Err(parser.unexpected()),
                Token::Text(text) => Dynamic::String(text.as_str().into()),
                Token::Moment(moment) => moment.map_or(Dynamic::Null, Dynamic::DateTime),
                Token::Span(ticks) => Dynamic::Timespan(*ticks),
                Token::Word(word) => match word.as_str() {
                    "true" => Dynamic::Bool(true),
                    "false" => Dynamic::Bool(false),
                    "null" => Dynamic::Null,
                    _ => return Err(parser.unexpected()),
                },
                _ => return Err(parser.unexpected()),
            };
            parser.advance();
            Ok(value)
        })
    }

    fn dynamic_member(&mut self) -> Parsed<(std::sync::Arc<str>, Dynamic)> {
        let Token::Text(name) = self.token() else { return Err(self.unexpected()) };
        let name = name.as_str().into();
        self.advance();
        self.expect(":")?;
        Ok((name, self.dynamic()?))
    }
}
