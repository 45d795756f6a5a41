//! The ratios as an image: a group of bars for each row, a bar for each way.

use std::fmt::Write;

use crate::comparison::{Comparison, What};

/// Where names of ways end, and how long a bar for 1 is.
const LEFT: usize = 130;
const ONE: f64 = 420.0;
const WIDTH: usize = 720;
/// What is longer is cut there; its figure stands beside it.
const LONGEST: f64 = 520.0;
const BAR: usize = 14;
const TITLE: usize = 22;
const GAP: usize = 14;
/// Ours, then the others. They are told apart on white and on black.
const OURS: &str = "#d9822b";
const OTHERS: &str = "#7f93a8";

/// Draws it. The first way is ours.
pub fn draw(comparison: &Comparison) -> String {
    let mut body = String::new();
    let mut y = GAP;
    let lines = comparison.lines.iter();
    for line in lines.filter(|line| matches!(line.what, What::Ratio)) {
        y += TITLE;
        text(&mut body, 8, y - 7, "title", line.title);
        for (number, (way, figure)) in comparison.ways.iter().zip(&line.figures).enumerate() {
            let Some(figure) = figure else {
                continue;
            };
            let long = (figure * ONE).clamp(1.0, LONGEST);
            let color = if number == 0 { OURS } else { OTHERS };
            text(&mut body, LEFT - 6, y + BAR - 3, "way", way);
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{long:.0}" height="{}" fill="{color}"/>"#,
                BAR - 2
            );
            let after = LEFT + long as usize + 5;
            text(
                &mut body,
                after,
                y + BAR - 3,
                "figure",
                &format!("{figure:.2}"),
            );
            y += BAR;
        }
        y += GAP;
    }
    let (height, plain) = (y + 24, LEFT as f64 + ONE);
    let _ = writeln!(
        body,
        r#"<line x1="{plain}" y1="{GAP}" x2="{plain}" y2="{y}" class="plain"/>"#
    );
    text(
        &mut body,
        plain as usize,
        y + 14,
        "end",
        "1 = plain forwarding",
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <style>text{{font:12px sans-serif;fill:#333}}.title{{font-weight:bold}}.way{{text-anchor:end}}.end{{text-anchor:middle}}\
         .plain{{stroke:#888;stroke-dasharray:4 3}}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}}}</style>\n\
         {body}</svg>\n"
    )
}

fn text(body: &mut String, x: usize, y: usize, class: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        body,
        r#"<text x="{x}" y="{y}" class="{class}">{words}</text>"#
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::example;

    #[test]
    fn every_way_and_row_is_there_and_every_tag_is_closed() {
        let image = draw(&example());
        for words in [
            "TCP &amp; more",
            "proxied",
            "a &lt;peer&gt;",
            "0.79",
            "1.50",
        ] {
            assert_eq!(
                image.matches(&format!(">{words}</text>")).count(),
                1,
                "{words}"
            );
        }
        assert!(!image.contains("0.10"), "ratios alone");
        for tag in ["svg", "style", "text"] {
            let opened = image.matches(&format!("<{tag}")).count();
            assert_eq!(opened, image.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert_eq!(image.matches("<rect ").count(), 2);
        // What is longer than fits is cut.
        assert!(image.contains(r#"width="331""#) && image.contains(r#"width="520""#));
        let bare = image.matches('&').count();
        assert_eq!(
            bare,
            image.matches("&amp;").count()
                + image.matches("&lt;").count()
                + image.matches("&gt;").count()
        );
    }
}
