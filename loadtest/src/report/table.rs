//! The report as text.

use comfy_table::{CellAlignment, Table, presets};

use super::{Report, show};

/// Title, table, notes.
pub(super) fn of(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let [first, second] = &report.columns;
    let alone = report.is_alone();
    table.set_header(if alone { vec!["", first] } else { vec!["", first, second, "ratio (of rounds)"] });
    for figure in report.figures.iter().filter(|figure| figure.values != [None, None]) {
        let mut row = vec![figure.label.clone(), show::column(figure, 0)];
        if !alone {
            row.extend([show::column(figure, 1), show::ratio(figure)]);
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let notes: String = report.notes.iter().map(|note| format!("note: {note}\n")).collect();
    format!("{}: {}\n{}\n{table}\n{notes}", report.scenario, report.title, report.machine)
}
