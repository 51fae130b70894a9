//! A report beside an earlier one.

use comfy_table::{CellAlignment, Table, presets};

use super::{Better, Figure, Report, Unit, show};

/// A change of less than this is not worth a word.
const NOISE: f64 = 0.03;

/// The ratios of `report` to `base`, row by row; where both have a floor, also of the ratios to it, which a change
/// of machine or weather touches less.
pub(super) fn of(report: &Report, base: &Report, name: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "before", "now", "now / before", "", "against the floor"]);
    for figure in &report.figures {
        let Some(before) = base.figures.iter().find(|it| it.key == figure.key) else { continue };
        let ([Some(old), _], [Some(new), _]) = (before.values, figure.values) else { continue };
        let change = ratio(new, old);
        table.add_row([
            figure.label.clone(),
            show::value(old, before.unit),
            show::value(new, figure.unit),
            change.map(|change| format!("{change:.2}")).unwrap_or_default(),
            change.map(|change| verdict(figure, change)).unwrap_or_default().to_owned(),
            match (figure.ratio, before.ratio, figure.unit) {
                (Some(new), Some(old), unit) if unit != Unit::Share => {
                    ratio(new, old).map(|change| format!("{change:.2}")).unwrap_or_default()
                }
                _ => String::new(),
            },
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("compared with {name}\n{table}\n");
    for (option, value) in &report.settings {
        let before = base.settings.get(option).map_or("nothing", String::as_str);
        if before != value {
            text += &format!("note: {option} was {before}, now it is {value}\n");
        }
    }
    if base.scenario != report.scenario {
        text += &format!("note: that was the scenario {}\n", base.scenario);
    }
    if base.machine != report.machine {
        text += &format!("note: that was another machine: {}\n", base.machine);
    }
    text
}

fn ratio(new: f64, old: f64) -> Option<f64> {
    (old != 0.0).then(|| new / old)
}

fn verdict(figure: &Figure, change: f64) -> &'static str {
    let up = change > 1.0;
    match figure.better {
        _ if (change - 1.0).abs() < NOISE => "",
        Better::Neither => "",
        Better::Higher if up => "better",
        Better::Lower if !up => "better",
        Better::Higher | Better::Lower => "worse",
    }
}
