//! What a query may cost and return.

use super::*;

#[test]
fn a_thousand_hashes_run_over_ten_thousand_rows() {
    let hashes: Vec<String> = (0..1000).map(|number| format!("\"{number:040x}\"")).collect();
    let query = FILES_BY_HASH.replace(&format!("\"{SHA1_A}\", \"{SHA1_B}\""), &hashes.join(", "));
    assert!(query.len() > 45_000);
    let mut database = Database::new();
    for number in 0..10_000_i64 {
        let cells =
            [("Timestamp", now().into()), ("SHA1", format!("{:040x}", number * 7).into()), ("ReportId", number.into())];
        database.insert("DeviceFileEvents", cells).unwrap();
    }
    let started = Instant::now();
    assert_eq!(run(&query, &database, now()).unwrap().rows.len(), 143);
    // Printed, not asserted: a machine may be busy.
    println!("took {:?}", started.elapsed());
}

#[test]
fn two_hundred_domains_run_over_ten_thousand_rows() {
    let domains: Vec<String> = (0..200).map(|number| format!("\"host{number}.example.com\"")).collect();
    let query = NETWORK_BY_DOMAIN.replace("\"bad.example.com\", \"files.example.net\"", &domains.join(", "));
    let mut database = Database::new();
    for number in 0..10_000_i64 {
        let url = format!("https://host{number}.example.com/path?x=1");
        database.insert("DeviceNetworkEvents", [("Timestamp", now().into()), ("RemoteUrl", url.into())]).unwrap();
    }
    let started = Instant::now();
    assert_eq!(run(&query, &database, now()).unwrap().rows.len(), 200);
    println!("took {:?}", started.elapsed());
}

#[test]
fn more_rows_than_an_answer_holds_are_refused() {
    let mut database = Database::new();
    for number in 0..400_i64 {
        database.insert("AlertInfo", [("AlertId", "a".into()), ("Title", number.to_string().into())]).unwrap();
    }
    let query = "AlertInfo | project AlertId | join kind=inner (AlertInfo | project AlertId, Title) on AlertId";
    let error = run(query, &database, now()).unwrap_err();
    assert!(matches!(&error, KqlError::Limit(text) if text.contains("exceeded the allowed result size")), "{error}");
    assert_eq!(run(&format!("{query} | count"), &database, now()).unwrap().rows, [[Value::Long(160_000)]]);
    assert!(run(&format!("{query} | take 100000"), &database, now()).is_ok());
}

#[test]
fn a_query_that_multiplies_rows_without_end_is_stopped() {
    let mut database = Database::new();
    for _ in 0..3_000 {
        database.insert("AlertInfo", [("AlertId", "a".into())]).unwrap();
    }
    let query = "AlertInfo | project AlertId | join kind=inner (AlertInfo | project AlertId) on AlertId | count";
    let error = run(query, &database, now()).unwrap_err();
    assert_eq!(error, KqlError::Limit("Query stopped due to excessive resource consumption.".into()));
}

#[test]
fn partition_without_the_native_strategy_takes_sixty_four_keys() {
    let partition = |keys: usize, hint: &str| {
        let cells: Vec<String> = (0..keys).map(|key| format!("\"{key}\"")).collect();
        let query = format!("datatable(K: string)[{}] | partition {hint} by K (take 1)", cells.join(","));
        run(&query, &Database::new(), now()).map(|table| table.rows.len())
    };
    assert_eq!(partition(64, ""), Ok(64));
    assert!(matches!(partition(65, ""), Err(KqlError::Limit(_))));
    assert!(matches!(partition(65, "hint.strategy=legacy"), Err(KqlError::Limit(_))));
    assert_eq!(partition(65, "hint.strategy=native"), Ok(65));
}

#[test]
fn a_window_hides_what_lies_outside_of_it() {
    let row = |at: &str| ("DeviceInfo", json!({"Timestamp": at}));
    let database = database(&[row("2026-11-18T00:00:00Z"), row("2026-11-19T00:00:00Z"), row("2026-11-20T00:00:00Z")]);
    let count = |from: Option<&str>, to: Option<&str>| {
        let moment = |text: &str| text.parse::<Timestamp>().unwrap();
        let window = Window { from: from.map(moment), to: to.map(moment) };
        run_within("DeviceInfo | count", &database, now(), window).unwrap().rows[0][0].clone()
    };
    assert_eq!(count(None, None), Value::Long(3));
    assert_eq!(count(Some("2026-11-19T00:00:00Z"), None), Value::Long(2));
    assert_eq!(count(None, Some("2026-11-18T12:00:00Z")), Value::Long(1));
    assert_eq!(count(Some("2026-11-18T12:00:00Z"), Some("2026-11-19T12:00:00Z")), Value::Long(1));
}
