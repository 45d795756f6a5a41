//! The ratios of the comparison as bars.

use std::fmt::Write;

use crate::comparison::{Line, Shown, Table};

/// In pixels: the whole, where the bars begin, and the length of one that is as good as plain forwarding.
const WIDTH: usize = 720;
const LEFT: usize = 150;
const ONE: f64 = 420.0;
/// A bar may be that long; what is better is written beside it.
const LONGEST: f64 = 500.0;
/// A bar with what is left free below it, a heading, and the space around all.
const BAR: usize = 17;
const HEADING: usize = 30;
const MARGIN: usize = 12;
/// Readable on white and on black.
const TEXT: &str = "#737b85";
const OURS: &str = "#2f81f7";
const OTHERS: &str = "#9a8c6c";

/// Draws a bar for each way in each row that is compared by a ratio.
pub fn draw(table: &Table) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    text(
        &mut body,
        (MARGIN, y + 12),
        "600",
        "Ratio to plain forwarding; more is better",
    );
    y += HEADING;
    let ratios = |line: &&Line| matches!(line.shown, Shown::Ratio(_));
    for line in table.lines.iter().filter(ratios) {
        let top = y;
        text(&mut body, (MARGIN, y + 14), "600", line.row.title);
        y += HEADING - 8;
        for (way, cell) in table.ways.iter().zip(&line.cells) {
            let Some(ratio) = cell else { continue };
            let length = (ratio * ONE).clamp(1.0, LONGEST);
            let fill = if way.peer { OTHERS } else { OURS };
            text(&mut body, (MARGIN, y + 11), "400", way.name);
            element(
                &mut body,
                &format!(
                    r#"<rect x="{LEFT}" y="{y}" width="{length:.1}" height="{}" rx="2" fill="{fill}"/>"#,
                    BAR - 4
                ),
            );
            let after = LEFT + length as usize + 6;
            text(&mut body, (after, y + 11), "400", &format!("{ratio:.2}"));
            y += BAR;
        }
        let x = LEFT as f64 + ONE;
        element(
            &mut body,
            &format!(
                r#"<line x1="{x}" y1="{}" x2="{x}" y2="{y}" stroke="{TEXT}" stroke-dasharray="3 3"/>"#,
                top + HEADING - 10
            ),
        );
        y += MARGIN;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{TEXT}\" role=\"img\">\n\
         <title>tproxy-bpf beside other programs, as ratios to plain forwarding</title>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, (x, y): (usize, usize), weight: &str, words: &str) {
    element(
        body,
        &format!(
            r#"<text x="{x}" y="{y}" font-weight="{weight}">{}</text>"#,
            escaped(words)
        ),
    );
}

fn element(body: &mut String, element: &str) {
    writeln!(body, "{element}").expect("a string takes all");
}

fn escaped(words: &str) -> String {
    let mut escaped = String::with_capacity(words.len());
    for letter in words.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rows::{GBIT, ROWS},
        ways::WAYS,
    };

    fn table() -> Table {
        let ways: Vec<_> = WAYS
            .iter()
            .filter(|way| way.is_rival() || way.name == "proxied")
            .collect();
        let lines = ROWS[..4]
            .iter()
            .map(|row| Line {
                row,
                shown: Shown::Ratio(&GBIT),
                cells: (1..=ways.len()).map(|n| Some(n as f64 * 0.25)).collect(),
            })
            .collect();
        Table { ways, lines }
    }

    /// Is each element closed, in the order in which they were opened, and each attribute in quotes?
    fn is_well_formed(text: &str) -> bool {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('<') {
            if before.contains('>') {
                return false;
            }
            let Some((tag, after)) = after.split_once('>') else {
                return false;
            };
            rest = after;
            if tag.matches('"').count() % 2 == 1 {
                return false;
            }
            let name = |tag: &str| tag.split(' ').next().unwrap_or_default().to_owned();
            if let Some(closed) = tag.strip_prefix('/') {
                if open.pop() != Some(closed.to_owned()) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(name(tag));
            }
        }
        open.is_empty() && rest.trim().is_empty()
    }

    #[test]
    fn it_holds_every_way_in_every_row() {
        let table = table();
        let svg = draw(&table);
        assert!(is_well_formed(&svg), "{svg}");
        for line in &table.lines {
            let title = format!(">{}</text>", line.row.title);
            assert_eq!(svg.matches(&title).count(), 1, "{title} in {svg}");
        }
        for way in &table.ways {
            let name = format!(">{}</text>", way.name);
            assert_eq!(svg.matches(&name).count(), table.lines.len(), "{name}");
        }
        let bars = table.lines.len() * table.ways.len();
        assert_eq!(svg.matches("<rect ").count(), bars);
    }

    #[test]
    fn no_bar_stands_for_what_was_not_measured() {
        let mut table = table();
        table.lines.truncate(1);
        table.lines[0].cells[0] = None;
        let svg = draw(&table);
        assert_eq!(svg.matches("<rect ").count(), table.ways.len() - 1);
        assert!(!svg.contains(&format!(">{}<", table.ways[0].name)), "{svg}");
    }

    #[test]
    fn a_bar_is_as_long_as_its_ratio() {
        let svg = draw(&table());
        assert!(svg.contains(r#"width="105.0""#), "0.25 of 420: {svg}");
        assert!(svg.contains(r#"width="420.0""#), "{svg}");
        // The way with 1.75 does not leave the picture.
        assert!(svg.contains(r#"width="500.0""#), "{svg}");
        assert!(svg.contains(">1.75<"), "{svg}");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped(r#"a<b> & "c'"#), "a&lt;b&gt; &amp; &quot;c&apos;");
    }

    #[test]
    fn the_check_finds_what_is_not_well_formed() {
        for text in ["<a>", "<a></b>", "<a b=\"></a>", "<a/>>", "<a><b></a></b>"] {
            assert!(!is_well_formed(text), "{text}");
        }
    }
}
