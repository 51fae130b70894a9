//! Letting strangers in: the code they are told, and what they are told with it. Pure.

/// Letters of a code: capitals and digits, without those that look alike (`0O1I`).
const LETTERS: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// A code of eight letters from eight random bytes.
pub fn code(random: &[u8; 8]) -> String {
    random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

/// A code as people type it: in any case, with space around.
pub fn normalized(code: &str) -> String {
    code.trim().to_ascii_uppercase()
}

/// What a stranger is told.
pub fn invitation(sender: &str, code: &str) -> String {
    format!(
        "This assistant does not know you yet.\n\nYour Telegram user id: `{sender}`\nPairing code: `{code}` (good for one \
         hour)\n\nWhoever runs it can let you in with:\n```\nclawgate pairing approve telegram {code}\n```"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_eight_letters_that_cannot_be_confused() {
        let code = code(&[0, 31, 32, 255, 7, 8, 9, 10]);
        assert_eq!(code.len(), 8);
        assert!(!code.contains(['0', 'O', '1', 'I']));
        assert_eq!(normalized(&format!(" {} ", code.to_lowercase())), code);
    }
}
