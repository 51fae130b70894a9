//! The plots, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Report, show};
use crate::stats::median;

const SIZE: (u32, u32) = (860, 320);
/// Of the first column, of the second: blue and orange of the Okabe-Ito palette, which colour-blind people tell
/// apart.
const COLOURS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0)];

/// A line and its name.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// How an axis is read.
struct Axis<'a> {
    label: &'a str,
    show: &'a dyn Fn(f64) -> String,
    /// Begins at zero.
    from_zero: bool,
}

/// Latency by percentile: every further nine takes the same room, and so does every tenfold latency.
pub(super) fn latencies(report: &Report) -> Result<Option<String>> {
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-6).log10();
    let lines = report.curves.iter().map(|curve| Line {
        name: curve.name.clone(),
        points: curve.points.iter().map(|(quantile, ns)| (nines(*quantile), ns.max(1.0).log10())).collect(),
    });
    let x = Axis { label: "percentile", show: &percentile, from_zero: true };
    let y = Axis { label: "latency", show: &|y| show::duration(10f64.powf(y)), from_zero: false };
    draw(lines.collect(), &x, &y)
}

/// What so many nines are called: one is 90 %.
fn percentile(nines: f64) -> String {
    match nines.round() as usize {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        more => format!("99.{} %", "9".repeat(more - 2)),
    }
}

/// Operations over time.
pub(super) fn rates(report: &Report) -> Result<Option<String>> {
    let lines = report.timelines.iter().map(|it| Line { name: it.name.clone(), points: it.rate.clone() });
    let y = Axis { label: "operations a second", show: &show::count, from_zero: true };
    draw(lines.collect(), &time(), &y)
}

/// Memory over time.
pub(super) fn memory(report: &Report) -> Result<Option<String>> {
    let mebibytes = |(at, bytes): &(f64, f64)| (*at, bytes / f64::from(1 << 20));
    let lines = report
        .timelines
        .iter()
        .map(|it| Line { name: it.name.clone(), points: it.resident_bytes.iter().map(mebibytes).collect() });
    let y = Axis { label: "resident MiB", show: &show::count, from_zero: true };
    draw(lines.collect(), &time(), &y)
}

/// Busy cores over time.
pub(super) fn cores(report: &Report) -> Result<Option<String>> {
    let lines = report.timelines.iter().map(|it| Line { name: it.name.clone(), points: it.cores_busy.clone() });
    let y = Axis { label: "cores busy", show: &|y| format!("{y:.1}"), from_zero: true };
    draw(lines.collect(), &time(), &y)
}

fn time() -> Axis<'static> {
    Axis { label: "seconds", show: &|x| format!("{x:.0}"), from_zero: true }
}

/// Draws lines over two axes. `None` when there is nothing to draw.
fn draw(mut lines: Vec<Line>, x: &Axis<'_>, y: &Axis<'_>) -> Result<Option<String>> {
    lines.retain(|line| line.points.len() > 1);
    let all = || lines.iter().flat_map(|line| &line.points);
    let ends = |of: fn(&(f64, f64)) -> f64, axis: &Axis<'_>| {
        let least = all().map(of).fold(f64::INFINITY, f64::min);
        let most = all().map(of).fold(f64::NEG_INFINITY, f64::max);
        let least = if axis.from_zero { least.min(0.0) } else { least };
        let room = ((most - least) * 0.05).max(most.abs() * 1e-3).max(1e-9);
        (least, most + room)
    };
    if lines.is_empty() {
        return Ok(None);
    }
    let (x_ends, y_ends) = (ends(|point| point.0, x), ends(|point| point.1, y));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| anyhow!("drawing a plot: {error}");
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(86)
            .build_cartesian_2d(x_ends.0..x_ends.1, y_ends.0..y_ends.1)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .x_desc(x.label)
            .y_desc(y.label)
            .x_label_formatter(&|at| (x.show)(*at))
            .y_label_formatter(&|at| (y.show)(*at))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .axis_style(BLACK.mix(0.5))
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(|error| failed(&error))?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            for (number, piece) in pieces(&line.points).into_iter().enumerate() {
                let series =
                    chart.draw_series(LineSeries::new(piece.iter().copied(), style)).map_err(|error| failed(&error))?;
                if number == 0 {
                    let sample = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
                    series.label(line.name.as_str()).legend(sample);
                }
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(|error| failed(&error))?;
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(Some(svg))
}

/// The pieces of a line: it is not drawn where nothing was measured.
fn pieces(points: &[(f64, f64)]) -> Vec<&[(f64, f64)]> {
    let steps = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let most = median(steps).unwrap_or_default() * 4.0;
    points.chunk_by(|a, b| b.0 - a.0 <= most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_have_their_nines() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 5.0].map(percentile), ["0 %", "90 %", "99 %", "99.9 %", "99.999 %"]);
    }

    #[test]
    fn a_line_has_a_gap_where_nothing_was_measured() {
        let points = [1.0, 1.1, 1.2, 3.0, 3.1].map(|at| (at, 0.0));
        assert_eq!(pieces(&points).iter().map(|piece| piece.len()).collect::<Vec<_>>(), [3, 2]);
    }
}
