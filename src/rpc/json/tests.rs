//! RFC 8259, rule by rule.

use super::fields::fields_and_members;
use super::*;
use crate::limits::MAX_JSON_DEPTH;

fn fault(text: &str) -> Option<(JsonFault, usize)> {
    validate(text).err().map(|error| (error.fault, error.at))
}

#[test]
fn takes_what_rfc_8259_takes() {
    for text in [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-12",
        "1.5",
        "1e9",
        "1E+9",
        "-0.0e-0",
        "1e999",
        r#""""#,
        r#""a""#,
        "[]",
        "{}",
        " [ ] ",
        "\t{\r\n}\n",
        "[1,2]",
        "[[],[[]]]",
        r#"{"a":{"b":[null]},"c":""}"#,
        r#"{"":0}"#,
        r#"{"a":1,"a":2}"#,
        r#""\"\\\/\b\f\n\r\t\u0000\uFFFF\ud83d\uDE00""#,
        "\"\u{7f}\u{2028}😀\"",
        "[1 , 2 ]",
        "{\"a\" : 1 , \"b\" : 2 }",
    ] {
        assert_eq!(fault(text), None, "{text}");
        assert!(serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok(), "{text}");
    }
}

#[test]
fn refuses_what_rfc_8259_refuses() {
    use JsonFault as F;
    for (text, fault_at) in [
        ("", (F::End, 0)),
        ("  ", (F::End, 2)),
        ("nul", (F::Value, 0)),
        ("nulL", (F::Value, 0)),
        ("True", (F::Value, 0)),
        ("NaN", (F::Value, 0)),
        ("'a'", (F::Value, 0)),
        ("\u{feff}1", (F::Value, 0)),
        ("01", (F::Number, 1)),
        ("-", (F::End, 1)),
        ("-a", (F::Number, 1)),
        ("+1", (F::Value, 0)),
        (".5", (F::Value, 0)),
        ("1.", (F::End, 2)),
        ("1.e1", (F::Number, 2)),
        ("1e", (F::End, 2)),
        ("1e+", (F::End, 3)),
        ("1e+x", (F::Number, 3)),
        ("0x10", (F::Trailing, 1)),
        ("1 2", (F::Trailing, 2)),
        ("[1]]", (F::Trailing, 3)),
        ("[1,]", (F::Value, 3)),
        ("[,1]", (F::Value, 1)),
        ("[1 2]", (F::Comma, 3)),
        ("[1}", (F::Comma, 2)),
        ("[", (F::End, 1)),
        ("[1", (F::End, 2)),
        ("{", (F::End, 1)),
        ("{1:2}", (F::Key, 1)),
        (r#"{"a"}"#, (F::Colon, 4)),
        (r#"{"a":}"#, (F::Value, 5)),
        (r#"{"a":1,}"#, (F::Key, 7)),
        (r#"{"a":1]"#, (F::Comma, 6)),
        (r#"{"a":1"#, (F::End, 6)),
        (r#""abc"#, (F::End, 4)),
        ("\"a\nb\"", (F::Control, 2)),
        ("\"0123456789012345678901234567890123456789\u{1f}\"", (F::Control, 41)),
        (r#""\x""#, (F::Escape, 2)),
        (r#""\u12g4""#, (F::Escape, 5)),
        (r#""\u12"#, (F::End, 5)),
        (r#""\"#, (F::End, 2)),
        (r#""\ud800""#, (F::Surrogate, 1)),
        (r#""\ud800\n""#, (F::Surrogate, 1)),
        (r#""\ud800\ud800""#, (F::Surrogate, 1)),
        (r#""\udc00""#, (F::Surrogate, 1)),
        (r#""\udc00\udc00""#, (F::Surrogate, 1)),
        ("// 1", (F::Value, 0)),
    ] {
        assert_eq!(fault(text), Some(fault_at), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
    }
}

#[test]
fn finds_the_first_special_byte_at_every_place() {
    for len in 0..80 {
        for at in 0..len {
            for special in ["\"", "\\", "\u{0}", "\u{1f}"] {
                let mut text = "a ü~\u{7f}é".repeat(20).into_bytes();
                text.truncate(len);
                text[at] = special.as_bytes()[0];
                assert_eq!(string::special(&text, 0), at, "{special:?} at {at} of {len}");
                text[at] = 0x20;
                assert_eq!(string::special(&text, 0), len);
            }
        }
    }
}

#[test]
fn follows_nesting_to_the_limit() {
    let nest = |open: &str, close: &str, levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
    for (open, close) in [("[", "]"), ("{\"k\":", "}"), ("[{\"k\":", "}]")] {
        let levels = MAX_JSON_DEPTH / open.matches(['[', '{']).count();
        assert_eq!(fault(&nest(open, close, levels)), None);
        assert!(matches!(fault(&nest(open, close, levels + 1)), Some((JsonFault::Depth, _))));
    }
    let inner = "[".repeat(MAX_JSON_DEPTH - 1) + &"]".repeat(MAX_JSON_DEPTH - 1);
    assert!(fields(&format!("{{\"a\":{inner}}}"), &["a"]).is_ok());
    assert!(fields(&format!("{{\"a\":[{inner}]}}"), &["a"]).is_err(), "the object itself is a level");
}

#[test]
fn fields_are_found_in_any_order() {
    let text = r#"{"c":[3],"a": 1 ,"x":0,"b":"2","\u0061":9,"y":0}"#;
    let found = fields(text, &["a", "b", "c", "d"]).unwrap();
    assert_eq!(found.values.map(|value| value.map(Raw::as_str)), [Some("1"), Some("\"2\""), Some("[3]"), None]);
    assert_eq!(found.duplicate.map(|key| (key.inner, key.at)), Some((r"\u0061", 31)));
    assert_eq!(found.unknown.map(|key| (key.inner, key.at)), Some(("x", 17)));
}

#[test]
fn raw_values_tell_their_kind() {
    let raw = |text| Raw::new(text).unwrap();
    assert_eq!(raw(" true\n").as_bool(), Some(true));
    assert_eq!((raw("7").as_u64(), raw("7.0").as_u64(), raw("-7").as_u64()), (Some(7), None, None));
    assert!(raw("{}").is_object() && !raw("[]").is_object() && raw("null").is_null());
    assert!(raw("1").as_string().is_none());
    assert_eq!(raw(" \"x\" ").as_string().map(RawString::as_str), Some("\"x\""));
    assert!(Raw::new("{").is_err());
}

#[test]
fn a_string_survives_escaping() {
    for text in ["", "plain", "\"", "\\", "a\"b\\c/d", "\u{0}\u{8}\u{c}\n\r\t\u{1f}", "ü😀\u{2028}", &"x\"".repeat(100)]
    {
        let mut out = Vec::new();
        push_string(text, &mut out);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(Raw::new(&out).unwrap().as_string().unwrap().decode(), text);
    }
}

#[test]
fn decodes_every_escape() {
    let raw = Raw::new(r#""\"\\\/\b\f\n\r\t\u0041\u00fc\u20ac\ud83d\ude00x""#).unwrap();
    assert_eq!(raw.as_string().unwrap().decode(), "\"\\/\u{8}\u{c}\n\r\tAü€😀x");
}

#[test]
fn splices_json_out_of_a_string() {
    let value = r#"{"a":"b\"c","d":[1,2,"ü\n"]}"#;
    let mut quoted = Vec::new();
    push_string(value, &mut quoted);
    let quoted = String::from_utf8(quoted).unwrap();
    let string = Raw::new(&quoted).unwrap().as_string().unwrap();
    let mut out = b"before ".to_vec();
    splice(string, &mut out).unwrap();
    assert_eq!(out, format!("before {value}").as_bytes());
}

#[test]
fn splices_nothing_that_is_not_json() {
    for inner in ["", "{", "1 2", "{}}", r#"{\"a\":1"#, "nul"] {
        let quoted = format!("\"{inner}\"");
        let string = Raw::new(&quoted).unwrap().as_string().unwrap();
        let mut out = b"before".to_vec();
        assert!(splice(string, &mut out).is_err(), "{inner}");
        assert_eq!(out, b"before");
    }
}

#[test]
fn members_are_known_from_the_pass_over_the_frame() {
    const KEYS: [&str; 3] = ["b", "a", "c"];
    let many = format!("{{{}}}", (0..9).map(|i| format!("\"k{i}\":{i}")).collect::<Vec<_>>().join(","));
    for (object, is_noted) in [
        ("{}", true),
        (r#"{"a":1,"b":[{"a":2}],"d":"x"}"#, true),
        (r#"{ "a" : 1 , "a" : 2 , "\u0062" : { } }"#, true),
        (r#"{"1":1,"2":2,"3":3,"4":4,"5":5,"6":6,"7":7,"8":8}"#, true),
        (many.as_str(), false),
        ("[]", false),
        ("7", false),
    ] {
        let frame = format!(r#" {{"x":0,"p": {object} }}"#);
        let (outer, members) = fields_and_members(&frame, &["p"], 0).unwrap();
        let object = outer.values[0].unwrap();
        let noted = members.fields(object, &KEYS);
        assert_eq!(noted.is_some(), is_noted, "{object:?}");
        if let Some(noted) = noted {
            assert_eq!(noted, fields(object.as_str(), &KEYS).unwrap());
        }
    }
}

#[test]
fn what_is_special_is_found_wherever_it_stands() {
    for length in [0, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300] {
        let plain = "ö".repeat(length / 2 + 1);
        let plain = &plain.as_bytes()[..length];
        assert_eq!(string::special(plain, 0), length);
        for at in 0..length {
            for byte in [b'"', b'\\', 0, 0x1f] {
                let mut text = plain.to_vec();
                text[at] = byte;
                assert_eq!(string::special(&text, 0), at);
                assert_eq!(string::special(&text, at + 1), length);
            }
        }
    }
}
