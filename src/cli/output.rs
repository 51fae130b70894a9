//! All printing of the command line: text, tables, JSON, errors.
//!
//! Text that came from a gateway is stripped of control characters, so that the name of a node cannot drive a
//! terminal. It is stripped before it is coloured: a line that has been painted is never stripped again. Colours only on a
//! terminal, or where `FORCE_COLOR` asks for them, and not with `NO_COLOR` or `--no-color`. When nobody reads any more
//! (`clawgate logs | head`), a command ends quietly.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, Cell, ColumnConstraint, ContentArrangement};
use serde::Serialize;

use super::error::CliError;

/// Columns of a table when the output is no terminal and `COLUMNS` does not say otherwise.
const DEFAULT_WIDTH: u16 = 80;

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it is.
    Plain,
    /// Headings.
    Strong,
    /// All is well.
    Good,
    /// Somebody should look.
    Warning,
    /// It does not work.
    Bad,
    /// Of less interest.
    Faint,
}

impl Tone {
    const fn sgr(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Strong => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
            Self::Faint => Some("2"),
        }
    }
}

/// A name, how its value looks, the value.
pub(super) type Field = (&'static str, Tone, String);

/// Where a command prints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    colour: bool,
    colour_errors: bool,
    is_for_person: bool,
    width: u16,
}

impl Output {
    /// Standard output and error as they are now.
    pub(super) fn new(no_color: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let refused = no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let forced = set("FORCE_COLOR") || set("CLICOLOR_FORCE");
        let coloured = |is_terminal: bool| !refused && (forced || is_terminal);
        let terminal = io::stdout().is_terminal();
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = if terminal { comfy_table::Table::new().width() } else { None };
        Self {
            colour: coloured(terminal),
            colour_errors: coloured(io::stderr().is_terminal()),
            is_for_person: terminal,
            width: width.or(columns).unwrap_or(DEFAULT_WIDTH).max(40),
        }
    }

    /// Without colours, 80 columns wide: what a pipe gets.
    #[cfg(test)]
    pub(super) const fn plain() -> Self {
        Self { colour: false, colour_errors: false, is_for_person: false, width: DEFAULT_WIDTH }
    }

    /// With colours: what a terminal gets.
    #[cfg(test)]
    pub(super) const fn coloured() -> Self {
        Self { colour: true, colour_errors: true, is_for_person: true, width: DEFAULT_WIDTH }
    }

    /// Whether the output goes to a terminal: then a sentence says more than a document.
    pub(super) const fn is_for_person(self) -> bool {
        self.is_for_person
    }

    /// `text` in `tone`, where there are colours.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        match tone.sgr() {
            Some(sgr) if self.colour => format!("\x1b[{sgr}m{}\x1b[0m", clean(text)),
            _ => clean(text).into_owned(),
        }
    }

    /// Prints lines that [`Output::paint`] or this program made: control characters stay.
    ///
    /// # Errors
    /// [`CliError::Unread`] when nobody reads, [`CliError::Output`].
    pub(super) fn print(self, lines: &str) -> Result<(), CliError> {
        // Whole lines in one write, so that a pipe never has half of one.
        let mut out = io::stdout().lock();
        out.write_all(format!("{lines}\n").as_bytes()).and_then(|()| out.flush()).map_err(unwritten)
    }

    /// Prints a line of pieces, each stripped of what would drive a terminal and then painted.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn painted(self, pieces: &[(Tone, &str)]) -> Result<(), CliError> {
        self.print(&pieces.iter().map(|(tone, text)| self.paint(*tone, text)).collect::<String>())
    }

    /// Prints a line that came from elsewhere, as it is: nothing in it is coloured ([`Output::painted`] does that).
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn line(self, text: &str) -> Result<(), CliError> {
        self.print(&clean(text))
    }

    /// Prints JSON, two spaces deep, in the order in which it came.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn json(self, json: &str) -> Result<(), CliError> {
        self.print(&pretty(json))
    }

    /// Prints a value as JSON.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn value(self, value: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string(value).map_err(|error| CliError::other(error.to_string()))?;
        self.json(&json)
    }

    /// Prints names and values, one a line, and leaves out what has no value.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn fields(self, fields: &[Field]) -> Result<(), CliError> {
        let lines = self.field_lines(fields);
        if lines.is_empty() { Ok(()) } else { self.print(&lines) }
    }

    fn field_lines(self, fields: &[Field]) -> String {
        let shown = fields.iter().filter(|(_, _, value)| !value.is_empty());
        let width = shown.clone().map(|(name, ..)| name.len()).max().unwrap_or_default();
        let lines = shown.map(|(name, tone, value)| {
            let gap = " ".repeat(width - name.len() + 2);
            format!("{}{gap}{}", self.paint(Tone::Strong, name), self.paint(*tone, value))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Prints a heading, set off from what stands above.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn heading(self, text: &str) -> Result<(), CliError> {
        self.print(&format!("\n{}", self.paint(Tone::Strong, text)))
    }

    /// Prints a table.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn table(self, table: &Table) -> Result<(), CliError> {
        self.print(&table.render(self))
    }

    /// Lends standard output and standard error to a command that prints for itself.
    ///
    /// # Errors
    /// As [`Output::print`].
    pub(super) fn streams(
        self,
        print: impl FnOnce(&mut dyn io::Write, &mut dyn io::Write) -> io::Result<ExitCode>,
    ) -> Result<ExitCode, CliError> {
        let mut out = io::stdout().lock();
        let code = print(&mut out, &mut io::stderr().lock()).map_err(unwritten)?;
        out.flush().map_err(unwritten)?;
        Ok(code)
    }

    /// Tells people something beside the output.
    pub(super) fn note(self, text: &str) {
        // Who closes standard error does not want to know.
        let _ = writeln!(io::stderr().lock(), "{}", clean(text));
    }

    /// Says why a command failed: for people on standard error and, for programs, as JSON on standard output.
    pub(super) fn fail(self, error: &CliError, json: bool) -> ExitCode {
        self.fail_as(error, Json::asked(json))
    }

    /// The same, for commands whose result is JSON without `--json`, too.
    pub(super) fn fail_as(self, error: &CliError, json: Json) -> ExitCode {
        if matches!(error, CliError::Unread) {
            return error.exit_code();
        }
        let json = match json {
            Json::Asked => true,
            // A person at a terminal would read the same thing twice.
            Json::Result => !self.is_for_person,
            Json::No => false,
        };
        if json && self.value(&error.report()).is_err() {
            return error.exit_code();
        }
        // Who closes standard error does not want to know.
        let _ = writeln!(io::stderr().lock(), "{}", self.failure(error));
        error.exit_code()
    }

    /// What happened, and below it, indented, what to do.
    fn failure(self, error: &CliError) -> String {
        let label = if self.colour_errors { "\x1b[31merror:\x1b[0m" } else { "error:" };
        let mut text = format!("{label} {}", clean(&error.to_string()));
        for line in error.advice().iter().flat_map(|advice| advice.lines()) {
            text.push_str("\n  ");
            text.push_str(&clean(line));
        }
        text
    }
}

/// Whether a failure is told to programs, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Json {
    /// `--json` was given.
    Asked,
    /// The result of the command is JSON whatever is given, unless a person looks at it.
    Result,
    /// No.
    No,
}

impl Json {
    /// What `--json` says.
    pub(super) const fn asked(flag: bool) -> Self {
        if flag { Self::Asked } else { Self::No }
    }

    /// The same, where the result is JSON without the flag, too.
    pub(super) const fn result(flag: bool) -> Self {
        if flag { Self::Asked } else { Self::Result }
    }
}

fn unwritten(error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::Unread,
        _ => CliError::Output(error),
    }
}

/// `text` without what a terminal would obey: control characters other than line breaks and tabs, and the marks that
/// turn the direction of writing around.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    let drives = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(drives) { text.replace(drives, "\u{fffd}").into() } else { text.into() }
}

/// Columns that are copied and pasted, so they are never broken.
const UNBROKEN: [&str; 2] = ["Request", "ID"];

/// A table that fits the terminal.
#[derive(Clone, Debug)]
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<(Tone, String)>>,
}

impl Table {
    /// A table with these columns.
    pub(super) fn new(head: impl IntoIterator<Item = &'static str>) -> Self {
        Self { head: head.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (Tone, String)>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether it has no rows.
    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as a pipe gets it.
    #[cfg(test)]
    pub(super) fn to_text(&self) -> String {
        self.render(Output::plain())
    }

    /// The table as text. Columns in which no row has anything are left out.
    fn render(&self, output: Output) -> String {
        let shown: Vec<usize> =
            (0..self.head.len()).filter(|at| self.rows.iter().any(|row| !row[*at].1.is_empty())).collect();
        let mut table = comfy_table::Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(output.width)
            .set_header(shown.iter().map(|at| {
                let cell = Cell::new(self.head[*at]);
                if output.colour { cell.add_attribute(Attribute::Bold) } else { cell }
            }));
        if output.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        for row in &self.rows {
            table.add_row(shown.iter().map(|at| {
                let (tone, text) = &row[*at];
                let cell = Cell::new(clean(text));
                match (output.colour, tone) {
                    (false, _) | (_, Tone::Plain) => cell,
                    (_, Tone::Strong) => cell.add_attribute(Attribute::Bold),
                    (_, Tone::Faint) => cell.add_attribute(Attribute::Dim),
                    (_, Tone::Good) => cell.fg(comfy_table::Color::Green),
                    (_, Tone::Warning) => cell.fg(comfy_table::Color::Yellow),
                    (_, Tone::Bad) => cell.fg(comfy_table::Color::Red),
                }
            }));
        }
        for (column, at) in table.column_iter_mut().zip(&shown) {
            if UNBROKEN.contains(&self.head[*at]) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.to_string()
    }
}

/// Valid JSON with line breaks and two spaces a level. Order and digits stay as they are.
pub(super) fn pretty(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut chars = json.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push('"');
                while let Some(c) = chars.next() {
                    out.push(c);
                    match c {
                        '\\' => out.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = chars.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(',');
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pretty_keeps_order_and_digits() {
        let json = r#"{"b":1.50,"a":[],"c":[1,{"x":"{,\"}"}],"d":{ },"e":12345678901234567890}"#;
        let expected = "{\n  \"b\": 1.50,\n  \"a\": [],\n  \"c\": [\n    1,\n    {\n      \"x\": \"{,\\\"}\"\n    }\n  ],\n  \
                        \"d\": {},\n  \"e\": 12345678901234567890\n}";
        assert_eq!(pretty(json), expected);
        assert_eq!(pretty("\"a\""), "\"a\"");
        let value = serde_json::json!({"a": [1, {"b": null}], "c": "\\ \" : ,"});
        assert_eq!(pretty(&value.to_string()), serde_json::to_string_pretty(&value).unwrap());
    }

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\u{202e}c\td\ne"), "a\u{fffd}[2Jb\u{fffd}c\td\ne");
        assert!(matches!(clean("näme"), Cow::Borrowed(_)));
        assert_eq!(Output::plain().paint(Tone::Bad, "x\x07"), "x\u{fffd}");
    }

    #[test]
    fn a_coloured_line_is_stripped_before_it_is_coloured() {
        let output = Output::coloured();
        assert_eq!(output.paint(Tone::Bad, "a\x1bb"), "\x1b[31ma\u{fffd}b\x1b[0m");
        assert_eq!(output.paint(Tone::Plain, "a\x1bb"), "a\u{fffd}b");
    }

    #[test]
    fn every_line_of_an_advice_is_indented() {
        let error = CliError::with_advice("no", "first\n  second");
        assert_eq!(Output::plain().failure(&error), "error: no\n  first\n    second");
    }

    #[test]
    fn fields_are_aligned_and_empty_ones_left_out() {
        let fields = [
            ("Name", Tone::Strong, "kitchen".to_owned()),
            ("IP", Tone::Plain, String::new()),
            ("Version", Tone::Plain, "1\x1b".to_owned()),
        ];
        assert_eq!(Output::plain().field_lines(&fields), "Name     kitchen\nVersion  1\u{fffd}");
    }

    #[test]
    fn a_table_fits_its_width_and_leaves_empty_columns_out() {
        let mut table = Table::new(["Node", "IP", "Status"]);
        table.row([(Tone::Plain, "n".repeat(70)), (Tone::Plain, String::new()), (Tone::Good, "up and running".into())]);
        let text = table.render(Output::plain());
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains("IP") && text.contains("Status"), "{text}");
    }
}
