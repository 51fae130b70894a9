//! Text from outside, made safe to show. Pure.

/// Text from outside on its way into a log or an error: no control or format characters (a line cannot be
/// forged, a terminal not steered), at most `most` characters.
pub fn plain(text: &str, most: usize) -> String {
    let mut plain = String::new();
    for (count, c) in text.chars().filter(|c| !c.is_control() && !is_format(*c)).enumerate() {
        if count == most {
            plain.push('…');
            break;
        }
        plain.push(c);
    }
    plain
}

/// Characters of Unicode's category Cf that can reorder or hide what follows them.
const fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn what_is_shown_forges_no_line_and_steers_no_terminal() {
        assert_eq!(plain("a\r\n2026 ERROR b\u{1b}[31m\u{202e}x", 100), "a2026 ERROR b[31mx");
        assert_eq!(plain("abc", 2), "ab…");
    }
}
