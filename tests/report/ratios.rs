//! A bar chart as SVG: for each figure the ratio of each variant to a base variant, which is the line at 1.

use crate::svg::{COLOURS, escaped, line, text};
use std::fmt::Write;

pub struct Ratios<'a> {
    pub title: &'a str,
    /// The base of the ratios.
    pub base: &'a str,
    pub variants: Vec<&'a str>,
    /// A figure and the ratio of each variant, where there is one.
    pub rows: Vec<(&'a str, Vec<Option<f64>>)>,
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 260.0;
const RIGHT: f64 = 50.0;
const TOP: f64 = 64.0;
const BAR: f64 = 11.0;
const GAP: f64 = 12.0;
/// Longest bar: longer ones are truncated and labelled. A bar of 65 would make the others invisible.
const CAP: f64 = 3.0;
/// The end of a truncated bar, and the gap before it.
const END: f64 = 8.0;
const CUT: f64 = 4.0;

impl Ratios<'_> {
    pub fn svg(&self) -> String {
        let row = BAR * self.variants.len() as f64 + GAP;
        let height = TOP + row * self.rows.len() as f64 + 30.0;
        let highest = self.rows.iter().flat_map(|(_, ratios)| ratios).flatten().copied().fold(1.0, f64::max);
        let longest = highest.min(CAP);
        let x = |value: f64| LEFT + value / longest * (WIDTH - LEFT - RIGHT);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\" fill=\"#888\">\n<text x=\"12\" y=\"22\" font-size=\"15\">{}</text>\n",
            escaped(self.title)
        );
        let mut at = 12.0;
        for (n, name) in self.variants.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let _ = writeln!(out, "<rect x=\"{at}\" y=\"38\" width=\"12\" height=\"8\" fill=\"{colour}\"/>");
            text(&mut out, (at + 17.0, 46.0), "start", name);
            at += 34.0 + 7.0 * name.chars().count() as f64;
        }
        for (n, (figure, ratios)) in self.rows.iter().enumerate() {
            let top = TOP + row * n as f64;
            text(&mut out, (LEFT - 8.0, top + (row - GAP) / 2.0 + 4.0), "end", figure);
            for (n, ratio) in ratios.iter().enumerate() {
                let Some(ratio) = ratio.filter(|r| r.is_finite() && *r > 0.0) else { continue };
                let (y, to, colour) = (top + BAR * n as f64, x(ratio.min(CAP)), COLOURS[n % COLOURS.len()]);
                let (whole, cut) = ([(LEFT, to)], [(LEFT, to - END - CUT), (to - END, to)]);
                for (from, to) in if ratio > CAP { &cut[..] } else { &whole } {
                    let _ = writeln!(
                        out,
                        "<rect x=\"{from}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                        to - from,
                        BAR - 2.0
                    );
                }
                text(&mut out, (to + 4.0, y + BAR - 2.0), "start", &format!("{ratio:.2}"));
            }
        }
        if highest > CAP {
            text(&mut out, (WIDTH - 12.0, height - 10.0), "end", &format!("longer bars are cut at {CAP}"));
        }
        line(&mut out, (x(1.0), TOP - 6.0), (x(1.0), height - 24.0));
        text(&mut out, (x(1.0), height - 10.0), "middle", &format!("1 = {}", self.base));
        out + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_ratio() {
        let rows = vec![("UDP & co", vec![Some(1.0), Some(2.0)]), ("TCP", vec![None, Some(f64::NAN)])];
        let svg = Ratios { title: "t", base: "b", variants: vec!["b", "c"], rows }.svg();
        let bars: Vec<&str> = svg.lines().filter(|l| l.contains("height=\"9.0\"")).collect();
        assert_eq!(2, bars.len(), "{svg}");
        assert!(bars[0].contains("width=\"205.0\"") && bars[1].contains("width=\"410.0\""), "{bars:?}");
        assert!(svg.contains("UDP &amp; co") && svg.contains("1 = b") && !svg.contains("NaN"));
        assert!(!svg.contains("cut"), "{svg}");
    }

    #[test]
    fn a_bar_that_is_too_long_is_cut_and_has_its_number() {
        let rows = vec![("UDP", vec![Some(1.5), Some(65.22), Some(3.0)])];
        let svg = Ratios { title: "t", base: "b", variants: vec!["b", "c", "d"], rows }.svg();
        let bars: Vec<&str> = svg.lines().filter(|l| l.contains("height=\"9.0\"")).collect();
        let wide: Vec<&str> = bars.iter().filter_map(|l| l.split("width=\"").nth(1)?.split('"').next()).collect();
        assert_eq!(vec!["205.0", "398.0", "8.0", "410.0"], wide, "one of three is in two parts");
        assert!(svg.contains(">65.22<") && svg.contains("cut at 3"), "{svg}");
    }
}
