//! Every form of every query that goes out, written for Microsoft's own parser (`defender.md` 6.5): `tests/kql/check`
//! names a file in `KQL_FORMS`, has this test fill it, and reads it. The texts are those of the product's own functions, so
//! a changed query is checked as it is; one that is missing here fails a test.

use serde_json::json;

use super::query::{self, Newest, Sort, Value};

/// Values in one query: the fewest and the most (`defender.md` 6.2).
const SIZES: [usize; 2] = [1, 200];

/// Rows of each value: the fewest, the default, and the most that the parser should ever see.
const TOPS: [usize; 3] = [1, 100, 25_000];

/// What no valid value holds, and a literal must carry all the same.
const HOSTILE: [&str; 12] = [
    "",
    "\"",
    "\\",
    "\\\"",
    "\"]) | take 1 //",
    "' or true",
    "```",
    "line\nfeed\r\ttab",
    "\u{0}\u{1}\u{7f}",
    "\u{85}\u{2028}\u{2029}",
    "\u{e4}\u{6f22}\u{1f600}",
    "%s{0}$x@\"y\"#z",
];

fn value(sort: Sort, n: usize) -> Value {
    let text = match sort {
        Sort::Sha1 => format!("{n:040x}"),
        Sort::Sha256 => format!("{n:064x}"),
        Sort::Md5 => format!("{n:032x}"),
        Sort::Ip if n.is_multiple_of(2) => format!("203.0.{}.{}", n / 256, n % 256),
        Sort::Ip => format!("2001:db8::{n:x}"),
        // As long as a name can be, with every character that a name can hold.
        Sort::Domain => format!("{n}_-x.{}.{}.example", "a".repeat(63), "0-9".repeat(21)),
    };
    Value::new(sort, &text).expect("it is made to be valid")
}

/// At least one of each sort.
fn values(sorts: &[Sort], count: usize) -> Vec<Value> {
    (0..count.max(sorts.len())).map(|n| value(sorts[n % sorts.len()], n)).collect()
}

/// A query with a name that says which it is.
type Form = (String, String);

/// What is asked with values: each kind of value alone, those of one table, and all that may stand in one query.
fn of_values() -> Vec<Form> {
    type Build = fn(&[Value], usize, Newest) -> String;
    const FILES: [Sort; 3] = [Sort::Sha1, Sort::Sha256, Sort::Md5];
    const ALERTS: [Sort; 4] = [Sort::Sha1, Sort::Sha256, Sort::Ip, Sort::Domain];
    const ALL: [Sort; 5] = [Sort::Sha1, Sort::Sha256, Sort::Md5, Sort::Ip, Sort::Domain];
    let kinds: [(&str, Build, &[&[Sort]]); 2] = [
        (
            "events",
            query::events,
            &[
                &[Sort::Sha1],
                &[Sort::Sha256],
                &[Sort::Md5],
                &[Sort::Ip],
                &[Sort::Domain],
                &FILES,
                &[Sort::Ip, Sort::Domain],
                &[Sort::Md5, Sort::Ip],
                &[Sort::Sha1, Sort::Domain],
                &ALL,
            ],
        ),
        (
            "recent_alerts",
            query::recent_alerts,
            &[&[Sort::Sha1], &[Sort::Sha256], &[Sort::Ip], &[Sort::Domain], &[Sort::Sha1, Sort::Domain], &ALERTS],
        ),
    ];
    let mut forms = Vec::new();
    for (name, build, mixes) in kinds {
        for (mix, size, top) in product(mixes) {
            for newest in [Newest::Partition, Newest::RowNumber] {
                let name = format!("{name} of {size} {mix:?}, {top} rows each, {newest:?}");
                forms.push((name, build(&values(mix, size), top, newest)));
            }
        }
    }
    forms
}

fn product<'a>(mixes: &'a [&'a [Sort]]) -> impl Iterator<Item = (&'a [Sort], usize, usize)> {
    let sizes = SIZES.into_iter().flat_map(|size| TOPS.map(|top| (size, top)));
    sizes.flat_map(|(size, top)| mixes.iter().map(move |mix| (*mix, size, top)))
}

fn devices() -> Vec<Form> {
    let ids = |count| (0..count).map(|n: usize| format!("{n:040x}")).collect::<Vec<_>>();
    [1, 1000].map(|count| (format!("device_context of {count}"), query::device_context(&ids(count)))).into()
}

fn evidence() -> Vec<Form> {
    let ids = |count| (0..count).map(|n: usize| format!("da{n:018}_-{n}")).collect::<Vec<_>>();
    [1, 500].map(|count| (format!("alert_evidence of {count}"), query::alert_evidence(&ids(count)))).into()
}

fn forms() -> Vec<Form> {
    let probe = ("health_probe".to_owned(), query::HEALTH_PROBE.to_owned());
    [of_values(), evidence(), devices(), vec![probe]].concat()
}

#[test]
fn the_forms_of_all_queries_are_written_for_the_parser() {
    let mut lines: Vec<_> = forms().iter().map(|(name, query)| json!({ "name": name, "query": query })).collect();
    lines.extend(HOSTILE.map(|text| {
        let query = format!("print Text = {}", query::literal(text));
        json!({ "name": format!("the literal of {text:?}"), "query": query, "literal": text })
    }));
    let mut names: Vec<_> = lines.iter().map(|line| line["name"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), lines.len(), "two forms have one name");
    if let Some(path) = std::env::var_os("KQL_FORMS") {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(path, text).expect("the file that is named in KQL_FORMS can be written");
    }
}

/// Queries are written in `query` and nowhere else; each of its functions and constants that is one is used above.
#[test]
fn no_query_is_left_out() {
    let here = include_str!("query_forms.rs");
    let product = include_str!("query.rs").split("#[cfg(test)]").next().expect("a split has a first part");
    let queries = product.lines().filter_map(|line| {
        let function = line.strip_prefix("pub(super) fn ").filter(|line| line.ends_with("-> String {"));
        let item = function.or_else(|| line.strip_prefix("pub(super) const ").filter(|line| line.contains("&str")))?;
        item.split(['(', ':', '<']).next()
    });
    let queries: Vec<_> = queries.filter(|name| !NO_QUERIES.contains(name)).collect();
    assert!(queries.len() > 3, "the queries were not found: {queries:?}");
    for name in queries {
        assert!(here.contains(&format!("query::{name}")), "{name} is not among the forms that the parser checks");
    }
}

/// What `query` gives away as text and is not a query.
const NO_QUERIES: [&str; 3] = ["observable", "literal", "alert_id"];
