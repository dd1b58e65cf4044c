//! Tables and lists of fields that fit the terminal.
//!
//! One column of a table may be cut; the others keep their width. Off a terminal nothing is cut, so that `grep`
//! finds what it looks for.

/// The narrowest that a column is cut to.
const CUT_MIN: usize = 8;

/// How a column is set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
    /// Text that is cut when the line would be too long.
    Cut,
}

/// A table that is drawn when it is complete.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// The table's lines, each with its line feed; no line ends with blanks.
    pub(crate) fn draw(&self, style: Style) -> String {
        let widths = self.widths(style.width);
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut text = style.dim(&self.line(&heading, &widths));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| name.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let total: usize = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
        let cut = self.columns.iter().position(|(_, align)| *align == Align::Cut);
        if let (Some(limit), Some(cut)) = (limit, cut) {
            let excess = total.saturating_sub(limit);
            widths[cut] = widths[cut].saturating_sub(excess).max(widths[cut].min(CUT_MIN));
        }
        widths
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, (_, align)), &width) in cells.iter().zip(&self.columns).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            match align {
                Align::Left => line.push_str(&format!("{cell:width$}")),
                Align::Right => line.push_str(&format!("{cell:>width$}")),
                Align::Cut => line.push_str(&format!("{:width$}", cut(cell, width))),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// How wide to draw and whether in colour.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// Columns of the terminal; `None` is no limit.
    pub(crate) width: Option<usize>,
    /// Whether escape codes may be used.
    pub(crate) colour: bool,
}

impl Style {
    /// Text of less importance.
    pub(crate) fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    /// The name of a thing.
    pub(crate) fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A list of fields, the names in one column.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("  {name:width$}  {}", printable(value));
    pairs.iter().map(line).map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Text from other machines must not move the cursor or colour the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[("NAME", Align::Cut), ("N", Align::Right), ("STATE", Align::Left)]);
        table.row(["a-rather-long-name-of-a-server".into(), "7".into(), "up".into()]);
        table.row(["b".into(), "12345".into(), String::new()]);
        table
    }

    #[test]
    fn only_the_one_column_is_cut_and_only_to_the_width() {
        let style = Style { width: Some(30), colour: false };
        insta::assert_snapshot!(sample().draw(style), @r"
        NAME                  N  STATE
        a-rather-long-n…      7  up
        b                 12345
        ");
        let free = sample().draw(Style { width: None, colour: false });
        assert!(free.contains("a-rather-long-name-of-a-server"));
    }

    #[test]
    fn foreign_text_cannot_carry_escape_codes() {
        let mut table = Table::new(&[("NAME", Align::Left)]);
        table.row(["\x1b[31mred\n".into()]);
        assert!(!table.draw(Style { width: None, colour: false }).contains('\x1b'));
        assert!(!fields(&[("name", "\x1b[31m".to_owned())]).contains('\x1b'));
    }

    #[test]
    fn colour_is_only_used_when_asked_for() {
        assert!(sample().draw(Style { width: None, colour: true }).starts_with("\x1b[2m"));
    }
}
