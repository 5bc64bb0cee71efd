//! The saved queries over small tables, every row asserted.

use super::*;

fn file_events() -> Database {
    let event = |at: &str, sha1: &str, sha256: &str, md5: &str, report: i64| {
        let row = json!({"Timestamp": at, "DeviceId": DEVICE_1, "DeviceName": "ws-17.example.com", "SHA1": sha1,
            "SHA256": sha256, "MD5": md5, "FileSize": 7, "ReportId": report});
        ("DeviceFileEvents", row)
    };
    database(&[
        event("2026-11-20T07:00:00Z", SHA1_A, "", "", 1),
        event("2026-11-20T08:00:00Z", &SHA1_A.to_uppercase(), "", "", 2),
        event("2026-11-20T09:00:00Z", SHA1_B, SHA256, "", 3),
        event("2026-11-20T09:30:00Z", "ffffffffffffffffffffffffffffffffffffffff", "", "", 4),
        event("2026-10-01T09:00:00Z", SHA1_A, "", "", 5),
        event("2026-11-20T09:40:00Z", "", "", "", 6),
    ])
}

#[test]
fn file_events_find_their_hash_and_a_row_hit_twice_appears_twice() {
    let expected = [
        json!([format!("sha1:{SHA1_A}"), 2]),
        json!([format!("sha1:{SHA1_A}"), 1]),
        json!([format!("sha1:{SHA1_B}"), 3]),
        json!([format!("sha256:{SHA256}"), 3]),
    ];
    for query in [FILES_BY_HASH, FILES_BY_HASH_ROWNUMBER] {
        assert_eq!(picked(query, &file_events(), &["Observable", "ReportId"]), expected);
        assert_eq!(
            column_names(query),
            "Observable:String Timestamp:DateTime DeviceId:String DeviceName:String ActionType:String \
             FileName:String FolderPath:String SHA1:String SHA256:String MD5:String FileSize:Int64 \
             FileOriginUrl:String FileOriginReferrerUrl:String FileOriginIP:String PreviousFileName:String \
             PreviousFolderPath:String InitiatingProcessFileName:String InitiatingProcessFolderPath:String \
             InitiatingProcessSHA1:String InitiatingProcessSHA256:String InitiatingProcessMD5:String \
             InitiatingProcessParentFileName:String ReportId:Int64"
        );
    }
}

#[test]
fn at_most_the_newest_hundred_rows_of_a_hash_are_kept() {
    let mut database = file_events();
    for minute in 0..150_i64 {
        let at = now() - jiff::SignedDuration::from_mins(minute + 1);
        let cells = [("Timestamp", at.into()), ("SHA1", SHA1_A.into()), ("ReportId", (1000 + minute).into())];
        database.insert("DeviceFileEvents", cells).unwrap();
    }
    for query in [FILES_BY_HASH, FILES_BY_HASH_ROWNUMBER] {
        let rows = picked(query, &database, &["Observable", "ReportId"]);
        let of_a: Vec<&Json> = rows.iter().filter(|row| row[0] == json!(format!("sha1:{SHA1_A}"))).collect();
        assert_eq!(of_a.len(), 100);
        assert_eq!(of_a[0][1], json!(1000));
        assert_eq!(of_a[99][1], json!(1099));
        assert_eq!(rows.len(), 102);
    }
}

#[test]
fn connections_find_their_address_in_plain_and_folded_form() {
    let event = |ip: &str, report: i64| {
        let row = json!({"Timestamp": "2026-11-20T07:00:00Z", "RemoteIP": ip, "RemotePort": 443, "ReportId": report});
        ("DeviceNetworkEvents", row)
    };
    let database = database(&[
        event("203.0.113.7", 1),
        event("::FFFF:203.0.113.7", 2),
        event("2001:DB8::7", 3),
        event("203.0.113.70", 4),
        event("", 5),
    ]);
    assert_eq!(
        picked(NETWORK_BY_IP, &database, &["Observable", "RemoteIP", "RemotePort", "ReportId"]),
        [
            json!(["ip:203.0.113.7", "203.0.113.7", 443, 1]),
            json!(["ip:203.0.113.7", "::FFFF:203.0.113.7", 443, 2]),
            json!(["ip:2001:db8::7", "2001:DB8::7", 443, 3]),
        ]
    );
    let columns = "Observable:String Timestamp:DateTime DeviceId:String DeviceName:String ActionType:String \
         RemoteIP:String RemotePort:Int32 RemoteUrl:String RemoteIPType:String LocalIP:String LocalPort:Int32 \
         Protocol:String InitiatingProcessFileName:String InitiatingProcessFolderPath:String \
         InitiatingProcessSHA1:String InitiatingProcessSHA256:String InitiatingProcessMD5:String \
         InitiatingProcessParentFileName:String ReportId:Int64";
    assert_eq!(column_names(NETWORK_BY_IP), columns);
    assert_eq!(column_names(NETWORK_BY_DOMAIN), columns);
}

#[test]
fn connections_find_the_exact_domain_and_not_its_neighbours() {
    let event = |url: &str, report: i64| {
        let row = json!({"Timestamp": "2026-11-20T07:00:00Z", "RemoteUrl": url, "ReportId": report});
        ("DeviceNetworkEvents", row)
    };
    let database = database(&[
        event("https://bad.example.com/a/b?c=d", 1),
        event("BAD.example.com", 2),
        event("bad.example.com:8443", 3),
        event("https://sub.bad.example.com/", 4),
        event("https://notbad.example.com/", 5),
        event("https://good.example.com/?u=https://bad.example.com/", 6),
        event("https://user@files.example.net:8080/x", 7),
        event("", 8),
    ]);
    assert_eq!(
        picked(NETWORK_BY_DOMAIN, &database, &["Observable", "ReportId"]),
        [
            json!(["domain:bad.example.com", 1]),
            json!(["domain:bad.example.com", 2]),
            json!(["domain:bad.example.com", 3]),
            json!(["domain:files.example.net", 7]),
        ]
    );
}

#[test]
fn alerts_are_found_by_every_kind_of_observable_once_each() {
    let mde = "Microsoft Defender for Endpoint";
    let evidence = |alert: &str, at: &str, source: &str, sha1: &str, ip: &str, url: &str| {
        let row = json!({"AlertId": alert, "Timestamp": at, "ServiceSource": source, "SHA1": sha1, "RemoteIP": ip,
            "RemoteUrl": url});
        ("AlertEvidence", row)
    };
    let info = |alert: &str, at: &str, title: &str| {
        let row = json!({"AlertId": alert, "Timestamp": at, "ServiceSource": mde, "Title": title,
            "Category": "Malware", "Severity": "High", "DetectionSource": "EDR", "AttackTechniques": ""});
        ("AlertInfo", row)
    };
    let database = database(&[
        evidence("da1", "2026-11-20T09:00:00Z", mde, SHA1_A, "", ""),
        evidence("da1", "2026-11-20T09:05:00.5Z", mde, SHA1_A, "203.0.113.7", ""),
        evidence("da2", "2026-11-20T09:06:00Z", mde, "", "", "https://bad.example.com/x"),
        evidence("da2", "2026-11-20T09:07:00Z", mde, "", "", "https://sub.bad.example.com/x"),
        evidence("da3", "2026-11-20T09:08:00Z", "Another product", SHA1_A, "", ""),
        evidence("da4", "2026-11-20T09:09:00Z", mde, SHA1_A, "", ""),
        evidence("da1", "2026-10-01T09:09:00Z", mde, SHA1_A, "", ""),
        info("da1", "2026-11-20T08:00:00Z", "old title"),
        info("da1", "2026-11-20T08:30:00Z", "new title"),
        info("da2", "2026-11-20T09:06:00Z", "title"),
    ]);
    let (columns, rows) = answer(ALERTS, &database);
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Observable",
            "AlertId",
            "Timestamp",
            "LastEvidence",
            "Title",
            "Category",
            "Severity",
            "DetectionSource",
            "AttackTechniques"
        ]
    );
    let row = |observable: &str, alert: &str, at: &str, last: &str, title: &str| {
        json!([observable, alert, at, last, title, "Malware", "High", "EDR", ""])
    };
    assert_eq!(
        rows,
        [
            // da4 has evidence but no alert, so the inner join drops it.
            row(&format!("sha1:{SHA1_A}"), "da1", "2026-11-20T08:30:00Z", "2026-11-20T09:05:00.5Z", "new title"),
            row("ip:203.0.113.7", "da1", "2026-11-20T08:30:00Z", "2026-11-20T09:05:00.5Z", "new title"),
            row("domain:bad.example.com", "da2", "2026-11-20T09:06:00Z", "2026-11-20T09:06:00Z", "title"),
        ]
    );
}

#[test]
fn alert_evidence_comes_back_for_the_alerts_asked_for() {
    let row = |alert: &str, kind: &str| {
        let row = json!({"AlertId": alert, "Timestamp": "2026-11-20T09:05:58.42Z", "EntityType": kind,
            "AdditionalFields": "{\"OSFamily\":\"Windows\"}"});
        ("AlertEvidence", row)
    };
    let database = database(&[
        row("da000000000000000001_-1234567890", "Machine"),
        row("DA000000000000000001_-1234567890", "Process"),
        row("da000000000000000003_1", "Machine"),
    ]);
    assert_eq!(
        picked(ALERT_EVIDENCE, &database, &["AlertId", "Timestamp", "EntityType", "FileName", "AdditionalFields"]),
        [json!([
            "da000000000000000001_-1234567890",
            "2026-11-20T09:05:58.42Z",
            "Machine",
            "",
            "{\"OSFamily\":\"Windows\"}"
        ])]
    );
}

#[test]
fn device_context_gives_one_row_per_device_known_or_not() {
    let addresses = r#"[{"IPAddress":"192.0.2.17","SubnetPrefix":24,"AddressType":"Private"}]"#;
    let info = |at: &str, platform: &str, build: Option<i64>| {
        let row = json!({"DeviceId": DEVICE_1, "DeviceName": "ws-17.example.com", "Timestamp": at,
            "OSPlatform": platform, "OSBuild": build});
        ("DeviceInfo", row)
    };
    let adapter = |at: &str, mac: &str, status: &str, addresses: &str| {
        let row = json!({"DeviceId": DEVICE_1, "Timestamp": at, "MacAddress": mac, "NetworkAdapterStatus": status,
            "NetworkAdapterType": "Ethernet", "IPAddresses": addresses});
        ("DeviceNetworkInfo", row)
    };
    let database = database(&[
        info("2026-11-20T07:00:00Z", "Windows10", Some(19045)),
        info("2026-11-20T08:47:48.3622932Z", "Windows11", Some(26100)),
        info("2026-11-20T09:00:00Z", "", None),
        adapter("2026-11-20T08:00:00Z", "00005E005311", "Up", "[]"),
        adapter("2026-11-20T08:40:00Z", "00005E005311", "Up", addresses),
        adapter("2026-11-20T08:41:00Z", "00005E005312", "Down", addresses),
        adapter("2026-11-20T08:41:00Z", "00005E005313", "up", ""),
        adapter("2026-11-20T08:41:00Z", "", "Up", addresses),
    ]);
    let expected = format!(
        r#"[{{"mac":"00005E005311","type":"Ethernet","seen":"2026-11-20T08:40:00.0000000Z","addresses":{addresses}}},{{"mac":"00005E005313","type":"Ethernet","seen":"2026-11-20T08:41:00.0000000Z","addresses":null}}]"#
    );
    let names = ["DeviceId", "DeviceName", "OSPlatform", "OSBuild", "OsTimestamp", "Adapters"];
    assert_eq!(
        picked(DEVICE_CONTEXT, &database, &names),
        [
            json!([DEVICE_1, "ws-17.example.com", "Windows11", 26100, "2026-11-20T08:47:48.3622932Z", expected]),
            json!([DEVICE_2, "", "", null, null, ""]),
        ]
    );
    assert_eq!(
        column_names(DEVICE_CONTEXT),
        "DeviceId:String DeviceName:String OSPlatform:String OSArchitecture:String OSVersion:String \
         OSVersionInfo:String OSBuild:Int64 PublicIP:String OnboardingStatus:String SensorHealthState:String \
         ExposureLevel:String MachineGroup:String MitigationStatus:String OsTimestamp:DateTime Adapters:String"
    );
}

#[test]
fn devices_by_address_names_the_nearest_report_of_each_device() {
    let report = |device: &str, at: &str, addresses: &[&str]| {
        let addresses: Vec<Json> = addresses.iter().map(|ip| json!({"IPAddress": ip})).collect();
        let row = json!({"DeviceId": device, "DeviceName": "ws", "Timestamp": at, "MacAddress": "00005E005311",
            "NetworkAdapterStatus": "Up", "IPAddresses": Json::from(addresses).to_string()});
        ("DeviceNetworkInfo", row)
    };
    let database = database(&[
        report(DEVICE_1, "2026-11-20T08:53:08Z", &["192.0.2.17", "192.0.2.18"]),
        report(DEVICE_1, "2026-11-20T07:53:08Z", &["192.0.2.17"]),
        report(DEVICE_2, "2026-11-20T09:00:01Z", &["192.0.2.17"]),
        report(DEVICE_2, "2026-11-20T08:29:59Z", &["192.0.2.42"]),
        report(DEVICE_2, "2026-11-20T10:30:00Z", &["192.0.2.170"]),
    ]);
    assert_eq!(
        answer(DEVICES_BY_IP, &database).1,
        [
            json!(["host-17", "192.0.2.17", DEVICE_2, 1, "2026-11-20T09:00:01Z", "ws", "00005E005311"]),
            json!(["host-17", "192.0.2.17", DEVICE_1, 412, "2026-11-20T08:53:08Z", "ws", "00005E005311"]),
        ]
    );
    assert_eq!(
        column_names(DEVICES_BY_IP),
        "HostKey:String Ip:String DeviceId:String DistanceSeconds:Int64 Timestamp:DateTime DeviceName:String \
         MacAddress:String"
    );
}

#[test]
fn isolation_is_read_from_the_newest_row() {
    let row = |device: &str, at: &str, status: &str| {
        ("DeviceInfo", json!({"DeviceId": device, "DeviceName": "ws", "Timestamp": at, "MitigationStatus": status}))
    };
    let isolated = r#"{"Isolated":"true"}"#;
    let database = database(&[
        row(DEVICE_1, "2026-11-20T08:40:00Z", ""),
        row(DEVICE_1, "2026-11-20T09:40:00Z", isolated),
        row(DEVICE_2, "2026-11-20T09:40:00Z", isolated),
    ]);
    assert_eq!(answer(ISOLATION, &database).1, [json!([DEVICE_1, "ws", "2026-11-20T09:40:00Z", "true", isolated])]);
    let none = ISOLATION.replace(DEVICE_1, "3333333333333333333333333333333333333333");
    assert_eq!(answer(&none, &database).1, Vec::<Json>::new());
    let only_old = super::database(&[row(DEVICE_1, "2026-11-20T08:40:00Z", "")]);
    assert_eq!(answer(ISOLATION, &only_old).1, [json!([DEVICE_1, "ws", "2026-11-20T08:40:00Z", "false", ""])]);
}

#[test]
fn the_health_probe_returns_one_moment_at_most() {
    assert_eq!(answer(HEALTH, &Database::new()).1, Vec::<Json>::new());
    let row = ("DeviceInfo", json!({"Timestamp": "2026-11-20T09:40:00Z"}));
    let database = database(&[row.clone(), row]);
    assert_eq!(answer(HEALTH, &database).1, [json!(["2026-11-20T09:40:00Z"])]);
}
