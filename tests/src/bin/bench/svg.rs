//! The comparison as a picture: a group of bars for each row, as long as the ratio to plain forwarding.
//!
//! It has no background of its own, so all its colours are ones that can be read on a light and on a dark one.

use crate::comparison::Comparison;

/// What is written.
const INK: &str = "#767676";
/// The bars of ours that relay, of ours that do not, and of the others.
const OURS: &str = "#2a7fd4";
const BYPASS: &str = "#2c9150";
const OTHERS: &str = "#8a7a66";

/// Pixels: the names of ways, the longest bar or what is behind it, the figures at the ends of the bars.
const NAMES: f64 = 130.0;
const BARS: f64 = 480.0;
const FIGURES: f64 = 50.0;
/// From bar to bar, the thickness of one, the head of a group, and the title.
const STEP: f64 = 16.0;
const BAR: f64 = 11.0;
const HEAD: f64 = 30.0;
const TITLE: f64 = 52.0;

/// Text as it may stand in XML, in attributes, too.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&apos;",
            _ => out.push(c),
        }
        out
    })
}

/// Draws it. `source` says where the figures are from.
pub fn draw(comparison: &Comparison, source: &str) -> String {
    // Lines without ratios (memory) are in the table alone.
    let groups: Vec<(&str, Vec<(usize, f64)>)> = comparison
        .lines
        .iter()
        .map(|line| {
            let ratios = line.cells.iter().enumerate();
            let ratios = ratios.filter_map(|(column, cell)| Some((column, (*cell)?.ratio?)));
            (line.title, ratios.collect::<Vec<_>>())
        })
        .filter(|(_, ratios)| !ratios.is_empty())
        .collect();
    let all = groups.iter().flat_map(|(_, ratios)| ratios);
    let most = all.map(|(_, ratio)| *ratio).fold(1.0, f64::max);
    let scale = BARS / most;
    let heights = groups
        .iter()
        .map(|(_, ratios)| HEAD + STEP * ratios.len() as f64);
    let height = TITLE + heights.sum::<f64>() + STEP;
    let width = NAMES + BARS + FIGURES;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n"
    );
    let mut text = |x: f64, y: f64, more: &str, words: &str| {
        out += &format!(
            "<text x=\"{x}\" y=\"{y}\"{more}>{}</text>\n",
            escaped(words)
        );
    };
    let title = "Share of what plain forwarding brings; longer is better";
    text(4.0, 18.0, " font-size=\"15\" font-weight=\"bold\"", title);
    text(4.0, 38.0, "", source);
    let mut shapes = String::new();
    let mut top = TITLE;
    for (title, ratios) in &groups {
        text(4.0, top + 20.0, " font-weight=\"bold\"", title);
        top += HEAD;
        for (column, ratio) in ratios {
            let way = comparison.ways[*column];
            let colour = match (way.peer, way.relays) {
                (true, _) => OTHERS,
                (false, true) => OURS,
                (false, false) => BYPASS,
            };
            let (length, below) = (ratio.max(0.0) * scale, top + BAR - 1.0);
            text(NAMES - 6.0, below, " text-anchor=\"end\"", way.name);
            text(NAMES + length + 4.0, below, "", &format!("{ratio:.2}"));
            shapes += &format!(
                "<rect x=\"{NAMES}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n"
            );
            top += STEP;
        }
    }
    // Plain forwarding.
    let plain = NAMES + scale;
    shapes += &format!(
        "<line x1=\"{plain:.1}\" y1=\"{TITLE}\" x2=\"{plain:.1}\" y2=\"{top}\" stroke=\"{INK}\" stroke-dasharray=\"3 3\"/>\n"
    );
    out + &shapes + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        comparison::{Cell, Line},
        ways::{Client, Subject, WAYS, Way},
    };

    fn comparison(title: &'static str) -> Comparison {
        let ways: Vec<&Way> = WAYS
            .iter()
            .filter(|way| way.subjects == [Subject::Forwarding] && way.clients == [Client::Device])
            .collect();
        let cell = |column: usize| Cell {
            ratio: Some(0.25 * column as f64),
            ..Cell::default()
        };
        let line = |title, cells| Line {
            name: "row",
            title,
            cells,
        };
        let cells = (0..ways.len()).map(|column| Some(cell(column))).collect();
        let none = ways.iter().map(|_| None).collect();
        Comparison {
            lines: vec![line(title, cells), line("nothing of it", none)],
            ways,
        }
    }

    #[test]
    fn it_is_well_formed_and_holds_every_way() {
        let comparison = comparison("a < b & \"c\" > 'd'");
        let svg = draw(&comparison, "Linux & others");
        let document = roxmltree::Document::parse(&svg).expect("XML");
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let texts: Vec<&str> = document
            .descendants()
            .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text")))
            .filter_map(|node| node.text())
            .collect();
        for way in &comparison.ways {
            assert!(texts.contains(&way.name), "{} is not there", way.name);
        }
        assert!(texts.contains(&"a < b & \"c\" > 'd'"));
        assert!(texts.contains(&"Linux & others"));
        assert!(!texts.contains(&"nothing of it"));
    }

    #[test]
    fn nothing_lies_outside_and_bars_are_in_proportion() {
        let svg = draw(&comparison("row"), "");
        let document = roxmltree::Document::parse(&svg).expect("XML");
        let number = |node: &roxmltree::Node<'_, '_>, name| -> f64 {
            node.attribute(name)
                .and_then(|text| text.parse().ok())
                .expect("a number")
        };
        let root = document.root_element();
        let (width, height) = (number(&root, "width"), number(&root, "height"));
        let bars: Vec<_> = root
            .children()
            .filter(|node| node.tag_name().name() == "rect")
            .collect();
        let length = |at: usize| number(&bars[at], "width");
        assert!(bars.len() > 4);
        assert!((length(4) - 2.0 * length(2)).abs() < 0.2);
        for bar in &bars {
            assert!(number(bar, "x") + number(bar, "width") + FIGURES <= width + 0.1);
            assert!(number(bar, "y") + number(bar, "height") <= height);
        }
    }

    /// WCAG 2.1, 1.4.3: the relative luminance.
    fn luminance(colour: &str) -> f64 {
        let part = |at: usize| {
            let byte = u8::from_str_radix(&colour[at..at + 2], 16).expect("a colour");
            let part = f64::from(byte) / 255.0;
            if part <= 0.039_28 {
                part / 12.92
            } else {
                ((part + 0.055) / 1.055).powf(2.4)
            }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    #[test]
    fn all_can_be_read_on_white_and_on_black() {
        // 4.5 for text, 3 for shapes.
        for (colour, least) in [(INK, 4.5), (OURS, 3.0), (BYPASS, 3.0), (OTHERS, 3.0)] {
            let own = luminance(colour) + 0.05;
            let contrasts = [1.05 / own, own / 0.05];
            assert!(
                contrasts.iter().all(|contrast| *contrast >= least),
                "{colour}: {contrasts:?}"
            );
        }
    }
}
