//! The operators between the pipes.

use super::super::KqlError;
use super::super::ast::{Item, JoinKind, Order, Step};
use super::super::lexer::Token;
use super::{Parsed, Parser, UNSUPPORTED_OPERATORS};

impl Parser<'_> {
    /// One operator, behind its pipe.
    pub(super) fn step(&mut self) -> Parsed<Step> {
        let start = self.at;
        let operator = self.operator_name()?;
        match operator.as_str() {
            "where" => Ok(Step::Where(self.scalar()?)),
            "extend" => Ok(Step::Extend(self.comma_list(Self::item)?)),
            "project" => Ok(Step::Project(self.comma_list(Self::item)?)),
            "project-away" => Ok(Step::ProjectAway(self.comma_list(Self::name)?)),
            "project-rename" => Ok(Step::ProjectRename(self.comma_list(|parser| {
                let new = parser.name()?;
                parser.expect("=")?;
                Ok((new, parser.name()?))
            })?)),
            "mv-expand" => self.mv_expand(),
            "summarize" => self.summarize(),
            "distinct" if self.take("*") => Ok(Step::DistinctAll),
            "distinct" => Ok(Step::Distinct(self.comma_list(Self::name)?)),
            "partition" => self.partition(),
            "join" => self.join(),
            "union" => Ok(Step::Union(self.union_members()?)),
            "sort" | "order" => {
                self.expect_word("by")?;
                Ok(Step::Sort(self.comma_list(Self::order)?))
            }
            "top" => {
                let rows = self.scalar()?;
                self.expect_word("by")?;
                Ok(Step::Top { rows, by: self.order()? })
            }
            "take" | "limit" => Ok(Step::Take(self.scalar()?)),
            "count" => Ok(Step::Count),
            other if UNSUPPORTED_OPERATORS.contains(&other) => {
                Err(KqlError::Unsupported(format!("operator '{other}'")))
            }
            _ => {
                self.at = start;
                Err(self.unexpected())
            }
        }
    }

    /// A word, or several joined by hyphens without blanks between them.
    fn operator_name(&mut self) -> Parsed<String> {
        let Token::Word(first) = self.token() else { return Err(self.unexpected()) };
        let mut name = first.clone();
        self.advance();
        while self.is("-") && self.touches_before(self.at) && self.touches_before(self.at + 1) {
            let Some(Token::Word(next)) = self.lexemes.get(self.at + 1).map(|lexeme| &lexeme.token) else { break };
            name = format!("{name}-{next}");
            self.advance();
            self.advance();
        }
        Ok(name)
    }

    /// Whether no blank stands before lexeme `at`.
    fn touches_before(&self, at: usize) -> bool {
        at > 0 && self.lexemes.get(at).is_some_and(|lexeme| lexeme.start == self.lexemes[at - 1].end)
    }

    fn mv_expand(&mut self) -> Parsed<Step> {
        let item = self.item()?;
        let to = if self.take_word("to") {
            self.expect_word("typeof")?;
            self.expect("(")?;
            let kind = self.type_name()?;
            self.expect(")")?;
            Some(kind)
        } else {
            None
        };
        if self.is(",") || self.is_word("limit") {
            return Err(KqlError::Unsupported("mv-expand of several columns or with a limit".into()));
        }
        Ok(Step::MvExpand { item, to })
    }

    fn summarize(&mut self) -> Parsed<Step> {
        let aggregates = if self.is_word("by") { Vec::new() } else { self.comma_list(Self::item)? };
        let by: Vec<Item> = if self.take_word("by") { self.comma_list(Self::item)? } else { Vec::new() };
        Ok(Step::Summarize { aggregates, by })
    }

    /// `hint.strategy=native by Column ( operator | operator ... )`
    fn partition(&mut self) -> Parsed<Step> {
        let mut native = false;
        if self.take_word("hint") {
            self.expect(".")?;
            self.expect_word("strategy")?;
            self.expect("=")?;
            match self.name()?.as_str() {
                "native" => native = true,
                "legacy" => {}
                other => return Err(KqlError::Unsupported(format!("partition strategy '{other}'"))),
            }
        }
        self.expect_word("by")?;
        let by = self.name()?;
        self.expect("(")?;
        let steps = self.nested(|parser| {
            let mut steps = vec![parser.step()?];
            while parser.take("|") {
                steps.push(parser.step()?);
                parser.bounded(steps.len(), "operators")?;
            }
            Ok(steps)
        })?;
        self.expect(")")?;
        Ok(Step::Partition { native, by, steps })
    }

    fn join(&mut self) -> Parsed<Step> {
        if !(self.is_word("kind") && self.then("=")) {
            // The service would silently drop rows with the same key on the left (`innerunique`).
            return Err(KqlError::Unsupported("join without 'kind='".into()));
        }
        self.advance();
        self.advance();
        let kind = match self.name()?.as_str() {
            "inner" => JoinKind::Inner,
            "leftouter" => JoinKind::LeftOuter,
            "leftsemi" => JoinKind::LeftSemi,
            "leftanti" => JoinKind::LeftAnti,
            other => return Err(KqlError::Unsupported(format!("join kind '{other}'"))),
        };
        let right = self.nested(|parser| Ok(super::Pipeline { source: parser.join_source()?, steps: Vec::new() }))?;
        self.expect_word("on")?;
        let on = self.comma_list(Self::name)?;
        if self.is("==") || self.is(".") {
            return Err(KqlError::Unsupported("join on anything but column names".into()));
        }
        Ok(Step::Join { kind, right, on })
    }

    /// A name, or a pipeline in parentheses.
    fn join_source(&mut self) -> Parsed<super::Source> {
        if self.is("(") { self.source() } else { Ok(super::Source::Name(self.name()?)) }
    }

    fn order(&mut self) -> Parsed<Order> {
        let value = self.scalar()?;
        let descending = !self.take_word("asc");
        if descending {
            self.take_word("desc");
        }
        let nulls_first = if self.take_word("nulls") {
            let first = self.take_word("first");
            if !first {
                self.expect_word("last")?;
            }
            first
        } else {
            !descending
        };
        Ok(Order { value, descending, nulls_first })
    }
}
