//! The JSON Schema of the configuration, made of what reads it: the keys that are asked for, what their readers take,
//! and the documentation of the fields they go into.

use std::ops::RangeInclusive;

use documented::DocumentedFields;
use serde_json::{Map, Value, json};

use super::read::Key;
use super::{
    Api, Bypass, Check, Config, Dns, Exempt, Gateway, Group, Lan, Log, Outbound, Proxy, Rule,
    Sniff, Stage, Tcp, Udp, Wan, parse,
};

/// The dialect (JSON Schema 2020-12).
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What a key may be.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// `true` or `false`.
    Boolean,
    /// A whole number in a range.
    Integer(RangeInclusive<i128>),
    /// A whole number that is not negative.
    Number,
    /// A string such as the example.
    Text {
        /// One that is accepted, or shows the form.
        example: &'static str,
    },
    /// A string such as `10s`.
    Duration,
    /// One of these strings.
    Words(Vec<&'static str>),
    /// One of several shapes.
    Either(Vec<Shape>),
    /// An array.
    List(Box<Shape>),
    /// An array of at least one element.
    Some(Box<Shape>),
    /// `[key]`.
    Table,
    /// Any number of `[[key]]`.
    Tables,
}

impl Shape {
    /// As a schema. Of a table without what is in it.
    fn schema(&self) -> Value {
        match self {
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Integer(range) => {
                let bound = |number: &i128| i64::try_from(*number).ok();
                let (least, most) = (bound(range.start()), bound(range.end()));
                json!({ "type": "integer", "minimum": least, "maximum": most })
            }
            Self::Number => json!({ "type": "integer", "minimum": 0 }),
            Self::Text { example } => json!({ "type": "string", "examples": [example] }),
            Self::Duration => json!({ "type": "string", "examples": ["10s", "1h30m"] }),
            Self::Words(words) => json!({ "enum": words }),
            Self::Either(shapes) => {
                json!({ "anyOf": shapes.iter().map(Self::schema).collect::<Vec<_>>() })
            }
            Self::List(one) => json!({ "type": "array", "items": one.schema() }),
            Self::Some(one) => json!({ "type": "array", "items": one.schema(), "minItems": 1 }),
            Self::Table => json!({ "type": "object", "additionalProperties": false }),
            Self::Tables => json!({ "type": "array", "items": Self::Table.schema() }),
        }
    }
}

/// The JSON Schema of what [`Config::parse`] reads.
///
/// A file that is refused by it is refused by `parse`. The reverse does not hold: whether a URL or a prefix is one, and
/// whether names that are used exist, it cannot tell.
#[must_use]
pub fn schema() -> Value {
    let keys = parse::keys();
    let mut root = table(&keys, "", None);
    root.insert("$schema".to_owned(), json!(DIALECT));
    root.insert(
        "title".to_owned(),
        json!("The configuration of tproxy-bpf (TOML)"),
    );
    Value::Object(root)
}

/// The table of this name, as errors call it, with all that is in it.
fn table(keys: &[(String, Key)], name: &str, defaults: Option<&Value>) -> Map<String, Value> {
    let own = keys.iter().filter(|(table, _)| table == name);
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (_, key) in own {
        let mut schema = match key.shape.schema() {
            Value::Object(schema) => schema,
            _ => Map::new(),
        };
        let in_force =
            defaults.map_or_else(|| default_of(key.name), |all| all.get(key.name).cloned());
        match key.shape {
            Shape::Table => schema = table(keys, &format!("[{}]", key.name), in_force.as_ref()),
            Shape::Tables => {
                let one = table(keys, &format!("[[{}]]", key.name), Some(&Value::Null));
                schema.insert("items".to_owned(), Value::Object(one));
            }
            _ => {
                if let Some(default) = in_force.filter(|value| !value.is_null()) {
                    schema.insert("default".to_owned(), default);
                }
            }
        }
        if let Some(text) = description(name, key.name) {
            schema.insert("description".to_owned(), json!(text));
        }
        if key.required {
            required.push(key.name);
        }
        properties.insert(key.name.to_owned(), Value::Object(schema));
    }
    let mut schema = match Shape::Table.schema() {
        Value::Object(schema) => schema,
        _ => Map::new(),
    };
    schema.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema
}

/// What an outermost key is if it is left out; of a table, what is the same in all stages.
fn default_of(key: &str) -> Option<Value> {
    if key == "dns" {
        return serde_json::to_value(Dns::default()).ok();
    }
    let mut presets = Stage::ALL.map(|stage| {
        let preset = serde_json::to_value(Config::preset(stage)).ok()?;
        preset.get(key).cloned()
    });
    if key == "stage" {
        return presets[Stage::default() as usize - 1].take();
    }
    let mut presets = presets.into_iter().flatten();
    let mut first = presets.next()?;
    for other in presets {
        match &mut first {
            Value::Object(entries) => entries.retain(|key, value| other.get(key) == Some(value)),
            value if *value != other => return None,
            _ => {}
        }
    }
    Some(first)
}

/// What the documentation says of each key of a table. It begins with the key as it is written in a file.
fn documentation(table: &str) -> &'static [&'static str] {
    match table {
        "" => Config::FIELD_DOCS,
        "[lan]" => Lan::FIELD_DOCS,
        "[wan]" => Wan::FIELD_DOCS,
        "[[outbound]]" => Outbound::FIELD_DOCS,
        "[[group]]" => Group::FIELD_DOCS,
        "[check]" => Check::FIELD_DOCS,
        "[[rule]]" => Rule::FIELD_DOCS,
        "[bypass]" => Bypass::FIELD_DOCS,
        "[dns]" => Dns::FIELD_DOCS,
        "[sniff]" => Sniff::FIELD_DOCS,
        "[exempt]" => Exempt::FIELD_DOCS,
        "[tcp]" => Tcp::FIELD_DOCS,
        "[udp]" => Udp::FIELD_DOCS,
        "[gateway]" => Gateway::FIELD_DOCS,
        "[proxy]" => Proxy::FIELD_DOCS,
        "[api]" => Api::FIELD_DOCS,
        "[log]" => Log::FIELD_DOCS,
        _ => &[],
    }
}

/// The text about a key.
fn description(table: &str, key: &str) -> Option<String> {
    documentation(table).iter().find_map(|text| {
        let (name, text) = text.split_once("`: ")?;
        let name = name.trim_start_matches(['`', '[']).trim_end_matches(']');
        (name == key).then(|| text.replace('\n', " "))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    use jsonschema::Validator;

    use super::super::ConfigError;
    use super::*;

    static VALIDATOR: LazyLock<Validator> =
        LazyLock::new(|| jsonschema::validator_for(&schema()).expect("a schema of 2020-12"));

    /// The TOML text is as the schema says.
    pub fn assert_fits(text: &str) {
        let value: Value = toml::from_str(text).expect("TOML");
        if let Err(error) = VALIDATOR.validate(&value) {
            panic!("{}: {error}\n{text}", error.instance_path());
        }
    }

    /// What people copy: each configuration of the pages, and of the package. A page also shows pieces, such as rules
    /// for outbounds that stand elsewhere, so they need not be whole.
    #[test]
    fn the_configurations_of_pages_and_package_fit() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = vec![root.join("README.md"), root.join("ARCHITECTURE.md")];
        let mut folders = vec![root.join("docs"), root.join("packaging")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder").flatten() {
                let path: PathBuf = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        let mut seen = 0;
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("md") => {
                    for block in text.split("```toml\n").skip(1) {
                        assert_fits(block.split("```").next().unwrap_or_default());
                        seen += 1;
                    }
                }
                // The book's own.
                Some("toml") if file.ends_with("book.toml") => {}
                Some("toml") => {
                    assert_fits(&text);
                    seen += 1;
                }
                _ => {}
            }
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn what_the_program_refuses_by_its_form_is_refused() {
        for text in [
            "stage = 5",
            "stage = \"2\"",
            "on_proxy_down = \"reject\"",
            "lan = 1",
            "[lan]\ninterface = [\"eth0\"]",
            "[lan]\ninterfaces = \"eth0\"",
            "[[outbound]]\nname = \"a\"",
            "[outbound]\nname = \"a\"\nurl = \"direct://\"",
            "[dns]\nhijack = true",
            "[[rule]]\noutbound = \"direct\"\nport = []",
            "[[rule]]\noutbound = \"direct\"\nport = [true]",
            "[proxy]\nport = 65536",
            "[tcp]\nidle = 10",
        ] {
            let value: Value = toml::from_str(text).expect("TOML");
            assert!(!VALIDATOR.is_valid(&value), "{text}");
            assert!(!findings(text).is_empty(), "{text}");
        }
    }

    /// Each key of the schema, with its table as errors call it.
    fn keys_of(schema: &Value) -> BTreeSet<(String, String)> {
        let mut keys = BTreeSet::new();
        for (name, one) in schema["properties"].as_object().expect("an object") {
            keys.insert((String::new(), name.clone()));
            let inner = [
                (format!("[{name}]"), &one["properties"]),
                (format!("[[{name}]]"), &one["items"]["properties"]),
            ];
            for (table, properties) in inner {
                for key in properties.as_object().into_iter().flatten() {
                    keys.insert((table.clone(), key.0.clone()));
                }
            }
        }
        keys
    }

    fn findings(text: &str) -> Vec<String> {
        match Config::parse(text, Path::new("c.toml")) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Invalid(findings)) => findings
                .list
                .iter()
                .map(|finding| {
                    let help = finding.help.as_deref().unwrap_or_default();
                    format!("{}; {help}", finding.message)
                })
                .collect(),
            Err(error) => panic!("{error}"),
        }
    }

    /// What the program says that it knows, when it is asked for a key that nobody has.
    #[test]
    fn the_program_and_the_schema_know_the_same_keys() {
        let schema = schema();
        let keys = keys_of(&schema);
        assert!(keys.len() > 60, "{keys:?}");
        let tables: BTreeSet<&str> = keys.iter().map(|(table, _)| table.as_str()).collect();
        for table in tables {
            let said = findings(&format!("{table}\nzzzzzzzzzzzzzzzz = 1\n"));
            let (_, list) = said
                .iter()
                .find_map(|text| text.split_once("known here: "))
                .unwrap_or_else(|| panic!("{table}: {said:?}"));
            let known: BTreeSet<&str> = list.split(", ").collect();
            let in_schema: BTreeSet<&str> = keys
                .iter()
                .filter(|(other, _)| other == table)
                .map(|(_, key)| key.as_str())
                .collect();
            assert_eq!(known, in_schema, "{table}");
        }
    }

    #[test]
    fn each_key_is_described_and_each_description_is_of_a_key() {
        let keys = parse::keys();
        for (table, key) in &keys {
            let text = description(table, key.name);
            let text =
                text.unwrap_or_else(|| panic!("nothing is said of {} in {table:?}", key.name));
            assert!(
                !text.is_empty() && !text.contains("[`"),
                "{}: {text}",
                key.name
            );
        }
        let tables: BTreeSet<&str> = keys.iter().map(|(table, _)| table.as_str()).collect();
        let described: usize = tables.iter().map(|table| documentation(table).len()).sum();
        assert_eq!(described, keys.len());
    }

    #[test]
    fn defaults_are_those_of_the_program() {
        let schema = schema();
        for (pointer, value) in [
            ("/stage", json!(2)),
            ("/on_proxy_down", json!("pass")),
            ("/tcp/properties/idle", json!("2h")),
            ("/dns/properties/cache", json!(10_000)),
            ("/lan/properties/sources", json!([])),
        ] {
            let found = schema.pointer(&format!("/properties{pointer}/default"));
            assert_eq!(found, Some(&value), "{pointer}");
        }
        // These depend on the stage, or have none.
        for pointer in [
            "/bypass/properties/private",
            "/wan/properties/interfaces",
            "/dns/properties/proxy/x",
        ] {
            let found = schema.pointer(&format!("/properties{pointer}/default"));
            assert_eq!(found, None, "{pointer}");
        }
    }

    /// What is a default is accepted when it is written.
    #[test]
    fn a_default_fits_its_own_schema() {
        let schema = schema();
        let mut seen = 0;
        let tables = schema["properties"].as_object().expect("an object");
        let inner = tables
            .values()
            .filter_map(|table| table["properties"].as_object());
        for properties in inner.chain([tables]) {
            for (key, one) in properties {
                let Some(default) = one.get("default") else {
                    continue;
                };
                // An empty list is left out, where one element is wanted.
                let validator = jsonschema::validator_for(one).expect("a schema");
                assert!(validator.is_valid(default), "{key}: {default}");
                seen += 1;
            }
        }
        assert!(seen > 25, "{seen}");
    }
}
