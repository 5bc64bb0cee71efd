//! A small, strict interpreter of the Kusto query language: the part of it that advanced hunting queries use.
//!
//! ```text
//! text -> lexer -> parser -> ast -> bind (names, types; no data) -> plan -> exec (rows) -> Table
//! ```
//!
//! It is the independent check that the product's hunting queries are right, so it really evaluates them against tables
//! and refuses what the service would refuse: unknown names, mismatched types, misspelt operators. Names and types are
//! checked before any row is read, so a query is refused against empty tables too. What the service knows but this
//! interpreter does not is refused as [`KqlError::Unsupported`], never guessed at.
//!
//! Pure: no input or output, no clock (`now` is an argument). The tables come through [`Tables`]; [`Database`] is a
//! ready-made set with the documented columns. HTTP, quotas and the JSON envelope belong to the caller.
//!
//! Where the documentation is silent, the choice made here is written next to the code: how `has` treats a needle
//! that is no whole term (`text.rs`), ties in `arg_max` (the first row wins) and the order of groups (first seen).

mod ast;
mod bind;
mod database;
mod dynamic;
mod eval;
mod exec;
mod functions;
mod lexer;
mod parser;
mod plan;
mod text;
mod value;

use jiff::Timestamp;

pub use self::database::{Database, InsertError};
pub use self::dynamic::Dynamic;
pub use self::value::{Type, Value};

/// Rows a query may return (contract 3.1).
pub const MAX_RESULT_ROWS: usize = 100_000;

/// Size of a result: 50 MB (contract 3.1), counted as the bytes of its values without the JSON around them.
pub const MAX_RESULT_BYTES: usize = 50_000_000;

/// A table: the input of a query, and its result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Name and type of each column, in order.
    pub columns: Vec<(String, Type)>,
    /// Rows, each with one value per column, of the column's type or null (a string is never null, but empty).
    pub rows: Vec<Vec<Value>>,
}

/// Where a query finds its tables.
pub trait Tables {
    /// The table of that exact name, or `None` if the tenant has no such table or the caller may not see it.
    fn scan(&self, name: &str) -> Option<&Table>;
}

/// The time span a query may see: rows whose `Timestamp` lies outside are as good as absent (request field `Timespan`,
/// contract 4.1). Both ends are inclusive; an absent end is open. Tables without a `Timestamp` are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Earliest moment seen.
    pub from: Option<Timestamp>,
    /// Latest moment seen.
    pub to: Option<Timestamp>,
}

/// Why a query was refused or stopped. The text is worded like the service's, so that it can be sent as its message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KqlError {
    /// The text is no query.
    #[error("{0}")]
    Syntax(String),
    /// The text is a query, but a name in it does not resolve or a type does not fit.
    #[error("{0}")]
    Semantic(String),
    /// A limit of the service was exceeded: result size, number of partitions, effort.
    #[error("{0}")]
    Limit(String),
    /// The service may well accept this, but it lies outside the subset that is interpreted here.
    #[error("not interpreted by the simulator: {0}")]
    Unsupported(String),
}

/// Runs `query` over `tables`, with `now` as the moment that `now()` and `ago()` count from.
///
/// # Errors
/// See [`KqlError`]. None of them passes by itself.
pub fn run(query: &str, tables: &dyn Tables, now: Timestamp) -> Result<Table, KqlError> {
    run_within(query, tables, now, Window::default())
}

/// Like [`run`], over the rows of `window` only.
///
/// # Errors
/// See [`KqlError`].
pub fn run_within(query: &str, tables: &dyn Tables, now: Timestamp, window: Window) -> Result<Table, KqlError> {
    let statements = parser::parse(query)?;
    let plan = bind::bind(&statements, tables, now)?;
    exec::result(&plan, tables, window)
}
