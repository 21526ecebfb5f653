//! Puts the results into a page, between two comments that stay.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- bench: begin -->\n";
const END: &str = "<!-- bench: end -->\n";

/// Replaces what stands between the marks of `page`, and puts the charts into `img/` beside it.
///
/// # Errors
/// The page has no marks, or cannot be written.
pub fn write(page: &Path, markdown: &str, charts: &[(&str, String)]) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let images = page.with_file_name("img");
    fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
    let mut text = markdown.to_owned();
    for (name, svg) in charts {
        let file = images.join(name);
        fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))?;
        let title = svg.split("font-size=\"15\">").nth(1).and_then(|t| t.split('<').next()).unwrap_or(name);
        text += &format!("\n![{title}](img/{name})\n");
    }
    let new = replaced(&old, &text).with_context(|| {
        format!("{} has no place for the results\n  next: put {BEGIN}and {END}into it", page.display())
    })?;
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn replaced(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        let once = replaced(&page, "new").expect("there are marks");
        assert_eq!(format!("a\n{BEGIN}\nnew\n{END}b\n"), once);
        assert_eq!(Some(once.clone()), replaced(&once, "new"));
        assert_eq!(None, replaced("no marks", "new"));
    }
}
