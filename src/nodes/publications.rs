//! What a connected node tells of itself: tools, skills, resources, activity, and the runs it was asked for.
//!
//! All of it is the node's word, checked for shape and bounded, and ends with its session. Nothing here is a
//! right: a tool shows only while its command is in effect.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::surface::Surface;
use crate::clock::UnixMs;

/// Tools of one node.
pub(super) const MAX_TOOLS: usize = 128;
/// Bytes of the tools of one node, as JSON.
pub(super) const MAX_TOOLS_BYTES: usize = 512 * 1024;
/// Skills of one node.
pub(super) const MAX_SKILLS: usize = 64;
/// Bytes of the skills of one node.
pub(super) const MAX_SKILLS_BYTES: usize = 512 * 1024;
/// Bytes of one skill's content.
const MAX_SKILL_BYTES: usize = 64 * 1024;
/// Characters of a description.
const MAX_DESCRIPTION_CHARS: usize = 1024;
/// Runs whose events a node may report. Beyond them the oldest is no longer believed.
const MAX_RUNS: usize = 256;

/// What a session has published.
#[derive(Debug, Default)]
pub(super) struct Publications {
    /// Its tools, by plugin and name.
    pub tools: Vec<Tool>,
    /// Its skills, by name.
    pub skills: Vec<Skill>,
    /// Its resources, and when they were reported.
    pub host_stats: Option<TimedStats>,
    /// When its user was last active, and when that was reported.
    pub activity: Option<Activity>,
    /// Runs it was asked for.
    pub runs: Runs,
}

impl Publications {
    /// The tools whose command is in effect, as a JSON array.
    pub(super) fn visible_tools(&self, effective: &Surface) -> Vec<u8> {
        let mut out = vec![b'['];
        for tool in self.tools.iter().filter(|tool| effective.has_command(&tool.command)) {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(tool.json.as_bytes());
        }
        out.push(b']');
        out
    }
}

/// A tool of a node for agents.
#[derive(Debug)]
pub(super) struct Tool {
    command: Arc<str>,
    /// The descriptor, as it is listed.
    json: Box<str>,
}

/// A tool as a node publishes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ToolDescriptor {
    plugin_id: String,
    name: String,
    description: String,
    parameters: Option<Box<RawValue>>,
    command: Option<String>,
    mcp: Option<McpTool>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct McpTool {
    server: String,
    tool: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedTool<'a> {
    plugin_id: &'a str,
    name: &'a str,
    description: String,
    parameters: &'a RawValue,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mcp: Option<&'a McpTool>,
}

/// Takes tools in, by plugin and name. Those that no agent could call are left out: no command, a name that model
/// providers refuse, one too many.
pub(super) fn tools(published: Vec<ToolDescriptor>) -> Vec<Tool> {
    let any: Box<RawValue> = serde_json::value::to_raw_value(
        &serde_json::json!({"type": "object", "properties": {}, "additionalProperties": true}),
    )
    .unwrap_or_default();
    let mut usable: Vec<_> = published
        .iter()
        .filter(|tool| {
            let mcp_is_mcp = tool.plugin_id != "node-mcp"
                || (tool.command.as_deref() == Some("mcp.tools.call.v1") && tool.mcp.is_some());
            !tool.plugin_id.trim().is_empty() && is_tool_name(&tool.name) && mcp_is_mcp
        })
        .filter_map(|tool| Some((tool, tool.command.as_deref()?.trim())))
        .collect();
    usable.sort_by(|(a, _), (b, _)| (&a.plugin_id, &a.name).cmp(&(&b.plugin_id, &b.name)));
    usable.dedup_by(|(a, _), (b, _)| (&a.plugin_id, &a.name) == (&b.plugin_id, &b.name));
    let mut bytes = 0;
    let listed = usable.into_iter().take(MAX_TOOLS).map_while(|(tool, command)| {
        let json = serde_json::to_string(&ListedTool {
            plugin_id: tool.plugin_id.trim(),
            name: &tool.name,
            description: tool.description.chars().take(MAX_DESCRIPTION_CHARS).collect(),
            parameters: tool.parameters.as_deref().filter(|schema| schema.get().starts_with('{')).unwrap_or(&any),
            command,
            mcp: tool.mcp.as_ref(),
        })
        .ok()?;
        bytes += json.len();
        (bytes <= MAX_TOOLS_BYTES).then(|| Tool { command: command.into(), json: json.into() })
    });
    listed.collect()
}

/// `^[A-Za-z][A-Za-z0-9_-]{0,63}$`: what every model provider takes.
fn is_tool_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A skill of a node: instructions for agents that use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Skill {
    /// Its name, also of its folder on the node.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its `SKILL.md`.
    pub content: String,
}

/// Takes skills in, by name; those that are not of the wire's form, and those too many, are left out.
pub(super) fn skills(published: Vec<Skill>) -> Vec<Skill> {
    let mut usable: Vec<Skill> = published
        .into_iter()
        .filter(|skill| {
            let described = (1..=MAX_DESCRIPTION_CHARS).contains(&skill.description.trim().chars().count());
            is_skill_name(&skill.name) && described && (1..=MAX_SKILL_BYTES).contains(&skill.content.len())
        })
        .collect();
    usable.sort_by(|a, b| a.name.cmp(&b.name));
    usable.dedup_by(|a, b| a.name == b.name);
    let mut bytes = 0;
    let fits = usable.into_iter().take(MAX_SKILLS).take_while(|skill| {
        bytes += skill.content.len();
        bytes <= MAX_SKILLS_BYTES
    });
    fits.collect()
}

/// `^(?!.*--)[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$`
fn is_skill_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=64).contains(&name.len())
        && name.starts_with(edge)
        && name.ends_with(edge)
        && !name.contains("--")
        && name.chars().all(|c| edge(c) || c == '-')
}

/// Resources of a node's host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HostStats {
    /// Processors, 1 to 4096.
    pub cpu_count: u16,
    /// Averages of 1, 5 and 15 minutes; absent where the system has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_average: Option<[f64; 3]>,
    /// Memory.
    pub memory_total_bytes: u64,
    /// Memory that is free.
    pub memory_free_bytes: u64,
    /// The volume of the home folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_total_bytes: Option<u64>,
    /// What of it is available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_available_bytes: Option<u64>,
}

impl HostStats {
    /// Whether the numbers can be true together.
    pub(super) fn is_plausible(&self) -> bool {
        let disk = match (self.disk_total_bytes, self.disk_available_bytes) {
            (None, None) => true,
            (Some(total), Some(available)) => available <= total,
            _ => false,
        };
        (1..=4096).contains(&self.cpu_count)
            && self.load_average.is_none_or(|loads| loads.iter().all(|load| (0.0..=100_000.0).contains(load)))
            && self.memory_free_bytes <= self.memory_total_bytes
            && disk
    }
}

/// Resources, and when they were reported, by the gateway's clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TimedStats {
    /// What was reported.
    #[serde(flatten)]
    pub stats: HostStats,
    /// When.
    pub updated_at_ms: UnixMs,
}

/// When a node's user was last active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Activity {
    /// When, by the gateway's clock.
    pub last_active_at_ms: UnixMs,
    /// When that was reported.
    pub presence_updated_at_ms: UnixMs,
}

/// The runs that a node was asked for through this session: only of these may it tell.
#[derive(Debug, Default)]
pub(super) struct Runs(VecDeque<Box<str>>);

impl Runs {
    /// The node is about to be asked for this run.
    pub(super) fn begin(&mut self, run_id: &str) {
        if self.0.len() == MAX_RUNS {
            self.0.pop_front();
        }
        self.0.push_back(run_id.into());
    }

    /// Whether the node was asked for this run.
    pub(super) fn contains(&self, run_id: &str) -> bool {
        self.0.iter().any(|known| **known == *run_id)
    }

    /// The run has ended, or was never begun.
    pub(super) fn end(&mut self, run_id: &str) {
        self.0.retain(|known| **known != *run_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn surface(commands: &[&str]) -> Surface {
        Surface::declared([], commands.iter().copied(), [])
    }

    #[test]
    fn a_tool_shows_only_while_its_command_is_in_effect() {
        let text = json!([
            {"pluginId": "p", "name": "b", "description": "d", "command": "x.b", "parameters": {"type": "object"}},
            {"pluginId": "p", "name": "a", "description": "d", "command": "x.a"},
            {"pluginId": "p", "name": "a", "description": "again", "command": "x.b"},
            {"pluginId": "p", "name": "no command", "description": "d"},
            {"pluginId": "node-mcp", "name": "m", "description": "d", "command": "x.a"},
        ])
        .to_string();
        let published: Vec<ToolDescriptor> = serde_json::from_str(&text).unwrap();
        let publications = Publications { tools: tools(published), ..Publications::default() };
        let shown = |commands: &[&str]| -> Vec<String> {
            let json = publications.visible_tools(&surface(commands));
            let list: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
            list.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(shown(&["x.a", "x.b"]), ["a", "b"]);
        assert_eq!(shown(&["x.b"]), ["b"]);
        assert!(shown(&[]).is_empty());
    }

    #[test]
    fn tools_and_skills_are_bounded() {
        let tool = |n: usize| json!({"pluginId": "p", "name": format!("t{n}"), "description": "d", "command": "c"});
        let text = json!((0..300).map(tool).collect::<Vec<_>>()).to_string();
        let published: Vec<ToolDescriptor> = serde_json::from_str(&text).unwrap();
        assert_eq!(tools(published).len(), MAX_TOOLS);
        let skill = |n: usize, bytes: usize| Skill {
            name: format!("s{n}"),
            description: "d".into(),
            content: "x".repeat(bytes),
        };
        assert_eq!(skills((0..100).map(|n| skill(n, 1)).collect()).len(), MAX_SKILLS);
        assert_eq!(skills((0..64).map(|n| skill(n, 64 * 1024)).collect()).len(), 8);
        assert!(skills(vec![skill(1, 64 * 1024 + 1)]).is_empty());
        for name in ["", "A", "-a", "a-", "a--b", "ä"] {
            assert!(!is_skill_name(name), "{name}");
        }
        assert!(is_skill_name("a-b2"));
    }

    #[test]
    fn host_stats_must_be_plausible() {
        let parse = |value: serde_json::Value| -> Option<HostStats> {
            serde_json::from_str(&value.to_string()).ok().filter(HostStats::is_plausible)
        };
        let good = json!({"cpuCount": 2, "loadAverage": [0.4, 0.7, 0.4], "memoryTotalBytes": 10, "memoryFreeBytes": 9,
            "diskTotalBytes": 5, "diskAvailableBytes": 5});
        let stats = parse(good.clone()).unwrap();
        let timed = TimedStats { stats, updated_at_ms: UnixMs(7) };
        let mut listed = good.clone();
        listed["updatedAtMs"] = json!(7);
        assert_eq!(serde_json::to_value(timed).unwrap(), listed);
        for (key, value) in [
            ("cpuCount", json!(0)),
            ("cpuCount", json!(4097)),
            ("cpuCount", json!(1.5)),
            ("loadAverage", json!([1, 2])),
            ("loadAverage", json!([-1, 2, 3])),
            ("memoryFreeBytes", json!(11)),
            ("diskAvailableBytes", json!(6)),
            ("diskAvailableBytes", json!(null)),
            ("updatedAtMs", json!(1)),
        ] {
            let mut wrong = good.clone();
            wrong[key] = value;
            assert_eq!(parse(wrong.clone()), None, "{wrong}");
        }
    }

    #[test]
    fn only_runs_that_were_asked_for_are_known() {
        let mut runs = Runs::default();
        runs.begin("r");
        assert!(runs.contains("r") && !runs.contains("q"));
        runs.end("r");
        assert!(!runs.contains("r"));
        (0..=MAX_RUNS).for_each(|n| runs.begin(&n.to_string()));
        assert!(!runs.contains("0") && runs.contains("1"));
    }
}
