//! Tabular operators one by one.

use super::*;

const PEOPLE: &str = "let P = datatable(Name: string, Age: long, Town: string)\
    ['Ann', 30, 'Bern', 'Bob', long(null), 'Basel', 'Cid', 20, 'Bern', 'Dan', 40, 'Basel'];";

fn people(rest: &str) -> Json {
    rows(&format!("{PEOPLE} P | {rest}"))
}

#[test]
fn rows_are_filtered_shaped_sorted_and_cut() {
    for (rest, expected) in [
        ("where Age > 25 | project Name", json!([["Ann"], ["Dan"]])),
        ("where not(Age > 25) | project Name", json!([["Cid"]])),
        ("where Age != 30 | project Name", json!([["Bob"], ["Cid"], ["Dan"]])),
        ("sort by Age asc | project Name", json!([["Bob"], ["Cid"], ["Ann"], ["Dan"]])),
        ("sort by Age | project Name", json!([["Dan"], ["Ann"], ["Cid"], ["Bob"]])),
        ("sort by Age asc nulls last | project Name", json!([["Cid"], ["Ann"], ["Dan"], ["Bob"]])),
        ("sort by Town asc, Age desc | project Name", json!([["Dan"], ["Bob"], ["Ann"], ["Cid"]])),
        ("order by Name desc | take 1 | project Name", json!([["Dan"]])),
        ("top 2 by Age | project Name", json!([["Dan"], ["Ann"]])),
        ("top 1 by Age asc nulls last | project Name", json!([["Cid"]])),
        ("limit 1 | project-away Age, Town", json!([["Ann"]])),
        ("take 1 | project-rename Who = Name | project Who", json!([["Ann"]])),
        ("take 1 | extend Age = 1, More = Age + 1", json!([["Ann", 1, "Bern", 31]])),
        ("where Age between (20 .. 30) | count", json!([[2]])),
        ("where Age !between (20 .. 30) | count", json!([[1]])),
        ("distinct Town", json!([["Bern"], ["Basel"]])),
        ("project Town | distinct *", json!([["Bern"], ["Basel"]])),
    ] {
        assert_eq!(people(rest), expected, "{rest}");
    }
}

#[test]
fn groups_are_summed_up() {
    for (rest, expected) in [
        ("summarize count() by Town", json!([["Bern", 2], ["Basel", 2]])),
        ("summarize N = count(), max(Age), min(Age)", json!([[4, 40, 20]])),
        ("summarize countif(Age > 25), dcount(Town)", json!([[2, 2]])),
        ("summarize arg_max(Age, Name) by Town", json!([["Bern", 30, "Ann"], ["Basel", 40, "Dan"]])),
        ("summarize arg_min(Age, *) by Town", json!([["Bern", 20, "Cid"], ["Basel", 40, "Dan"]])),
        ("where Age > 99 | summarize count(), max(Age), Top = arg_max(Age, Name)", json!([[0, null, null, ""]])),
        ("where Age > 99 | summarize count() by Town", json!([])),
        ("summarize L = make_list(Age) | project tostring = tostring(L)", json!([["[30,20,40]"]])),
        ("summarize L = make_list(Name, 2) | project S = tostring(L)", json!([["[\"Ann\",\"Bob\"]"]])),
        ("summarize make_set(Town) | project S = tostring(set_Town)", json!([["[\"Bern\",\"Basel\"]"]])),
    ] {
        assert_eq!(people(rest), expected, "{rest}");
    }
}

#[test]
fn tables_are_joined_by_kind() {
    let towns = "(datatable(Town: string, Code: long)['Bern', 3000, 'Bern', 3001, 'Chur', 7000])";
    for (kind, expected) in [
        ("inner", json!([["Ann", 3000], ["Ann", 3001], ["Cid", 3000], ["Cid", 3001]])),
        (
            "leftouter",
            json!([["Ann", 3000], ["Ann", 3001], ["Bob", null], ["Cid", 3000], ["Cid", 3001], ["Dan", null]]),
        ),
    ] {
        assert_eq!(people(&format!("join kind={kind} {towns} on Town | project Name, Code")), expected, "{kind}");
    }
    assert_eq!(people(&format!("join kind=leftsemi {towns} on Town | project Name")), json!([["Ann"], ["Cid"]]));
    assert_eq!(people(&format!("join kind=leftanti {towns} on Town | project Name")), json!([["Bob"], ["Dan"]]));
    let both = format!("{PEOPLE} P | join kind=inner P on Town, Name | take 1");
    let (columns, _) = answer(&both, &Database::new());
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Name", "Age", "Town", "Name1", "Age1", "Town1"]);
}

#[test]
fn a_null_key_joins_nothing() {
    assert_eq!(people("join kind=inner P on Age | project Name"), json!([["Ann"], ["Cid"], ["Dan"]]));
}

#[test]
fn unions_line_up_columns_by_name() {
    let query = format!(
        "{PEOPLE} let Q = print Name = 'Eve', Code = 7; union isfuzzy=false (P | take 1), Q | project Name, Age, Code"
    );
    assert_eq!(rows(&query), json!([["Ann", 30, null], ["Eve", null, 7]]));
    assert_eq!(people("take 1 | union (P | where Name == 'Bob') | project Name"), json!([["Ann"], ["Bob"]]));
    let split = format!("{PEOPLE} union P, (print Age = 'x')");
    assert!(matches!(run(&split, &Database::new(), now()), Err(KqlError::Unsupported(_))));
}

#[test]
fn arrays_and_bags_are_expanded() {
    for (query, expected) in [
        ("print A = 1, B = dynamic(['x', 'y']) | mv-expand B to typeof(string)", json!([[1, "x"], [1, "y"]])),
        ("print B = dynamic([1, 'y', null]) | mv-expand B to typeof(string)", json!([[""], ["y"], [""]])),
        ("print B = dynamic([]) | mv-expand B to typeof(string)", json!([])),
        ("print B = dynamic(null) | mv-expand B to typeof(string)", json!([[""]])),
        ("print B = dynamic('x') | mv-expand B to typeof(string)", json!([["x"]])),
        (
            "print B = dynamic({'a': 1, 'b': 2}) | mv-expand B | project S = tostring(B)",
            json!([["{\"a\":1}"], ["{\"b\":2}"]]),
        ),
        (
            "print J = '[1,2]' | mv-expand N = parse_json(J) to typeof(long) | project N, J",
            json!([[1, "[1,2]"], [2, "[1,2]"]]),
        ),
    ] {
        assert_eq!(rows(query), expected, "{query}");
    }
}

#[test]
fn rows_are_numbered_and_see_the_row_before() {
    assert_eq!(
        people("sort by Town asc, Name asc | extend N = row_number(1, Town != prev(Town)) | project Name, N"),
        json!([["Bob", 1], ["Dan", 2], ["Ann", 1], ["Cid", 2]])
    );
    assert_eq!(
        people(
            "sort by Name asc | extend Before = prev(Name), Two = prev(Age, 2, 7), N = row_number() \
            | project Before, Two, N"
        ),
        json!([["", 7, 1], ["Ann", 7, 2], ["Bob", 30, 3], ["Cid", null, 4]])
    );
}

#[test]
fn partition_runs_its_pipeline_for_each_key() {
    assert_eq!(
        people("partition hint.strategy=native by Town (top 1 by Age desc | project Name, Town)"),
        json!([["Ann", "Bern"], ["Dan", "Basel"]])
    );
}
