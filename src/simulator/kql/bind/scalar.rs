//! Scalar expressions: what each name is, what types meet, what can be computed at once.

use std::rc::Rc;

use super::super::ast::{Arithmetic, Comparison, Expr, TextTest};
use super::super::eval::{Place, members};
use super::super::functions;
use super::super::plan::{Node, Scalar, Set};
use super::super::text::Needles;
use super::super::value::{Type, Value, shifted};
use super::{Binder, Bound, Meaning, Refusal, Scope};

/// Characters that mean something in a regular expression.
const REGEX_CHARACTERS: &[char] = &['\\', '^', '$', '.', '|', '?', '*', '+', '(', ')', '[', ']', '{', '}'];

impl Binder<'_> {
    /// Binds an expression to the columns of `scope` and the `let` names.
    pub(super) fn scalar(&self, value: &Expr, scope: &Scope) -> Bound<Scalar> {
        let (node, kind) = match value {
            Expr::Name(name) => return self.name(name, scope),
            Expr::Literal(value, kind) => (Node::Constant(value.clone()), *kind),
            Expr::Star => return Err(Refusal::Bare("'*' is not an expression".into())),
            Expr::Call(name, arguments) => return self.call(name, arguments, scope),
            Expr::Member(inner, name) => {
                let inner = self.scalar(inner, scope)?;
                if inner.kind != Type::Dynamic {
                    return Err(Refusal::Bare(format!("'.{name}' cannot be applied to type {}", inner.kind.name())));
                }
                (Node::Member(Box::new(inner), name.clone()), Type::Dynamic)
            }
            Expr::Index(inner, index) => {
                let (inner, index) = (self.scalar(inner, scope)?, self.scalar(index, scope)?);
                let fits = matches!(index.kind, Type::String | Type::Int | Type::Long);
                if inner.kind != Type::Dynamic || !fits {
                    let text = format!("'[]' cannot be applied to {} with {}", inner.kind.name(), index.kind.name());
                    return Err(Refusal::Bare(text));
                }
                (Node::Index(Box::new(inner), Box::new(index)), Type::Dynamic)
            }
            Expr::Negate(inner) => {
                let inner = self.scalar(inner, scope)?;
                let zero = if inner.kind == Type::Timespan { Value::Timespan(0) } else { Value::Int(0) };
                let zero_kind = if inner.kind == Type::Timespan { Type::Timespan } else { Type::Int };
                let zero = Scalar { node: Node::Constant(zero), kind: zero_kind };
                return Ok(folded(arithmetic(Arithmetic::Subtract, zero, inner)?));
            }
            Expr::And(all) => (Node::And(self.conditions(all, scope)?), Type::Bool),
            Expr::Or(all) => (Node::Or(self.conditions(all, scope)?), Type::Bool),
            Expr::Arithmetic(operator, left, right) => {
                return Ok(folded(arithmetic(*operator, self.scalar(left, scope)?, self.scalar(right, scope)?)?));
            }
            Expr::Compare(comparison, left, right) => {
                let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
                comparable(*comparison, &left, &right)?;
                (Node::Compare(*comparison, Box::new(left), Box::new(right)), Type::Bool)
            }
            Expr::Text { test, fold, negated, value, needle } => {
                let value = self.text(value, scope)?;
                let needle = self.text(needle, scope)?;
                (negated_if(*negated, text_test(*test, *fold, value, needle)), Type::Bool)
            }
            Expr::In { fold, negated, value, items } => {
                let node = self.membership(*fold, value, items, scope)?;
                (negated_if(*negated, node), Type::Bool)
            }
            Expr::HasAny { value, items } => {
                let value = self.text(value, scope)?;
                let needles = self.constant_items(items)?;
                let needles: Vec<&str> = needles.iter().filter_map(as_text).collect();
                (Node::HasAny(Box::new(value), Rc::new(Needles::new(needles, true))), Type::Bool)
            }
            Expr::Between { negated, value, low, high } => {
                let [value, low, high] = [value, low, high].map(|part| self.scalar(part, scope));
                let (value, low, high) = (value?, low?, high?);
                comparable(Comparison::GreaterOrEqual, &value, &low)?;
                comparable(Comparison::LessOrEqual, &value, &high)?;
                let node = Node::Between { value: Box::new(value), low: Box::new(low), high: Box::new(high) };
                (negated_if(*negated, node), Type::Bool)
            }
        };
        Ok(folded(Scalar { node, kind }))
    }

    /// A column, or else what `let` made of the name.
    fn name(&self, name: &str, scope: &Scope) -> Bound<Scalar> {
        if let Some(at) = scope.position(name) {
            return Ok(Scalar { node: Node::Column(at), kind: scope.columns[at].1 });
        }
        match self.names.get(name) {
            Some(Meaning::Scalar(value, kind)) => Ok(Scalar { node: Node::Constant(value.clone()), kind: *kind }),
            Some(Meaning::Table(..)) => Err(Refusal::unsupported(format!("table '{name}' in place of a value"))),
            None => Err(Refusal::Bare(format!("Failed to resolve scalar expression named '{name}'"))),
        }
    }

    fn of_type(&self, value: &Expr, scope: &Scope, wanted: Type) -> Bound<Scalar> {
        let scalar = self.scalar(value, scope)?;
        if scalar.kind == wanted {
            return Ok(scalar);
        }
        Err(Refusal::Bare(format!("A value of type {} is expected, not {}", wanted.name(), scalar.kind.name())))
    }

    fn text(&self, value: &Expr, scope: &Scope) -> Bound<Scalar> {
        self.of_type(value, scope, Type::String)
    }

    fn conditions(&self, all: &[Expr], scope: &Scope) -> Bound<Vec<Scalar>> {
        all.iter().map(|value| self.of_type(value, scope, Type::Bool)).collect()
    }

    /// The values that a list of constants stands for, arrays taken apart.
    fn constant_items(&self, items: &[Expr]) -> Bound<Vec<Value>> {
        let mut values = Vec::new();
        for item in items {
            values.extend(members(&self.constant(item)?.0));
        }
        Ok(values)
    }

    fn membership(&self, fold: bool, value: &Expr, items: &[Expr], scope: &Scope) -> Bound<Node> {
        let value = if fold { self.text(value, scope)? } else { self.scalar(value, scope)? };
        let items = items.iter().map(|item| self.scalar(item, scope)).collect::<Bound<Vec<_>>>()?;
        for item in &items {
            if item.kind != Type::Dynamic {
                comparable(Comparison::Equal, &value, item)?;
            }
        }
        if items.iter().all(|item| item.constant().is_some()) {
            let values: Vec<Value> = items.iter().filter_map(Scalar::constant).flat_map(members).collect();
            return Ok(Node::InSet(Box::new(value), Rc::new(Set::new(&values, fold))));
        }
        Ok(Node::InList { fold, value: Box::new(value), items })
    }

    fn call(&self, name: &str, arguments: &[Expr], scope: &Scope) -> Bound<Scalar> {
        let wrong_count = || Refusal::Bare(format!("{name}(): wrong number of arguments ({})", arguments.len()));
        match (name, arguments) {
            ("not", [inner]) => {
                let inner = self.of_type(inner, scope, Type::Bool)?;
                Ok(folded(Scalar { node: Node::Not(Box::new(inner)), kind: Type::Bool }))
            }
            ("iff" | "iif", [condition, then, otherwise]) => {
                let condition = self.of_type(condition, scope, Type::Bool)?;
                choice(name, condition, self.scalar(then, scope)?, self.scalar(otherwise, scope)?)
            }
            ("case", [cases @ .., otherwise]) if !cases.is_empty() && cases.len().is_multiple_of(2) => {
                let mut result = self.scalar(otherwise, scope)?;
                for pair in cases.rchunks_exact(2) {
                    let condition = self.of_type(&pair[0], scope, Type::Bool)?;
                    result = choice(name, condition, self.scalar(&pair[1], scope)?, result)?;
                }
                Ok(result)
            }
            ("now", []) => Ok(self.moment(0)?),
            ("now" | "ago", [span]) => match self.constant(span)? {
                (Value::Timespan(ticks), _) => self.moment(if name == "ago" { ticks.saturating_neg() } else { ticks }),
                _ => Err(Refusal::Bare(format!("{name}(): argument #1 must be a constant timespan"))),
            },
            ("prev", _) => self.previous(arguments, scope),
            ("row_number", _) => Err(Refusal::unsupported("row_number() as a part of an expression")),
            ("not" | "iff" | "iif" | "case" | "now" | "ago", _) => Err(wrong_count()),
            _ => self.function(name, arguments, scope),
        }
    }

    fn moment(&self, ticks_from_now: i64) -> Bound<Scalar> {
        let moment = shifted(self.now, ticks_from_now);
        let moment = moment.ok_or_else(|| Refusal::Bare("The moment is outside of the calendar".into()))?;
        Ok(Scalar { node: Node::Constant(moment.into()), kind: Type::DateTime })
    }

    fn function(&self, name: &str, arguments: &[Expr], scope: &Scope) -> Bound<Scalar> {
        let Some(function) = functions::find(name) else {
            return Err(if functions::is_known_elsewhere(name) {
                Refusal::unsupported(format!("function '{name}'"))
            } else {
                Refusal::Bare(format!("Unknown function: '{name}'"))
            });
        };
        let arguments = arguments.iter().map(|argument| self.scalar(argument, scope)).collect::<Bound<Vec<_>>>()?;
        let kinds: Vec<Type> = arguments.iter().map(|argument| argument.kind).collect();
        let kind = function.check(&kinds).map_err(Refusal::Bare)?;
        let first = arguments[0].constant().and_then(as_text);
        match (name, first) {
            ("datetime_diff", Some(period)) if functions::period_ticks(period).is_some() => {}
            ("datetime_diff", _) => return Err(Refusal::unsupported("datetime_diff() of this period")),
            ("trim", Some(text)) if !text.contains(REGEX_CHARACTERS) => {}
            ("trim", _) => return Err(Refusal::unsupported("trim() with a regular expression")),
            _ => {}
        }
        Ok(folded(Scalar { node: Node::Call(function, arguments), kind }))
    }

    /// `prev(value [, offset [, default]])`
    fn previous(&self, arguments: &[Expr], scope: &Scope) -> Bound<Scalar> {
        if !scope.serialized {
            return Err(Refusal::Bare("Function 'prev' cannot be invoked. The row set must be serialized".into()));
        }
        let (value, offset, default) = match arguments {
            [value] => (value, None, None),
            [value, offset] => (value, Some(offset), None),
            [value, offset, default] => (value, Some(offset), Some(default)),
            _ => return Err(Refusal::Bare(format!("prev(): wrong number of arguments ({})", arguments.len()))),
        };
        let value = self.scalar(value, scope)?;
        let offset = match offset.map(|offset| self.constant(offset)).transpose()? {
            None => 1,
            Some((offset, _)) => offset
                .as_long()
                .and_then(|offset| usize::try_from(offset).ok())
                .ok_or_else(|| Refusal::Bare("prev(): argument #2 must be a constant whole number".into()))?,
        };
        let default = match default.map(|default| self.constant(default)).transpose()? {
            None => value.kind.null(),
            Some((default, kind)) if kind == value.kind => default,
            Some(_) => return Err(Refusal::Bare("prev(): argument #3 must have the type of argument #1".into())),
        };
        let kind = value.kind;
        Ok(Scalar { node: Node::Previous { value: Box::new(value), offset, default }, kind })
    }
}

fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn negated_if(negated: bool, node: Node) -> Node {
    if negated { Node::Not(Box::new(Scalar { node, kind: Type::Bool })) } else { node }
}

fn text_test(test: TextTest, fold: bool, value: Scalar, needle: Scalar) -> Node {
    match (test, needle.constant()) {
        (TextTest::Has, Some(Value::String(constant))) => {
            let needles = Needles::new([&**constant], fold);
            Node::HasAny(Box::new(value), Rc::new(needles))
        }
        _ => Node::Text { test, fold, value: Box::new(value), needle: Box::new(needle) },
    }
}

/// `condition ? then : otherwise`, both of one type, numbers widened.
fn choice(function: &str, condition: Scalar, then: Scalar, otherwise: Scalar) -> Bound<Scalar> {
    let kind = match (then.kind, otherwise.kind) {
        (a, b) if a == b => a,
        (a, b) if a.is_number() && b.is_number() => wider(a, b),
        (a, b) => {
            let text = format!("{function}(): the results are of different types ({} and {})", a.name(), b.name());
            return Err(Refusal::Bare(text));
        }
    };
    let cast = |scalar: Scalar| {
        if scalar.kind == kind { scalar } else { Scalar { node: Node::Cast(Box::new(scalar)), kind } }
    };
    let node = Node::If(Box::new(condition), Box::new(cast(then)), Box::new(cast(otherwise)));
    Ok(folded(Scalar { node, kind }))
}

fn wider(a: Type, b: Type) -> Type {
    match (a, b) {
        (Type::Real, _) | (_, Type::Real) => Type::Real,
        (Type::Long, _) | (_, Type::Long) => Type::Long,
        _ => Type::Int,
    }
}

/// Refuses to compare, say, text with a number. A dynamic value may turn out to be anything.
fn comparable(comparison: Comparison, left: &Scalar, right: &Scalar) -> Bound<()> {
    let (a, b) = (left.kind, right.kind);
    if a == b || a.is_number() && b.is_number() || a == Type::Dynamic || b == Type::Dynamic {
        if a == Type::Bool && !matches!(comparison, Comparison::Equal | Comparison::NotEqual) {
            return Err(Refusal::unsupported("an order of bool"));
        }
        return Ok(());
    }
    Err(Refusal::Bare(format!(
        "Cannot compare values of types {} and {}. Try adding explicit casts",
        a.name(),
        b.name()
    )))
}

fn arithmetic(operator: Arithmetic, left: Scalar, right: Scalar) -> Bound<Scalar> {
    use Arithmetic::{Add, Divide, Multiply, Subtract};
    let whole = |kind: Type| matches!(kind, Type::Int | Type::Long);
    let kind = match (left.kind, operator, right.kind) {
        (Type::DateTime, Add | Subtract, Type::Timespan) | (Type::Timespan, Add, Type::DateTime) => Type::DateTime,
        (Type::DateTime, Subtract, Type::DateTime) | (Type::Timespan, Add | Subtract, Type::Timespan) => Type::Timespan,
        (Type::Timespan, Multiply | Divide, number) if whole(number) => Type::Timespan,
        (number, Multiply, Type::Timespan) if whole(number) => Type::Timespan,
        (a, _, b) if a.is_number() && b.is_number() => wider(a, b),
        (a, _, b) => {
            let text = format!("Arithmetic expression cannot be carried out between {} and {}", a.name(), b.name());
            return Err(Refusal::Bare(text));
        }
    };
    Ok(Scalar { node: Node::Arithmetic(operator, Box::new(left), Box::new(right)), kind })
}

/// Computes at once what is the same for every row.
fn folded(scalar: Scalar) -> Scalar {
    let constant = |part: &Scalar| part.constant().is_some();
    let fixed = match &scalar.node {
        Node::Constant(_) | Node::Column(_) | Node::Previous { .. } => false,
        Node::And(all) | Node::Or(all) | Node::Call(_, all) => all.iter().all(constant),
        Node::Not(a) | Node::InSet(a, _) | Node::HasAny(a, _) | Node::Member(a, _) | Node::Cast(a) => constant(a),
        Node::Compare(_, a, b)
        | Node::Arithmetic(_, a, b)
        | Node::Index(a, b)
        | Node::Text { value: a, needle: b, .. } => constant(a) && constant(b),
        Node::Between { value, low, high } => constant(value) && constant(low) && constant(high),
        Node::If(a, b, c) => constant(a) && constant(b) && constant(c),
        Node::InList { value, items, .. } => constant(value) && items.iter().all(constant),
    };
    if !fixed {
        return scalar;
    }
    let value = scalar.eval(Place::NOWHERE).into_owned();
    Scalar { node: Node::Constant(value), kind: scalar.kind }
}
