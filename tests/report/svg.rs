//! A line chart with two logarithmic axes, as SVG. Mid-grey strokes and text are readable on light and dark pages.

use crate::table::number;
use std::fmt::Write;

pub struct Chart<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    /// Name and points; points of zero or less are left out, as they have no logarithm.
    pub series: Vec<(&'a str, Vec<(f64, f64)>)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
pub(crate) const COLOURS: [&str; 7] = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777"];

/// A range of decades, and the position of a value in it, between 0 and 1.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (from, to) = (from.min(value.log10().floor()), to.max(value.log10().ceil()));
        }
        if !from.is_finite() {
            (from, to) = (0.0, 1.0);
        }
        Self { from, to: to.max(from + 1.0) }
    }

    fn place(&self, value: f64) -> f64 {
        (value.log10() - self.from) / (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.from as i32..=self.to as i32).map(|n| 10_f64.powi(n))
    }
}

impl Chart<'_> {
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|(_, points)| points).filter(|(x, y)| *x > 0.0 && *y > 0.0);
        let (x_axis, y_axis) = (Axis::over(points().map(|p| p.0)), Axis::over(points().map(|p| p.1)));
        let x = |value: f64| LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - y_axis.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\" fill=\"#888\">\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
            escaped(self.title)
        );
        for at in x_axis.decades() {
            line(&mut out, (x(at), TOP), (x(at), HEIGHT - BOTTOM));
            text(&mut out, (x(at), HEIGHT - BOTTOM + 16.0), "middle", &number(at));
        }
        for at in y_axis.decades() {
            line(&mut out, (LEFT, y(at)), (WIDTH - RIGHT, y(at)));
            text(&mut out, (LEFT - 6.0, y(at) + 4.0), "end", &number(at));
        }
        text(&mut out, ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0), "middle", self.x);
        text(&mut out, (LEFT - 6.0, TOP - 10.0), "end", self.y);
        for (n, (name, points)) in self.series.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let shown: Vec<_> =
                points.iter().filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(a, b)| (x(*a), y(*b))).collect();
            let path: Vec<_> = shown.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect();
            let path = path.join(" ");
            let _ = writeln!(out, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
            for (a, b) in shown {
                let _ = writeln!(out, "<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let (a, b) = (WIDTH - RIGHT + 14.0, TOP + 12.0 + 20.0 * n as f64);
            let _ = writeln!(out, "<rect x=\"{a}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>", b - 6.0);
            text(&mut out, (a + 20.0, b), "start", name);
        }
        out + "</svg>\n"
    }
}

pub(crate) fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#888\" stroke-opacity=\"0.3\"/>",
        from.0, from.1, to.0, to.1
    );
}

pub(crate) fn text(out: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let _ =
        writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>", at.0, at.1, escaped(text));
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_points_where_they_belong() {
        let series = vec![("a & b", vec![(1.0, 10.0), (100.0, 1000.0), (5.0, 0.0)])];
        let svg = Chart { title: "t", x: "ports", y: "ms", series }.svg();
        assert!(svg.contains("points=\"70.0,350.0 530.0,40.0\""), "{svg}");
        assert!(svg.contains("a &amp; b") && svg.ends_with("</svg>\n"));
        assert_eq!(2, svg.matches("<circle").count());
    }

    #[test]
    fn an_empty_chart_is_still_a_chart() {
        let svg = Chart { title: "t", x: "", y: "", series: vec![("none", Vec::new())] }.svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
