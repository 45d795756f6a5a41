//! The words of a line that iptables-save prints.

/// Splits a line at its white space. What stands in quotes is one word; a backslash there takes the meaning of the
/// character behind it (`xtables_save_string`).
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                let word = word.get_or_insert_default();
                while let Some(inner) = characters.next() {
                    match inner {
                        '"' => break,
                        '\\' => word.extend(characters.next()),
                        _ => word.push(inner),
                    }
                }
            }
            _ if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_together() {
        for (line, words) in [
            ("-A X  -j RETURN", &["-A", "X", "-j", "RETURN"][..]),
            (
                r#"--comment "a \"b\" -j DROP" -j X"#,
                &["--comment", "a \"b\" -j DROP", "-j", "X"],
            ),
            (r#"--comment "" x"#, &["--comment", "", "x"]),
            (r#""open \"#, &["open "]),
            ("", &[]),
        ] {
            assert_eq!(split(line), words, "{line}");
        }
    }
}
