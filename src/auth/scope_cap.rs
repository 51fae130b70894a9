//! `x-openclaw-scopes`: what a trusted proxy allows a connection at most (contract 2.10).
//!
//! It can only narrow. Absent is not the same as empty: absent caps nothing, empty leaves nothing (S-51).

/// Those of `requested` that `header` names, in their order. Of a header that stands twice the first line
/// counts.
pub fn cap<'a>(requested: impl IntoIterator<Item = &'a str>, header: Option<&str>) -> Vec<&'a str> {
    let allowed = |scope: &str| header.is_none_or(|header| header.split(',').any(|name| name.trim() == scope));
    requested.into_iter().filter(|scope| allowed(scope)).collect()
}
