//! Literals, above all hostile ones: what was escaped reads back equal.

use proptest::prelude::*;

use super::*;

/// Contract 6.6, rule 2: written out here so that it checks the product's renderer instead of repeating it.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for c in text.chars() {
        match c {
            '\\' => literal.push_str("\\\\"),
            '"' => literal.push_str("\\\""),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                literal.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            c => literal.push(c),
        }
    }
    literal + "\""
}

fn read_back(text: &str) -> [Json; 3] {
    let literal = literal(text);
    [
        value(&literal),
        value(&format!("tostring(dynamic([{literal}])[0])")),
        rows(&format!("let S = dynamic([{literal}]); print A = S | mv-expand A to typeof(string)"))[0][0].clone(),
    ]
}

#[test]
fn hostile_strings_read_back_equal() {
    let hostile = [
        "\"",
        "\\",
        "\\\"",
        "'",
        "\"]); DeviceInfo | take 1 //",
        "\") or true or (\"",
        "x\" | project-away SHA1 //",
        "// comment",
        "/* */",
        "\n| take 0",
        "\r\n",
        "\t",
        "\0",
        "\u{1b}[2J",
        "\u{85}",
        "\u{2028}",
        "\u{2029}",
        "```",
        "\\u0022",
        "${x} {{y}} %s é \u{1F600} \u{202E}",
    ];
    assert_eq!(hostile.len(), 20);
    for text in hostile {
        assert_eq!(read_back(text), [json!(text), json!(text), json!(text)], "{text:?}");
    }
}

#[test]
fn a_hostile_string_in_a_set_matches_itself_and_nothing_else() {
    for text in ["\") or true or (\"", "\"]) | where true //", "\\"] {
        let condition = format!("where A in~ (dynamic([{}]))", literal(text));
        let query = format!("datatable(A: string)[{}, \"other\", \"\"] | {condition}", literal(text));
        assert_eq!(rows(&query), json!([[text]]));
    }
}

#[test]
fn raw_text_in_quotes_is_what_leaves_the_literal() {
    let pasted = "datatable(A: string)['a', 'b'] | where A == 'x' or true or A == 'y'";
    assert_eq!(rows(pasted), json!([["a"], ["b"]]));
    assert!(matches!(run("print A = 'O'Brien'", &Database::new(), now()), Err(KqlError::Syntax(_))));
}

#[test]
fn every_form_of_literal_is_read() {
    for (expression, expected) in [
        ("'single'", json!("single")),
        ("@\"C:\\dir\\\"", json!("C:\\dir\\")),
        ("\"two\" 'parts'", json!("twoparts")),
        ("-5", json!(-5)),
        ("1.5", json!(1.5)),
        ("true", json!(true)),
        ("long(null)", json!(null)),
        ("string(null)", json!("")),
        ("datetime(2026-11-20T09:00:00.1234567Z)", json!("2026-11-20T09:00:00.1234567Z")),
        ("datetime(2026-11-20 09:00)", json!("2026-11-20T09:00:00Z")),
        ("tostring(90m)", json!("01:30:00")),
        (
            "tostring(dynamic({\"b\": [1, -2.5, null, true], 'a': 'x'}))",
            json!("{\"b\":[1,-2.5,null,true],\"a\":\"x\"}"),
        ),
    ] {
        assert_eq!(value(expression), expected, "{expression}");
    }
}

proptest! {
    #[test]
    fn any_string_reads_back_equal(text in any::<String>()) {
        prop_assert_eq!(read_back(&text), [json!(text), json!(text), json!(text)]);
    }

    #[test]
    fn arbitrary_text_is_answered_or_refused_but_never_breaks(text in any::<String>()) {
        let _ = run(&text, &Database::new(), now());
        let _ = run(&format!("DeviceInfo | where {text}"), &Database::new(), now());
    }
}
