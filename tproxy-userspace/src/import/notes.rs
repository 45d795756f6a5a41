//! What became of the input, for people.

use std::fmt;

/// More of one kind are counted, not kept.
const MOST: usize = 200;

/// What was made of the files, in sentences. They hold no passwords and nothing that a terminal takes for a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// What was taken over.
    pub understood: Vec<String>,
    /// What needs no line in the configuration.
    pub needless: Vec<String>,
    /// What was not taken over, and why.
    pub left_out: Vec<String>,
    /// What a person has to fill in or to do.
    pub open: Vec<String>,
}

/// The headings, in their order.
const HEADINGS: [&str; 4] = [
    "Taken over",
    "Needs no line here",
    "Not taken over",
    "For you to do",
];

impl Notes {
    /// Something was taken over.
    pub(super) fn understood(&mut self, text: impl AsRef<str>) {
        add(&mut self.understood, text.as_ref());
    }

    /// Something needs no line any more.
    pub(super) fn needless(&mut self, text: impl AsRef<str>) {
        add(&mut self.needless, text.as_ref());
    }

    /// Something was not taken over.
    pub(super) fn left_out(&mut self, text: impl AsRef<str>) {
        add(&mut self.left_out, text.as_ref());
    }

    /// Something is left to a person.
    pub(super) fn open(&mut self, text: impl AsRef<str>) {
        add(&mut self.open, text.as_ref());
    }

    /// The lists with their headings, those that are empty left out.
    pub fn lists(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        let lists = [&self.understood, &self.needless, &self.left_out, &self.open];
        HEADINGS
            .into_iter()
            .zip(lists.map(Vec::as_slice))
            .filter(|(_, list)| !list.is_empty())
    }
}

/// A heading a list, and its sentences below it.
impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (heading, list) in self.lists() {
            writeln!(f, "{heading}:")?;
            for note in list {
                writeln!(f, "  {note}")?;
            }
        }
        Ok(())
    }
}

fn add(list: &mut Vec<String>, text: &str) {
    let text = clean(text);
    if list.contains(&text) || list.len() > MOST {
        return;
    }
    if list.len() == MOST {
        return list.push("… and more of this kind".to_owned());
    }
    list.push(text);
}

/// A text of any origin as one line without anything that is not seen: it stands in comments and on terminals.
pub(super) fn clean(text: &str) -> String {
    let hidden = |character: char| {
        character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|character| {
            if hidden(character) {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

/// A piece of a file as a note shows it: clean and short.
pub(super) fn shown(text: &str) -> String {
    clean(&crate::policy::prefix::excerpt(text))
}

/// Some of many, for a note.
pub(super) fn some<T: ToString>(items: &[T]) -> String {
    const SHOWN: usize = 6;
    let mut text = items
        .iter()
        .take(SHOWN)
        .map(|item| shown(&item.to_string()))
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(" and {} more", items.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_single_lines_and_stand_once() {
        let mut notes = Notes::default();
        notes.open("a\n[[outbound]]\u{202e}");
        notes.open("a\n[[outbound]]\u{202e}");
        assert_eq!(notes.open, ["a\u{fffd}[[outbound]]\u{fffd}"]);
        assert_eq!(
            notes.to_string(),
            "For you to do:\n  a\u{fffd}[[outbound]]\u{fffd}\n"
        );
        for number in 0..MOST + 5 {
            notes.needless(number.to_string());
        }
        assert_eq!(notes.needless.len(), MOST + 1);
    }

    #[test]
    fn many_are_counted() {
        assert_eq!(some(&[1, 2]), "1, 2");
        assert_eq!(
            some(&[1, 2, 3, 4, 5, 6, 7, 8]),
            "1, 2, 3, 4, 5, 6 and 2 more"
        );
    }
}
