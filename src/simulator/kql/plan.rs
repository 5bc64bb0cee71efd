//! A query ready to run: columns are positions, types are settled, sets are hashed, constants are folded.

use std::collections::HashSet;
use std::rc::Rc;

use super::ast::{Arithmetic, Comparison, JoinKind, TextTest};
use super::functions::Function;
use super::text::Needles;
use super::value::{Key, Type, Value};

/// Name and type of each column.
pub(super) type Columns = Vec<(String, Type)>;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) columns: Columns,
    pub(super) source: Source,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) enum Source {
    /// A table by name, and where its `Timestamp` is.
    Scan {
        table: String,
        timestamp: Option<usize>,
    },
    Rows(Vec<Vec<Value>>),
    Union(Vec<Member>),
    Nested(Rc<Plan>),
}

/// One table of a union.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) plan: Rc<Plan>,
    /// For each column of the union: where the member has it, or what to put there.
    pub(super) columns: Vec<Result<usize, Value>>,
}

#[derive(Debug)]
pub(super) enum Step {
    Where(Scalar),
    /// Positions (possibly one past the end) and what to put there.
    Extend(Vec<(usize, Cell)>),
    Project(Vec<Cell>),
    MvExpand {
        at: usize,
        value: Scalar,
        to: Type,
    },
    Summarize {
        by: Vec<Scalar>,
        aggregates: Vec<Aggregate>,
    },
    Partition {
        native: bool,
        by: usize,
        steps: Vec<Step>,
    },
    Join(Join),
    Union {
        /// For the rows so far: as [`Member::columns`].
        columns: Vec<Result<usize, Value>>,
        members: Vec<Member>,
    },
    Sort(Vec<Order>),
    Top {
        rows: usize,
        by: Order,
    },
    Take(usize),
    Count,
}

#[derive(Debug)]
pub(super) struct Join {
    pub(super) kind: JoinKind,
    pub(super) left_keys: Vec<usize>,
    pub(super) right_keys: Vec<usize>,
    pub(super) right: Rc<Plan>,
    /// What a left row without a match gets in place of the right side.
    pub(super) unmatched: Vec<Value>,
}

#[derive(Debug)]
pub(super) struct Order {
    pub(super) value: Scalar,
    pub(super) descending: bool,
    pub(super) nulls_first: bool,
}

/// What computes a cell.
#[derive(Debug)]
pub(super) enum Cell {
    Plain(Scalar),
    /// Counts rows from `start`, again wherever `restart` holds.
    RowNumber {
        start: i64,
        restart: Option<Scalar>,
    },
}

#[derive(Debug)]
pub(super) enum Aggregate {
    Count(Option<Scalar>),
    Max(Scalar),
    Min(Scalar),
    DistinctCount(Scalar),
    /// `make_list`, or `make_set` if `distinct`.
    List {
        value: Scalar,
        limit: usize,
        distinct: bool,
    },
    /// `arg_max` or `arg_min`: the extreme, and what its row holds in `carried`.
    Extreme {
        largest: bool,
        value: Scalar,
        carried: Vec<Scalar>,
    },
}

/// An expression with its type.
#[derive(Debug, Clone)]
pub(super) struct Scalar {
    pub(super) node: Node,
    pub(super) kind: Type,
}

impl Scalar {
    /// The value, if it is the same for every row.
    pub(super) fn constant(&self) -> Option<&Value> {
        match &self.node {
            Node::Constant(value) => Some(value),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    Constant(Value),
    Column(usize),
    And(Vec<Scalar>),
    Or(Vec<Scalar>),
    Not(Box<Scalar>),
    Compare(Comparison, Box<Scalar>, Box<Scalar>),
    Between {
        value: Box<Scalar>,
        low: Box<Scalar>,
        high: Box<Scalar>,
    },
    Arithmetic(Arithmetic, Box<Scalar>, Box<Scalar>),
    Text {
        test: TextTest,
        fold: bool,
        value: Box<Scalar>,
        needle: Box<Scalar>,
    },
    InSet(Box<Scalar>, Rc<Set>),
    /// Membership where the items differ from row to row.
    InList {
        fold: bool,
        value: Box<Scalar>,
        items: Vec<Scalar>,
    },
    HasAny(Box<Scalar>, Rc<Needles>),
    Member(Box<Scalar>, String),
    Index(Box<Scalar>, Box<Scalar>),
    If(Box<Scalar>, Box<Scalar>, Box<Scalar>),
    Cast(Box<Scalar>),
    Call(&'static Function, Vec<Scalar>),
    /// The value `offset` rows before, or `default` before the first.
    Previous {
        value: Box<Scalar>,
        offset: usize,
        default: Value,
    },
}

/// The constant right side of `in`.
#[derive(Debug, Default)]
pub(super) struct Set {
    pub(super) fold: bool,
    pub(super) texts: HashSet<Box<str>>,
    pub(super) others: HashSet<Key>,
}

impl Set {
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a Value>, fold: bool) -> Self {
        let mut set = Self { fold, ..Self::default() };
        for value in values {
            match value {
                Value::String(text) if fold => set.texts.insert(text.to_lowercase().into()),
                Value::String(text) => set.texts.insert((&**text).into()),
                Value::Null => continue,
                other => set.others.insert(other.key()),
            };
        }
        set
    }

    pub(super) fn contains(&self, value: &Value) -> bool {
        match value {
            Value::Null => false,
            // Most columns of most rows are empty, and most sets hold no empty text: spare the hashing.
            Value::String(_) if self.texts.is_empty() => false,
            Value::String(text) if self.fold => self.texts.contains(text.to_lowercase().as_str()),
            Value::String(text) => self.texts.contains(&**text),
            Value::Dynamic(_) => match value.unwrapped() {
                Value::Dynamic(_) => self.others.contains(&value.key()),
                scalar => self.contains(&scalar),
            },
            other => self.others.contains(&other.key()),
        }
    }
}
