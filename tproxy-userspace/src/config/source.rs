//! The text of a configuration: places in it, and how they are shown.

use std::ops::Range;

use serde::Serialize;
use unicode_width::UnicodeWidthChar;

/// How many characters of a long line are shown on either side of where the fault begins.
const AROUND: usize = 70;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line, counted from 1.
    pub line: usize,
    /// The character in the line, counted from 1.
    pub column: usize,
}

/// One line of the text, made fit for a terminal, and what of it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snippet {
    /// The line: no passwords, no control characters.
    pub text: String,
    /// How many columns of the terminal lie before what is meant.
    pub indent: usize,
    /// How many columns it takes; at least one.
    pub width: usize,
}

/// The byte offsets at which lines begin.
pub(super) struct Source<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Source<'t> {
    pub fn new(text: &'t str) -> Self {
        let after_line_ends = text.match_indices('\n').map(|(index, _)| index + 1);
        Self {
            text,
            line_starts: std::iter::once(0).chain(after_line_ends).collect(),
        }
    }

    /// The index of the line in which a byte lies.
    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset) - 1
    }

    /// Offsets from outside may lie behind the end, or inside a character.
    fn clamp(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }

    pub fn position(&self, offset: usize) -> Position {
        let offset = self.clamp(offset);
        let line = self.line(offset);
        let before = &self.text[self.line_starts[line]..offset];
        Position {
            line: line + 1,
            column: before.trim_start_matches('\u{feff}').chars().count() + 1,
        }
    }

    /// The line in which `span` begins. What of the span lies in later lines is left out.
    pub fn snippet(&self, span: &Range<usize>) -> Snippet {
        let start = self.clamp(span.start);
        let line_start = self.line_starts[self.line(start)];
        let line = self.text[line_start..].lines().next().unwrap_or_default();
        let start = start - line_start;
        let end = self.clamp(span.end).saturating_sub(line_start).max(start);

        let start_index = line
            .char_indices()
            .take_while(|(offset, _)| *offset < start)
            .count();
        let first = start_index.saturating_sub(AROUND);
        let hidden = super::secret::hidden(line);
        let mut snippet = Snippet {
            text: String::new(),
            indent: 0,
            width: 0,
        };
        let mut columns = 0;
        if first > 0 {
            snippet.text.push('…');
            columns = 1;
        }
        snippet.indent = columns;
        let mut masked: Option<usize> = None;
        let shown = line.char_indices().skip(first).take(2 * AROUND);
        for (offset, character) in shown {
            let mask = hidden.iter().position(|range| range.contains(&offset));
            let mut piece = [0; 4];
            let piece = match mask {
                Some(_) if mask == masked => "",
                Some(_) => "***",
                None if character == '\t' => "    ",
                None if character == '\u{feff}' => "",
                // Also the marks that turn the direction of text: they could disguise a line.
                None if character.is_control() || is_direction_mark(character) => "\u{fffd}",
                None => character.encode_utf8(&mut piece),
            };
            masked = mask;
            snippet.text.push_str(piece);
            columns += piece.chars().filter_map(char::width).sum::<usize>();
            if offset < start {
                snippet.indent = columns;
            } else if offset < end {
                snippet.width = columns - snippet.indent;
            }
        }
        if line.chars().count() > first + 2 * AROUND {
            snippet.text.push('…');
        }
        snippet.width = snippet.width.max(1);
        snippet
    }
}

fn is_direction_mark(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The line with the meant part underlined.
    fn shown(text: &str, part: &str) -> [String; 2] {
        let start = text.find(part).unwrap();
        let snippet = Source::new(text).snippet(&(start..start + part.len()));
        [
            snippet.text,
            " ".repeat(snippet.indent) + &"^".repeat(snippet.width),
        ]
    }

    #[test]
    fn positions_count_characters_from_one() {
        let source = Source::new("\u{feff}a\r\nü = x\n");
        for (offset, line, column) in [
            (3, 1, 1),
            (6, 2, 1),
            (9, 2, 3),
            (10, 2, 4),
            (12, 2, 6),
            (13, 3, 1),
            (99, 3, 1),
        ] {
            assert_eq!(
                source.position(offset),
                Position { line, column },
                "{offset}"
            );
        }
    }

    #[test]
    fn the_mark_stands_below_what_is_meant() {
        assert_eq!(shown("a\n\tb = 1\r\n", "b"), ["    b = 1", "    ^"]);
        assert_eq!(shown("代理 = x # 代", "x"), ["代理 = x # 代", "       ^"]);
        assert_eq!(shown("x = [\n1,\n]", "[\n1"), ["x = [", "    ^"]);
        assert_eq!(
            shown("a\u{1b}[0m\u{202e} = x", "x"),
            ["a\u{fffd}[0m\u{fffd} = x", "         ^"]
        );
    }

    #[test]
    fn secrets_are_not_shown_and_the_mark_stays_right() {
        let line = r#"o = [{ url = "socks5://me:secret@h:1", nam = "x" }]"#;
        assert_eq!(
            shown(line, "nam"),
            [
                r#"o = [{ url = "socks5://me:***@h:1", nam = "x" }]"#,
                "                                    ^^^"
            ]
        );
        assert_eq!(shown(line, "secret")[1], " ".repeat(26) + "^^^");
    }

    #[test]
    fn long_lines_are_cut_around_the_fault() {
        let line = "x".repeat(500) + "HERE" + &"y".repeat(500);
        let [text, mark] = shown(&line, "HERE");
        assert_eq!(text.chars().count(), 2 * AROUND + 2);
        assert_eq!(text.chars().position(|c| c == 'H'), mark.find('^'));
        assert!(mark.ends_with(" ^^^^"));
    }

    proptest! {
        #[test]
        fn no_span_makes_it_panic(text: String, start in 0..100_usize, length in 0..100_usize) {
            let source = Source::new(&text);
            let snippet = source.snippet(&(start..start + length));
            prop_assert!(snippet.width > 0);
            prop_assert!(source.position(start).line <= text.split('\n').count());
        }
    }
}
