//! JSON with comments and commas behind the last entry, as the configurations of the guides have them.

/// The same text as JSON: what is no JSON becomes blanks, so that lines and columns stay where they are.
pub(super) fn plain(text: &str) -> String {
    let text = text.trim_start_matches('\u{feff}');
    let mut out = String::with_capacity(text.len());
    // Where a comma is that may turn out to be the last one.
    let mut comma = None;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let comment = match character {
            '#' => Some(false),
            '/' if text[at + 1..].starts_with('/') => Some(false),
            '/' if text[at + 1..].starts_with('*') => Some(true),
            _ => None,
        };
        if let Some(block) = comment {
            let rest = &text[at..];
            let length = match block {
                true => rest
                    .get(2..)
                    .and_then(|inner| inner.find("*/"))
                    .map_or(rest.len(), |end| end + 4),
                false => rest.find('\n').unwrap_or(rest.len()),
            };
            blank(&rest[..length], &mut out);
            while characters
                .next_if(|(next, _)| *next < at + length)
                .is_some()
            {}
            continue;
        }
        match character {
            '"' => {
                comma = None;
                out.push('"');
                while let Some((_, inner)) = characters.next() {
                    out.push(inner);
                    match inner {
                        '"' => break,
                        '\\' => out.extend(characters.next().map(|(_, escaped)| escaped)),
                        _ => {}
                    }
                }
            }
            ',' => {
                comma = Some(out.len());
                out.push(',');
            }
            '}' | ']' => {
                if let Some(comma) = comma.take() {
                    out.replace_range(comma..=comma, " ");
                }
                out.push(character);
            }
            _ => {
                if !character.is_whitespace() {
                    comma = None;
                }
                out.push(character);
            }
        }
    }
    out
}

/// As many blanks as characters; line ends stay.
fn blank(text: &str, out: &mut String) {
    out.extend(
        text.chars()
            .map(|character| if character == '\n' { '\n' } else { ' ' }),
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn comments_and_last_commas_go_and_places_stay() {
        let text = "\u{feff}// head\n{\n  \"a\": [1, 2, /* three, */ ], # two\n  \"url\": \"http://x/*y*/ # z\", // \"\n  \"q\": \"\\\"//\",\n}\n";
        let plain = plain(text);
        let value: Value = serde_json::from_str(&plain).unwrap();
        assert_eq!(
            value,
            json!({ "a": [1, 2], "url": "http://x/*y*/ # z", "q": "\"//" })
        );
        for (line, before) in plain
            .lines()
            .zip(text.trim_start_matches('\u{feff}').lines())
        {
            assert_eq!(line.chars().count(), before.chars().count());
        }
    }

    #[test]
    fn what_is_not_closed_ends_with_the_text() {
        for text in ["/*", "/", "\"", "\"\\", "//", "/**", "/*/"] {
            let _ = plain(text);
        }
        assert_eq!(plain("[1,]"), "[1 ]");
        assert_eq!(plain("[,1]"), "[,1]");
        assert_eq!(plain("[1,/**/]"), "[1     ]");
    }

    proptest! {
        #[test]
        fn json_stays_as_it_is(text in "\\PC{0,20}", number: i32) {
            let value = json!({ text.clone(): [number, text.clone(), { "x": text }] });
            let written = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(plain(&written), written);
        }

        #[test]
        fn any_text_has_an_end(text in "([/*\"\\\\#,\\]}\n a\u{e9}]){0,30}") {
            let plain = plain(&text);
            prop_assert_eq!(plain.lines().count(), text.lines().count());
        }
    }
}
