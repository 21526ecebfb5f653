//! Inserts the results into a page, between two marks.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Replaces the text in `page` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, and writes the charts into `img/`
/// beside it.
///
/// # Errors
/// The page has no marks, or cannot be written.
pub fn write(page: &Path, name: &str, markdown: &str, charts: &[(&str, String)]) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let images = page.with_file_name("img");
    if !charts.is_empty() {
        fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
    }
    let mut text = markdown.to_owned();
    for (chart, svg) in charts {
        let file = images.join(chart);
        fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))?;
        let title = svg.split("font-size=\"15\">").nth(1).and_then(|t| t.split('<').next()).unwrap_or(chart);
        text += &format!("\n![{title}](img/{chart})\n");
    }
    let new = replaced(&old, name, &text).with_context(|| {
        let [begin, end] = marks(name);
        format!("{} has no place for the results\n  next: put {begin}and {end}into it", page.display())
    })?;
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn marks(name: &str) -> [String; 2] {
    ["begin", "end"].map(|end| format!("<!-- {name}: {end} -->\n"))
}

fn replaced(old: &str, name: &str, text: &str) -> Option<String> {
    let [begin, end] = marks(name);
    let (before, rest) = old.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{text}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n";
        let once = replaced(page, "x", "new").expect("there are marks");
        assert_eq!("a\n<!-- x: begin -->\n\nnew\n<!-- x: end -->\nb\n", once);
        assert_eq!(Some(once.clone()), replaced(&once, "x", "new"));
        assert_eq!(None, replaced("no marks", "x", "new"));
        assert_eq!(None, replaced(page, "y", "new"));
    }
}
