//! Markdown tables whose columns are aligned in a terminal too.

/// The first column is left-aligned, the others are right-aligned.
pub fn render(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).chain(head.get(column));
        cells.map(|c| c.chars().count()).max().unwrap_or_default().max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = String::from("|");
        for (column, width) in widths.iter().enumerate() {
            let cell = cells.get(column).map(String::as_str).unwrap_or_default();
            let gap = " ".repeat(width - cell.chars().count());
            text += &if column == 0 { format!(" {cell}{gap} |") } else { format!(" {gap}{cell} |") };
        }
        text.trim_end().to_owned() + "\n"
    };
    let rule = widths.iter().enumerate().map(|(column, width)| {
        let dashes = "-".repeat(*width - usize::from(column > 0));
        if column == 0 { dashes } else { dashes + ":" }
    });
    let mut text = line(head) + &line(&rule.collect::<Vec<_>>());
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// Three significant digits, with thousands separators.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size >= 99.95 || size == 0.0 => 0,
        _ if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{size:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, r)| (w, format!(".{r}")));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{}{grouped}{rest}", if value < 0.0 { "-" } else { "" })
}

/// `–` for a missing value.
pub fn optional(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.filter(|v| v.is_finite()).map_or_else(|| "–".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let text = render(&["figure".into(), "a".into()], &[vec!["x – y".into(), "1,000".into()], vec!["z".into()]]);
        assert_eq!("| figure |     a |\n| ------ | ----: |\n| x – y  | 1,000 |\n| z      |       |\n", text);
    }

    #[test]
    fn numbers_show_three_digits_that_matter() {
        let shown = [0.0, 0.123, 1.0, 12.34, 123.4, 1234.5, 214_875.0, -4.0].map(number);
        assert_eq!(
            ["0", "0.12", "1.00", "12.3", "123", "1,234", "214,875", "-4.00"],
            shown.each_ref().map(String::as_str)
        );
        assert_eq!("–", optional(None, number));
    }
}
