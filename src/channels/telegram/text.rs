//! Text for Telegram: cut into messages that fit, Markdown turned into the few tags its HTML knows. Pure.

/// The most of one message, in UTF-16 units as Telegram counts them.
pub const MAX_UNITS: usize = 4096;
/// Messages that one answer may become; what is longer is cut off, and says so.
const MAX_PARTS: usize = 24;

/// Cuts `text` into parts of at most `limit` UTF-16 units: between paragraphs, lines or words where that leaves a part
/// at least half full. A code block that is cut is closed, and opened again in the next part.
pub fn split(text: &str, limit: usize) -> Vec<String> {
    let limit = limit.clamp(16, MAX_UNITS);
    let mut parts = Vec::new();
    let mut rest = text.trim().to_owned();
    while units(&rest) > limit {
        if parts.len() + 1 == MAX_PARTS {
            let end = fitting(&rest, limit.saturating_sub(16));
            parts.push(format!("{}\n[cut off]", rest[..end].trim_end()));
            return parts;
        }
        // Room for closing a code block.
        let end = boundary(&rest, fitting(&rest, limit.saturating_sub(4)));
        let (part, more) = rest.split_at(end);
        let fence = open_fence(part);
        let mut part = part.trim_end().to_owned();
        let mut more =
            if fence.is_some() { more.strip_prefix('\n').unwrap_or(more) } else { more.trim_start() }.to_owned();
        if let Some(fence) = fence {
            part.push_str("\n```");
            more = format!("{fence}\n{more}");
        }
        // A fence line so long that nothing is gained is given up.
        if units(&more) >= units(&rest) {
            more = rest[end..].to_owned();
        }
        parts.push(part);
        rest = more;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// The beginning of an answer that is still being written, for a message of at most `limit` units; empty when there is
/// nothing to read in it.
pub fn beginning(text: &str, limit: usize) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let end = fitting(text, limit.clamp(16, MAX_UNITS) - 2);
    format!("{} …", text[..end].trim_end())
}

/// UTF-16 units of `text`.
pub fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// Bytes of the longest beginning of `text` with at most `limit` units.
fn fitting(text: &str, limit: usize) -> usize {
    let mut left = limit;
    for (at, c) in text.char_indices() {
        let Some(after) = left.checked_sub(c.len_utf16()) else { return at };
        left = after;
    }
    text.len()
}

/// The best place to cut at or before `end`.
fn boundary(text: &str, end: usize) -> usize {
    let head = &text[..end];
    for between in ["\n\n", "\n", " "] {
        if let Some(at) = head.rfind(between)
            && at >= end / 2
        {
            return at;
        }
    }
    // Never nothing: a single character always fits.
    if end == 0 { text.chars().next().map_or(0, char::len_utf8) } else { end }
}

/// The line that opened a code block which is still open at the end of `text`.
fn open_fence(text: &str) -> Option<&str> {
    let mut open = None;
    for line in text.lines().filter(|line| line.trim_start().starts_with("```")) {
        open = match open {
            None => Some(line.trim()),
            Some(_) => None,
        };
    }
    open
}

/// Markdown as Telegram's HTML: code, bold, italics and links; everything else stands as it is, escaped.
pub fn html(markdown: &str) -> String {
    let mut out = String::with_capacity(markdown.len() + 64);
    let mut lines = markdown.split('\n').peekable();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("```") {
            out.push_str("<pre>");
            let mut first = true;
            for line in lines.by_ref() {
                if line.trim_start().starts_with("```") {
                    break;
                }
                if !std::mem::take(&mut first) {
                    out.push('\n');
                }
                escape(line, &mut out);
            }
            out.push_str("</pre>");
        } else {
            let heading = line.trim_start_matches('#');
            let level = line.len() - heading.len();
            match heading.strip_prefix(' ') {
                Some(heading) if (1..=6).contains(&level) => {
                    out.push_str("<b>");
                    escape(heading.trim(), &mut out);
                    out.push_str("</b>");
                }
                _ => inline(line, &mut out),
            }
        }
        if lines.peek().is_some() {
            out.push('\n');
        }
    }
    out
}

fn inline(line: &str, out: &mut String) {
    let mut rest = line;
    while let Some(at) = rest.find(['`', '*', '[']) {
        escape(&rest[..at], out);
        rest = &rest[at..];
        let taken = match rest.as_bytes() {
            [b'`', ..] => pair(rest, "`", "code", out, escape),
            [b'*', b'*', ..] => pair(rest, "**", "b", out, inline),
            [b'*', ..] => pair(rest, "*", "i", out, inline),
            _ => link(rest, out),
        };
        match taken {
            Some(bytes) => rest = &rest[bytes..],
            None => {
                escape(&rest[..1], out);
                rest = &rest[1..];
            }
        }
    }
    escape(rest, out);
}

/// What stands between two `mark`s, in a tag. Bytes that it took.
fn pair(text: &str, mark: &str, tag: &str, out: &mut String, inside: fn(&str, &mut String)) -> Option<usize> {
    let body = &text[mark.len()..];
    let end = body.find(mark)?;
    let body = &body[..end];
    if body.is_empty() || body.starts_with(' ') || body.ends_with(' ') {
        return None;
    }
    out.push_str(&format!("<{tag}>"));
    inside(body, out);
    out.push_str(&format!("</{tag}>"));
    Some(2 * mark.len() + end)
}

fn link(text: &str, out: &mut String) -> Option<usize> {
    let (label, rest) = text[1..].split_once("](")?;
    let (url, _) = rest.split_once(')')?;
    let good = (url.starts_with("https://") || url.starts_with("http://")) && !url.contains(char::is_whitespace);
    if label.is_empty() || label.contains(['[', ']', '\n']) || !good {
        return None;
    }
    out.push_str("<a href=\"");
    escape(url, out);
    out.push_str("\">");
    escape(label, out);
    out.push_str("</a>");
    Some(1 + label.len() + 2 + url.len() + 1)
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_text_is_one_message_and_nothing_is_none() {
        assert_eq!(split(" hi ", 4096), ["hi"]);
        assert!(split(" \n ", 4096).is_empty());
    }

    #[test]
    fn cuts_between_paragraphs_then_lines_then_words() {
        assert_eq!(split("aaaa aaaa aaaa\n\nbbbb bbbb", 20), ["aaaa aaaa aaaa", "bbbb bbbb"]);
        assert_eq!(split("aaaa aaaa aaaa bbbb bbbb", 20), ["aaaa aaaa aaaa", "bbbb bbbb"]);
        let parts = split(&"x".repeat(10_000), 4096);
        assert_eq!(parts.iter().map(String::len).sum::<usize>(), 10_000);
    }

    #[test]
    fn a_code_block_is_closed_and_opened_again() {
        let parts = split(&format!("```sh\n{}```", "echo 123456789\n".repeat(4)), 40);
        assert!(parts.len() > 1);
        for part in &parts {
            assert!(part.starts_with("```sh\n") && part.ends_with("```"), "{part:?}");
        }
    }

    #[test]
    fn units_are_those_of_utf_16() {
        let parts = split(&"😀".repeat(3000), 4096);
        assert!(parts.iter().all(|part| units(part) <= 4096));
        assert_eq!(parts.concat(), "😀".repeat(3000));
    }

    #[test]
    fn markdown_becomes_the_tags_that_telegram_knows() {
        assert_eq!(html("a **b** `c<d` *e*"), "a <b>b</b> <code>c&lt;d</code> <i>e</i>");
        assert_eq!(html("```rs\nlet x = \"<\";\n```\nend"), "<pre>let x = &quot;&lt;&quot;;</pre>\nend");
        assert_eq!(html("# Title"), "<b>Title</b>");
        assert_eq!(html("[x](https://e.example/?a=1&b)"), "<a href=\"https://e.example/?a=1&amp;b\">x</a>");
        for odd in ["2 * 3 * 4", "**", "`", "[x](javascript:1)", "a ** b", "<script>"] {
            assert!(!html(odd).contains("<b>") && !html(odd).contains("<a") && !html(odd).contains("<script"), "{odd}");
        }
    }

    #[test]
    fn a_beginning_says_that_it_is_one() {
        assert_eq!(beginning(" one two ", 100), "one two …");
        assert_eq!(beginning(" \n ", 100), "");
        assert_eq!(units(&beginning(&"ü".repeat(5000), 9999)), MAX_UNITS);
    }

    proptest! {
        #[test]
        fn every_part_fits(text in "(?s).{0,400}", limit in 16usize..80) {
            for part in split(&text, limit) {
                prop_assert!(units(&part) <= limit, "{part:?}");
            }
        }

        #[test]
        fn tags_are_always_closed(text in "[ab*`\\[\\]()#\n ]{0,40}") {
            let html = html(&text);
            for tag in ["b", "i", "code", "pre", "a"] {
                let count = |what: &str| html.matches(what).count();
                let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
                prop_assert_eq!(opened, count(&format!("</{tag}>")));
            }
        }
    }
}
