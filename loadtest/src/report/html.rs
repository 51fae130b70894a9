//! The report as one page that needs nothing else: no script, no style sheet, no font from anywhere.

use anyhow::Result;

use super::{Report, plot, show};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;\
    color:#1a1a1a;background:#fff}h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}\
    p{margin:.2rem 0}.quiet{color:#595959}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
    th,td{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}\
    th:first-child,td:first-child{text-align:left;padding-left:0}svg{max-width:100%;height:auto}";

/// The page.
pub(super) fn of(report: &Report) -> Result<String> {
    let title = escaped(&format!("{}: {}", report.scenario, report.title));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<p class=\"quiet\">{} · {}</p>\n",
        escaped(&report.machine.to_string()),
        date(report.at_ms),
    );
    let alone = report.is_alone();
    let [first, second] = report.columns.each_ref().map(|name| escaped(name));
    let beside = if alone { String::new() } else { format!("<th>{second}</th><th>ratio</th>") };
    page += &format!("<table><thead><tr><th></th><th>{first}</th>{beside}</tr></thead><tbody>\n");
    for figure in report.figures.iter().filter(|figure| figure.values != [None, None]) {
        page += &format!("<tr><td>{}</td><td>{}</td>", escaped(&figure.label), show::column(figure, 0));
        if !alone {
            page += &format!("<td>{}</td><td>{}</td>", show::column(figure, 1), show::ratio(figure));
        }
        page += "</tr>\n";
    }
    page += "</tbody></table>\n";
    for note in &report.notes {
        page += &format!("<p>Note: {}</p>\n", escaped(note));
    }
    for (heading, svg) in [
        ("Latency by percentile", plot::latencies(report)?),
        ("Throughput over time", plot::rates(report)?),
        ("Memory over time", plot::memory(report)?),
        ("CPU over time", plot::cores(report)?),
    ] {
        if let Some(svg) = svg {
            page += &format!("<h2>{heading}</h2>\n{svg}\n");
        }
    }
    page += "<h2>Settings</h2>\n<table><tbody>\n";
    for (name, value) in &report.settings {
        page += &format!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(value));
    }
    page += "</tbody></table></body></html>\n";
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A date and time (UTC) from milliseconds since the epoch.
fn date(at_ms: u64) -> String {
    let (days, second) = (at_ms / 86_400_000, at_ms / 1000 % 86_400);
    // Howard Hinnant's days-to-civil, for dates after 1970: years begin in March, so that leap days come last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_351_387_076), "2026-11-22 12:43 UTC");
    }
}
