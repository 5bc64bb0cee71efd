//! A query as written: names unresolved, types unknown.

use super::value::{Type, Value};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Query {
    pub(super) lets: Vec<Let>,
    pub(super) body: Pipeline,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Let {
    pub(super) name: String,
    pub(super) value: LetValue,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum LetValue {
    /// A scalar; or, if it is a bare name, perhaps a table.
    Scalar(Expr),
    Tabular(Pipeline),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    pub(super) source: Source,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// A table or a `let` name.
    Name(String),
    Print(Vec<Item>),
    Datatable {
        columns: Vec<(String, Type)>,
        cells: Vec<Expr>,
    },
    Union(Vec<Pipeline>),
    Nested(Box<Pipeline>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Where(Expr),
    Extend(Vec<Item>),
    Project(Vec<Item>),
    ProjectAway(Vec<String>),
    /// New name, old name.
    ProjectRename(Vec<(String, String)>),
    MvExpand {
        item: Item,
        to: Option<Type>,
    },
    Summarize {
        aggregates: Vec<Item>,
        by: Vec<Item>,
    },
    Distinct(Vec<String>),
    /// `distinct *`.
    DistinctAll,
    Partition {
        native: bool,
        by: String,
        steps: Vec<Step>,
    },
    Join {
        kind: JoinKind,
        right: Pipeline,
        on: Vec<String>,
    },
    Union(Vec<Pipeline>),
    Sort(Vec<Order>),
    Top {
        rows: Expr,
        by: Order,
    },
    Take(Expr),
    Count,
}

impl Step {
    /// The operator's name, as errors quote it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Where(_) => "where",
            Self::Extend(_) => "extend",
            Self::Project(_) => "project",
            Self::ProjectAway(_) => "project-away",
            Self::ProjectRename(_) => "project-rename",
            Self::MvExpand { .. } => "mv-expand",
            Self::Summarize { .. } => "summarize",
            Self::Distinct(_) | Self::DistinctAll => "distinct",
            Self::Partition { .. } => "partition",
            Self::Join { .. } => "join",
            Self::Union(_) => "union",
            Self::Sort(_) => "sort",
            Self::Top { .. } => "top",
            Self::Take(_) => "take",
            Self::Count => "count",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JoinKind {
    Inner,
    LeftOuter,
    LeftSemi,
    LeftAnti,
}

/// `Name = value`, or just a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) name: Option<String>,
    pub(super) value: Expr,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Order {
    pub(super) value: Expr,
    pub(super) descending: bool,
    pub(super) nulls_first: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Name(String),
    Literal(Value, Type),
    Call(String, Vec<Expr>),
    /// `*` as an argument of an aggregate.
    Star,
    Member(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    Negate(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Arithmetic(Arithmetic, Box<Expr>, Box<Expr>),
    Compare(Comparison, Box<Expr>, Box<Expr>),
    /// `has`, `contains`, ... and the case-insensitive equalities.
    Text {
        test: TextTest,
        fold: bool,
        negated: bool,
        value: Box<Expr>,
        needle: Box<Expr>,
    },
    In {
        fold: bool,
        negated: bool,
        value: Box<Expr>,
        items: Vec<Expr>,
    },
    HasAny {
        value: Box<Expr>,
        items: Vec<Expr>,
    },
    Between {
        negated: bool,
        value: Box<Expr>,
        low: Box<Expr>,
        high: Box<Expr>,
    },
}

impl Expr {
    /// Levels below this one.
    pub(super) fn height(&self) -> usize {
        let tallest = |all: &[Self]| all.iter().map(Self::height).max().unwrap_or(0);
        1 + match self {
            Self::Name(_) | Self::Literal(..) | Self::Star => 0,
            Self::Call(_, all) | Self::And(all) | Self::Or(all) => tallest(all),
            Self::Member(inner, _) | Self::Negate(inner) => inner.height(),
            Self::Index(left, right)
            | Self::Arithmetic(_, left, right)
            | Self::Compare(_, left, right)
            | Self::Text { value: left, needle: right, .. } => left.height().max(right.height()),
            Self::In { value, items, .. } | Self::HasAny { value, items } => value.height().max(tallest(items)),
            Self::Between { value, low, high, .. } => value.height().max(low.height()).max(high.height()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextTest {
    Equals,
    Has,
    Contains,
    StartsWith,
    EndsWith,
}
