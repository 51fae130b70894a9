//! `clawgate top`: a gateway as it is now, drawn again every second.
//!
//! It asks for `status`, `node.list` and `system-presence` over one connection, and measures how long the answers
//! take. [`draw`] is a function from what is known to a frame, and is tested as one.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::clean;
use super::parse_result;
use super::target::{GatewayFlags, Target, scopes_for};
use super::time::{ago, span};
use crate::client::{Connection, Purpose};
use crate::clock::UnixMs;

const TIMEOUT: Duration = Duration::from_secs(10);
const METHODS: [&str; 3] = ["status", "node.list", "system-presence"];
/// Seconds that are kept for the curves.
const KEPT: usize = 240;

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Time between looks, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..))]
    interval: u64,
    /// Print one frame as text and end (also when the output is no terminal)
    #[arg(long)]
    once: bool,
}

/// What is known of the gateway.
#[derive(Debug, Default)]
struct View {
    url: String,
    version: String,
    status: Value,
    nodes: Vec<Value>,
    present: Vec<Value>,
    latencies_us: VecDeque<u64>,
    connections: VecDeque<u64>,
    problem: Option<String>,
}

impl View {
    /// Asks the gateway, all at once.
    async fn look(&mut self, target: &Target, connection: &Connection) -> Result<(), CliError> {
        let started = Instant::now();
        let none = json!({});
        let [status, nodes, present] = METHODS;
        // The answer to the first is the latency: the others wait behind it.
        let first = async {
            let answer = connection.call(status, &none, target.timeout()).await;
            (answer, started.elapsed())
        };
        let ((status_answer, took), nodes_answer, present_answer) = tokio::join!(
            first,
            connection.call(nodes, &none, target.timeout()),
            connection.call(present, &none, target.timeout()),
        );
        self.status = parse_result(status, &status_answer?)?;
        self.nodes = parse_result::<Value>(nodes, &nodes_answer?)?["nodes"].as_array().cloned().unwrap_or_default();
        self.present = parse_result(present, &present_answer?)?;
        keep(&mut self.latencies_us, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        keep(&mut self.connections, self.status["gateway"]["connections"].as_u64().unwrap_or_default());
        Ok(())
    }
}

fn keep(curve: &mut VecDeque<u64>, value: u64) {
    curve.push_front(value);
    curve.truncate(KEPT);
}

impl TopArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let target = Target::resolve(context, &self.gateway, Purpose::Call, TIMEOUT)?;
        let connection = target.connect(scopes_for(METHODS)).await?;
        let mut view = View {
            url: target.resolution.url.to_string(),
            version: connection.hello().server_version.clone(),
            ..View::default()
        };
        view.look(&target, &connection).await?;
        if self.gateway.json {
            let mut report = view.status.clone();
            report["latencyUs"] = json!(view.latencies_us.front());
            report["nodes"] = json!(view.nodes);
            report["presence"] = json!(view.present);
            context.output.value(&report)?;
        } else if self.once || !std::io::stdout().is_terminal() {
            context.output.print(&as_text(&view))?;
        } else {
            self.live(context, target, connection, view).await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn live(
        &self,
        context: &Context,
        mut target: Target,
        mut connection: Connection,
        mut view: View,
    ) -> Result<(), CliError> {
        let failed = |error: std::io::Error| CliError::other(format!("the terminal: {error}"));
        let mut terminal = Screen::open().map_err(failed)?;
        let mut looked = Instant::now();
        loop {
            terminal.0.draw(|frame| draw(frame, &view)).map_err(failed)?;
            // Keys are looked for between two drawings; nothing blocks for longer than the eye would notice.
            while event::poll(Duration::ZERO).map_err(failed)? {
                if let Event::Key(key) = event::read().map_err(failed)?
                    && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                        || (key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL)))
                {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            if looked.elapsed() < Duration::from_millis(self.interval) {
                continue;
            }
            looked = Instant::now();
            view.problem = view.look(&target, &connection).await.err().map(|error| error.to_string());
            if view.problem.is_some() {
                // The gateway may be back in a moment; what was seen last stays on the screen.
                if let Ok(again) = Target::resolve(context, &self.gateway, Purpose::Call, TIMEOUT)
                    && let Ok(back) = again.connect(scopes_for(METHODS)).await
                {
                    (target, connection) = (again, back);
                }
            }
        }
    }
}

/// The terminal, which is as it was when this goes.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn open() -> std::io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// One frame as text, 100 columns wide.
fn as_text(view: &View) -> String {
    let rows = u16::try_from(view.nodes.len() + view.present.len()).unwrap_or(u16::MAX).saturating_add(16).min(200);
    let backend = ratatui::backend::TestBackend::new(100, rows);
    // This backend is memory: it cannot fail.
    let Ok(mut terminal) = ratatui::Terminal::new(backend);
    let Ok(_) = terminal.draw(|frame| draw(frame, view));
    let buffer = terminal.backend().buffer();
    let lines: Vec<String> = (0..buffer.area.height)
        .map(|y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned())
        .collect();
    lines.join("\n").trim_end().to_owned()
}

fn draw(frame: &mut Frame<'_>, view: &View) {
    let people = u16::try_from(view.present.len()).unwrap_or(u16::MAX).saturating_add(3).clamp(4, 12);
    let [head, numbers, curves, nodes, present] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(5),
        Constraint::Min(4),
        Constraint::Length(people),
    ])
    .areas(frame.area());
    frame.render_widget(title(view), head);
    frame.render_widget(figures(view), numbers);

    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(curves);
    let last = |curve: &VecDeque<u64>| curve.front().copied().unwrap_or_default();
    let latency = format!("answer in {:.1} ms", last(&view.latencies_us) as f64 / 1000.0);
    curve(frame, left, &latency, &view.latencies_us, Color::Cyan);
    curve(frame, right, &format!("{} connections", last(&view.connections)), &view.connections, Color::Green);

    frame.render_widget(node_table(view), nodes);
    frame.render_widget(present_table(view), present);
}

fn title(view: &View) -> Line<'static> {
    match &view.problem {
        Some(problem) => Line::from(clean(problem).into_owned()).fg(Color::Red),
        None => Line::from(format!("clawgate top - {} - version {} - q ends", view.url, clean(&view.version))).bold(),
    }
}

fn figures(view: &View) -> Paragraph<'static> {
    let gateway = &view.status["gateway"];
    let number = |key: &str| gateway[key].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let uptime = gateway["uptimeMs"].as_u64().map_or_else(|| "-".into(), |ms| span(Duration::from_millis(ms)));
    let memory = view.status["processMemory"]["rssBytes"].as_u64().map_or_else(|| "-".into(), bytes);
    let queued = gateway["queuedBytes"].as_u64().map_or_else(|| "-".into(), bytes);
    Paragraph::new(format!(
        "up {uptime}   memory {memory}   waiting to be sent {queued}   tasks {}   panics {}",
        number("tasks"),
        number("taskPanics")
    ))
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count / 1024),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

fn curve(frame: &mut Frame<'_>, area: ratatui::layout::Rect, name: &str, curve: &VecDeque<u64>, color: Color) {
    let width = usize::from(area.width.saturating_sub(2));
    let shown: Vec<u64> = curve.iter().take(width).rev().copied().collect();
    let block = Block::bordered().title(name.to_owned());
    frame.render_widget(Sparkline::default().block(block).data(shown).style(Style::new().fg(color)), area);
}

fn node_table(view: &View) -> Table<'static> {
    let connected = view.nodes.iter().filter(|node| node["connected"] == true).count();
    let rows = view.nodes.iter().map(|node| {
        let text = |key: &str| clean(node[key].as_str().unwrap_or_default()).into_owned();
        let name = if text("displayName").is_empty() { text("nodeId") } else { text("displayName") };
        let state = if node["connected"] == true {
            Cell::from("connected").fg(Color::Green)
        } else {
            Cell::from("away").fg(Color::DarkGray)
        };
        let commands = node["commands"].as_array().map_or(0, Vec::len);
        Row::new([Cell::from(name), state, Cell::from(text("platform")), Cell::from(format!("{commands} commands"))])
    });
    let widths = [Constraint::Fill(2), Constraint::Length(10), Constraint::Fill(1), Constraint::Length(14)];
    Table::new(rows, widths)
        .block(Block::bordered().title(format!("{} nodes, {connected} connected", view.nodes.len())))
        .header(Row::new(["Node", "State", "System", "Offers"]).style(Modifier::BOLD))
}

fn present_table(view: &View) -> Table<'static> {
    let now = UnixMs::now();
    let rows = view.present.iter().map(|row| {
        let text = |key: &str| clean(row[key].as_str().unwrap_or_default()).into_owned();
        let seen = row["ts"].as_u64().map_or_else(String::new, |ts| ago(now, UnixMs(ts)));
        Row::new([text("host"), text("mode"), text("version"), seen])
    });
    let widths = [Constraint::Fill(2), Constraint::Length(12), Constraint::Fill(1), Constraint::Length(12)];
    Table::new(rows, widths)
        .block(Block::bordered().title(format!("{} present", view.present.len())))
        .header(Row::new(["Host", "Mode", "Version", "Seen"]).style(Modifier::BOLD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_shows_what_is_known_and_no_control_characters() {
        let mut view = View {
            url: "ws://127.0.0.1:1".into(),
            version: "9.9".into(),
            status: json!({"gateway": {"connections": 3, "uptimeMs": 90_000, "queuedBytes": 2048, "tasks": 5, "taskPanics": 0},
                "processMemory": {"rssBytes": 15_728_640}}),
            nodes: vec![
                json!({"displayName": "Kitchen\u{1b}[2J", "connected": true, "platform": "linux", "commands": ["a", "b"]}),
                json!({"nodeId": "abcdef", "connected": false}),
            ],
            present: vec![json!({"host": "gw", "mode": "gateway", "version": "9.9"})],
            ..View::default()
        };
        keep(&mut view.latencies_us, 1500);
        keep(&mut view.connections, 3);
        let text = as_text(&view);
        for part in [
            "ws://127.0.0.1:1 - version 9.9",
            "up 1m",
            "memory 15.0 MiB",
            "2 KiB",
            "answer in 1.5 ms",
            "3 connections",
            "2 nodes, 1 connected",
            "Kitchen",
            "2 commands",
            "abcdef",
            "away",
            "1 present",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        view.problem = Some("the connection was lost".into());
        assert!(as_text(&view).starts_with("the connection was lost"));
    }

    #[test]
    fn curves_keep_a_bounded_past() {
        let mut curve = VecDeque::new();
        (0..1000).for_each(|n| keep(&mut curve, n));
        assert_eq!((curve.len(), curve.front()), (KEPT, Some(&999)));
    }
}
