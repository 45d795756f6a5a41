//! Writes TOML: whatever a text holds, it stays a string, and whatever a comment holds, it stays in its line.

use std::fmt::Write as _;

use super::notes::clean;

/// Lists up to this length (in characters) stand in one line.
const ONE_LINE: usize = 100;
/// Comments are broken behind so many characters.
const COMMENT: usize = 110;

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A string.
    Text(String),
    /// A whole number.
    Number(u64),
    /// True or false.
    Flag(bool),
    /// An array.
    List(Vec<Value>),
}

impl Value {
    /// An array of strings.
    pub fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Self {
        let texts = items.into_iter().map(|item| Self::Text(item.to_string()));
        Self::List(texts.collect())
    }

    fn written(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::written).collect();
                let length: usize = items.iter().map(|item| item.chars().count() + 2).sum();
                if length <= ONE_LINE {
                    format!("[{}]", items.join(", "))
                } else {
                    let lines = items.iter().map(|item| format!("    {item},\n"));
                    format!("[\n{}]", lines.collect::<String>())
                }
            }
        }
    }
}

/// A basic string of TOML, in one line.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            _ if clean(character.encode_utf8(&mut [0; 4])).starts_with(character) => {
                out.push(character);
            }
            _ => {
                let _ = write!(out, "\\U{:08X}", u32::from(character));
            }
        }
    }
    out.push('"');
    out
}

/// A document that grows line by line.
#[derive(Debug, Default)]
pub(super) struct Document(String);

impl Document {
    /// A comment, broken into lines. `first` stands before its first line, and as much room before the others.
    pub fn comment_from(&mut self, first: &str, text: &str) {
        let mut line = first.to_owned();
        let indent = " ".repeat(first.chars().count());
        let mut empty = true;
        for word in clean(text).split_whitespace() {
            if !empty && line.chars().count() + word.chars().count() > COMMENT {
                let _ = writeln!(self.0, "# {}", line.trim_end());
                line.clone_from(&indent);
            }
            line.push_str(word);
            line.push(' ');
            empty = false;
        }
        let _ = writeln!(self.0, "{}", format!("# {line}").trim_end());
    }

    /// A comment.
    pub fn comment(&mut self, text: &str) {
        self.comment_from("", text);
    }

    /// A line that a person may want to use: it is commented out.
    pub fn suggestion(&mut self, key: &str, value: &Value, why: &str) {
        let line = format!("{key} = {}", value.written()).replace('\n', " ");
        let _ = writeln!(self.0, "# {line}    # {}", clean(why));
    }

    /// `[name]` or, with brackets in the name, `[[name]]`.
    pub fn section(&mut self, name: &str) {
        let _ = writeln!(self.0, "[{name}]");
    }

    /// A key and its value.
    pub fn key(&mut self, key: &str, value: &Value) {
        let _ = writeln!(self.0, "{key} = {}", value.written());
    }

    /// A blank line.
    pub fn gap(&mut self) {
        self.0.push('\n');
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_lists_have_a_line_for_each_entry() {
        let mut document = Document::default();
        document.key("short", &Value::texts(["a", "b"]));
        document.key("long", &Value::texts((0..3).map(|_| "x".repeat(50))));
        let line = format!("    \"{}\",\n", "x".repeat(50));
        assert_eq!(
            document.finish(),
            format!("short = [\"a\", \"b\"]\nlong = [\n{line}{line}{line}]\n")
        );
    }

    #[test]
    fn comments_are_broken_between_words() {
        let mut document = Document::default();
        document.comment_from("- ", &"word ".repeat(40));
        let text = document.finish();
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.chars().count() < 116));
        assert!(text.starts_with("# - word"), "{text}");
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_value(text in "(\\PC|[\"\\\\\n\r\t#=\\[\\]\u{0}\u{7f}\u{85}\u{2028}\u{202e}]){0,40}") {
            let mut document = Document::default();
            document.comment(&text);
            document.comment_from("  * ", &text);
            document.suggestion("url", &Value::Text(text.clone()), &text);
            document.section("lan");
            document.key("one", &Value::Text(text.clone()));
            document.key("many", &Value::texts([&text, &text]));
            document.key("last", &Value::Number(7));
            let table: toml::Table = toml::from_str(&document.finish()).unwrap();
            prop_assert_eq!(table.len(), 1);
            let lan = table["lan"].as_table().unwrap();
            prop_assert_eq!(lan.len(), 3);
            prop_assert_eq!(lan["one"].as_str(), Some(&*text));
            prop_assert_eq!(lan["many"].as_array().unwrap()[1].as_str(), Some(&*text));
        }
    }
}
