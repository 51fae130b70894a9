//! The files of a Control UI that `gateway.controlUi.root` names, as any stranger may have them.
//!
//! A path of a request becomes one of the folder by [`relative`], which lets nothing through that could lead out of it;
//! what symbolic links inside the folder lead to must lie inside, too, and is opened without following a link
//! ([`beneath`]). A path that names no file and does not look like one is a page of the application, and gets
//! `index.html` ([`Files::get`]).
//!
//! Files are read off the workers, a few at a time, and shared: a thousand strangers who take the same file slowly hold
//! one copy of it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST, HeaderMap, IF_NONE_MATCH, LOCATION,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderValue, StatusCode};
use hyper::Response;
use ring::digest::{SHA256, digest};
use rustix::fs::{Mode, OFlags, open, openat};
use serde_json::json;
use tokio::sync::Semaphore;

use super::Answer;
use super::body::Body;
use super::reject;

/// Bytes of one file.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of all files that are kept, with what it takes to keep one.
const MAX_KEPT_BYTES: usize = 96 * 1024 * 1024;
const ENTRY_BYTES: usize = 1024;
/// How long a file that was looked at is not looked at again.
const FRESH: Duration = Duration::from_secs(2);
/// Files that are read at the same time.
const READERS: usize = 4;

/// What a Control UI asks for before it connects.
const CONFIG: &str = "/control-ui-config.json";

/// What a page of the Control UI may load and reach. The scripts that stand in `index.html` itself are allowed by their
/// hashes, one by one; [`policy`] adds them, and the address at which the page was asked for. That is the one gateway it
/// may speak to: a link that names another one takes no credential there.
const POLICY: &str = "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; \
    frame-src 'self' http: https:; style-src 'self' 'unsafe-inline' https://fonts.googleapis.com; \
    img-src 'self' data: blob: https:; media-src 'self' data: blob:; font-src 'self' https://fonts.gstatic.com; \
    worker-src 'self'; connect-src 'self' data: https://api.openai.com https://tweakcn.com";

/// Types of files by the end of their names. Also what tells a file that is missing from a page of the application.
const TYPES: &[(&str, &str)] = &[
    ("css", "text/css; charset=utf-8"),
    ("gif", "image/gif"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "application/javascript; charset=utf-8"),
    ("json", "application/json; charset=utf-8"),
    ("map", "application/json; charset=utf-8"),
    ("md", "text/plain; charset=utf-8"),
    ("mjs", "application/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("ttf", "font/ttf"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("webmanifest", "application/manifest+json; charset=utf-8"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xml", "application/xml"),
];

/// The files of one folder, below a path of the gateway.
#[derive(Debug)]
pub struct Files {
    shelf: Arc<Shelf>,
    base: String,
}

#[derive(Debug)]
struct Shelf {
    /// Without symbolic links.
    root: PathBuf,
    base: String,
    kept: Mutex<Kept>,
    readers: Semaphore,
}

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<String, Arc<File>>,
    bytes: usize,
}

/// A file as it was read.
#[derive(Debug)]
struct File {
    body: Bytes,
    content_type: &'static str,
    /// Sources of its own scripts, for the policy.
    scripts: String,
    tag: HeaderValue,
    cache: &'static str,
    /// Of the file on disk.
    seen: (u64, Option<SystemTime>),
    looked_at: Instant,
}

impl Files {
    /// The files of `root`, below `base`: empty, or a path without a slash at its end.
    ///
    /// # Errors
    /// There is no such folder, or no `index.html` in it.
    pub fn open(root: &Path, base: &str) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        if !root.join("index.html").is_file() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no index.html"));
        }
        let shelf = Shelf { root, base: base.to_owned(), kept: Mutex::default(), readers: Semaphore::new(READERS) };
        Ok(Self { shelf: Arc::new(shelf), base: base.to_owned() })
    }

    /// The rest of `path` below the base; `None` when it is not there.
    pub fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(self.base.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The answer to `GET` of `rest`, which [`Files::below`] gave.
    pub async fn get(&self, rest: &str, headers: &HeaderMap) -> Answer {
        if rest.is_empty() && !self.base.is_empty() {
            return self.to_the_slash();
        }
        if rest == CONFIG {
            return self.config();
        }
        let not_found = || reject::NOT_FOUND.into_answer();
        let Some(name) = relative(rest) else { return not_found() };
        let name = if name.is_empty() { "index.html".to_owned() } else { name };
        let found = match self.file(name.clone()).await {
            Some(file) => Some(file),
            None if is_file_name(&name) => None,
            None => self.file("index.html".to_owned()).await,
        };
        found.map_or_else(not_found, |file| answer(&file, headers))
    }

    /// What the Control UI is told before it connects, and nothing that a stranger may not know.
    fn config(&self) -> Answer {
        let config = json!({
            "basePath": self.base, "assistantName": "Assistant", "assistantAvatar": "A", "assistantAvatarSource": null,
            "assistantAvatarStatus": null, "assistantAvatarReason": null, "assistantAgentId": "main",
            "serverVersion": env!("CARGO_PKG_VERSION"), "embedSandbox": "scripts", "allowExternalEmbedUrls": false,
            "automaticallyFetchFavicons": false, "communityInvite": false, "terminalEnabled": false,
            "cliAgentsEnabled": false, "pluginAssetsRequireAuth": true, "pluginFrameGrants": [],
        });
        let mut answer = Response::new(Body::from(config.to_string()));
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        harden(headers);
        answer
    }

    /// Relative links of a page lead to other places without the slash.
    fn to_the_slash(&self) -> Answer {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::FOUND;
        if let Ok(there) = HeaderValue::try_from(format!("{}/", self.base)) {
            answer.headers_mut().insert(LOCATION, there);
        }
        answer
    }

    async fn file(&self, name: String) -> Option<Arc<File>> {
        if let Some(file) = self.shelf.fresh(&name) {
            return Some(file);
        }
        let _reader = self.shelf.readers.acquire().await.ok()?;
        let shelf = Arc::clone(&self.shelf);
        let read = tokio::task::spawn_blocking(move || shelf.read(&name)).await.ok()?;
        read.inspect_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "a file of gateway.controlUi.root cannot be served");
            }
        })
        .ok()
    }
}

impl Shelf {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self, name: &str) -> Option<Arc<File>> {
        self.kept().files.get(name).filter(|file| file.looked_at.elapsed() < FRESH).cloned()
    }

    fn read(&self, name: &str) -> io::Result<Arc<File>> {
        if let Some(file) = self.fresh(name) {
            return Ok(file);
        }
        let nowhere = || io::Error::from(io::ErrorKind::NotFound);
        // A path that is too long, or goes on behind a file, is none either.
        let path = fs::canonicalize(self.root.join(name)).map_err(|_| nowhere())?;
        let Ok(inside) = path.strip_prefix(&self.root) else {
            return Err(io::Error::other(format!("{name} leads out of the folder")));
        };
        let mut opened = beneath(&self.root, inside)?;
        let meta = opened.metadata()?;
        if !meta.is_file() {
            return Err(nowhere());
        }
        if meta.len() > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("{name} is longer than {MAX_FILE_BYTES} bytes")));
        }
        let seen = (meta.len(), meta.modified().ok());
        let known = self.kept().files.get(name).filter(|file| file.seen == seen).cloned();
        let body = match known {
            Some(file) => file.body.clone(),
            None => {
                let mut body = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
                opened.by_ref().take(MAX_FILE_BYTES).read_to_end(&mut body)?;
                if name == "index.html" { index(body, &self.base) } else { body.into() }
            }
        };
        let file = Arc::new(File::new(name, body, seen));
        self.keep(name, &file);
        Ok(file)
    }

    fn keep(&self, name: &str, file: &Arc<File>) {
        let mut kept = self.kept();
        if let Some(before) = kept.files.remove(name) {
            kept.bytes -= cost(name, &before);
        }
        if kept.bytes + cost(name, file) > MAX_KEPT_BYTES {
            *kept = Kept::default();
        }
        kept.bytes += cost(name, file);
        kept.files.insert(name.to_owned(), Arc::clone(file));
    }
}

/// What it takes to keep a file: by links that lead in circles one may be there under many names.
fn cost(name: &str, file: &File) -> usize {
    file.body.len() + name.len() + ENTRY_BYTES
}

/// Opens `inside`, a path below `root`, as it lies there: no symbolic link is followed, at no step, so that what was
/// looked at is what is opened, whatever is put in its place meanwhile. A pipe is not waited for.
fn beneath(root: &Path, inside: &Path) -> io::Result<fs::File> {
    let here = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut opened = open(root, here | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = inside.components().peekable();
    while let Some(name) = names.next() {
        let kind = if names.peek().is_some() { OFlags::DIRECTORY } else { OFlags::empty() };
        opened = openat(&opened, name.as_os_str(), here | kind, Mode::empty())?;
    }
    Ok(opened.into())
}

impl File {
    fn new(name: &str, body: Bytes, seen: (u64, Option<SystemTime>)) -> Self {
        let is_page = name.ends_with(".html");
        let hashes = if is_page { inline_scripts(&body).collect() } else { String::new() };
        let since = seen.1.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        let tag = HeaderValue::try_from(format!("\"{:x}-{:x}\"", body.len(), since.as_nanos()));
        Self {
            content_type: content_type(name).unwrap_or("application/octet-stream"),
            scripts: hashes,
            tag: tag.unwrap_or(HeaderValue::from_static("\"\"")),
            cache: if has_hash(name) { "public, max-age=31536000, immutable" } else { "no-cache" },
            body,
            seen,
            looked_at: Instant::now(),
        }
    }
}

fn answer(file: &File, asked: &HeaderMap) -> Answer {
    let is_known = asked.get_all(IF_NONE_MATCH).iter().any(|tags| {
        let tags = tags.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        tags.map(|tag| tag.strip_prefix(b"W/").unwrap_or(tag)).any(|tag| tag == file.tag.as_bytes())
    });
    let mut answer = Response::new(if is_known { Body::empty() } else { Body::from(file.body.clone()) });
    if is_known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(file.cache));
    headers.insert(ETAG, file.tag.clone());
    harden(headers);
    headers.insert(CONTENT_SECURITY_POLICY, policy(asked, &file.scripts));
    answer
}

/// The policy of a page that was asked for at the `Host` of `asked`, with the hashes of its own scripts. An IPv6 address has
/// no form in a policy; there a browser's `'self'` must do.
fn policy(asked: &HeaderMap, scripts: &str) -> HeaderValue {
    let host = asked.get(HOST).and_then(|host| host.to_str().ok());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    let gateway = match host.filter(|host| host.bytes().all(is_name)) {
        Some(host) => format!(" ws://{host} wss://{host}"),
        None => String::new(),
    };
    let policy = HeaderValue::try_from(format!("{POLICY}{gateway}; script-src 'self'{scripts}"));
    policy.unwrap_or(HeaderValue::from_static(POLICY))
}

/// What everything of the Control UI says to the browser.
fn harden(headers: &mut HeaderMap) {
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    let permissions = "camera=(self), microphone=(self), geolocation=(self), clipboard-write=(self)";
    headers.insert("permissions-policy", HeaderValue::from_static(permissions));
}

/// The path of a request as one inside the folder: decoded once, `/` between its parts. `None` for what is no name of
/// a file there: `..`, hidden files, empty parts, backslashes, control characters.
pub(crate) fn relative(path: &str) -> Option<String> {
    let decoded = decode(path.strip_prefix('/').unwrap_or(path))?;
    let is_name = |part: &str| !part.is_empty() && !part.starts_with('.');
    let inner = decoded.strip_suffix('/').unwrap_or(&decoded);
    let valid = inner.is_empty() || inner.split('/').all(is_name);
    let plain = !decoded.chars().any(|c| c.is_control() || c == '\\');
    (valid && plain).then(|| inner.to_owned())
}

/// Takes percent-encoding off, once. `None` when it is broken, or the text is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push(match byte {
            b'%' => u8::try_from(digit(rest.next()?)? * 16 + digit(rest.next()?)?).ok()?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn content_type(name: &str) -> Option<&'static str> {
    let (_, end) = name.rsplit('/').next()?.rsplit_once('.')?;
    TYPES.iter().find(|(known, _)| end.eq_ignore_ascii_case(known)).map(|(_, content_type)| *content_type)
}

fn is_file_name(name: &str) -> bool {
    content_type(name).is_some()
}

/// Whether the name changes with the content, as bundlers do it: `assets/index-DsEuFQRE.js`.
fn has_hash(name: &str) -> bool {
    const DIGITS: usize = 8;
    let stem = name.strip_prefix("assets/").and_then(|name| name.rsplit_once('.')).map(|(stem, _)| stem.as_bytes());
    stem.is_some_and(|stem| {
        let hash = stem.len().checked_sub(DIGITS + 1).map(|at| stem.split_at(at).1);
        hash.is_some_and(|hash| {
            hash[0] == b'-' && hash[1..].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
    })
}

/// `index.html` as it is served at any path of the application: its relative links begin at the base, and it is told
/// the base, and that there is no terminal here.
fn index(html: Vec<u8>, base: &str) -> Bytes {
    let Ok(html) = String::from_utf8(html) else { return Bytes::new() };
    let told = format!("<html data-openclaw-control-ui-base-path=\"{base}\" data-openclaw-terminal-enabled=\"false\"");
    html.replacen("<html", &told, 1).replace("=\"./", &format!("=\"{base}/")).into()
}

/// The scripts that stand in the page itself, as sources of a content security policy.
fn inline_scripts(html: &[u8]) -> impl Iterator<Item = String> {
    let html = str::from_utf8(html).unwrap_or_default();
    html.split("<script").skip(1).filter_map(|rest| {
        let (attributes, rest) = rest.split_once('>')?;
        let (script, _) = rest.split_once("</script>")?;
        let is_inline = !attributes.split_whitespace().any(|attribute| attribute.starts_with("src="));
        is_inline.then(|| format!(" 'sha256-{}'", STANDARD.encode(digest(&SHA256, script.as_bytes()))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[test]
    fn a_path_that_could_lead_out_is_none() {
        assert_eq!(relative("/assets/a%20b.js").as_deref(), Some("assets/a b.js"));
        assert_eq!(relative("/").as_deref(), Some(""));
        assert_eq!(relative("/chat/").as_deref(), Some("chat"));
        for out in [
            "/../x",
            "/a/../../x",
            "/%2e%2e/x",
            "/..%2f..%2fetc/passwd",
            "//etc/passwd",
            "/a//b",
            "/.git/config",
            "/a\\..\\b",
            "/%5c..",
            "/a%00.js",
            "/%",
            "/%zz",
            "/%ff",
            "/./a",
        ] {
            assert_eq!(relative(out), None, "{out}");
        }
        // Decoded once: what is left is a name like any other.
        assert_eq!(relative("/%252e%252e/x").as_deref(), Some("%2e%2e/x"));
    }

    #[test]
    fn names_with_a_hash_may_be_kept_for_ever() {
        assert!(has_hash("assets/index-DsEuFQRE.js") && has_hash("assets/a-b_c-d-E1.css"));
        for name in ["index.html", "assets/index.js", "sw.js", "fonts/index-DsEuFQRE.js"] {
            assert!(!has_hash(name), "{name}");
        }
    }

    #[test]
    fn the_index_knows_its_base_and_its_scripts_are_hashed() {
        let html = br#"<html lang="en"><link href="./a.css"><script>alert(1)</script><script src="./b.js"></script>"#;
        let page = index(html.to_vec(), "/oc");
        let text = str::from_utf8(&page).unwrap();
        assert!(text.contains(r#"href="/oc/a.css""#) && text.contains(r#"base-path="/oc""#), "{text}");
        let hashes: Vec<_> = inline_scripts(&page).collect();
        assert_eq!(hashes, [" 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"]);
    }

    #[test]
    fn a_page_may_speak_to_the_gateway_that_served_it_and_to_no_other() {
        let of = |host: &str| {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::try_from(host).unwrap())]);
            policy(&headers, " 'sha256-x'").to_str().unwrap().to_owned()
        };
        let policy = of("gw.example:18789");
        assert!(
            policy.contains("connect-src 'self' ") && policy.contains(" ws://gw.example:18789 wss://gw.example:18789;")
        );
        assert!(
            policy.ends_with("; script-src 'self' 'sha256-x'") && !policy.contains("ws: ") && !policy.contains("wss: ")
        );
        for odd in ["[::1]:18789", "a;b", "*", "a b"] {
            assert!(!of(odd).contains("ws://"), "{odd}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_served_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("ui");
        fs::create_dir_all(root.join("assets")).unwrap();
        fs::write(folder.path().join("secret.txt"), "secret").unwrap();
        fs::write(root.join("index.html"), "<html><p>index</p>").unwrap();
        fs::write(root.join("assets/a-12345678.js"), "a()").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret.txt"), root.join("link.txt")).unwrap();
        assert!(Files::open(&root.join("assets"), "").is_err(), "a folder without an index is none");
        let files = Files::open(&root, "").unwrap();
        let get = async |path: &str, headers: &HeaderMap| {
            let answer = files.get(files.below(path).unwrap(), headers).await;
            let (head, body) = answer.into_parts();
            (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes())
        };
        let none = HeaderMap::new();
        let (status, headers, body) = get("/assets/a-12345678.js", &none).await;
        assert_eq!((status, &body[..]), (200, &b"a()"[..]));
        assert_eq!(headers[CACHE_CONTROL], "public, max-age=31536000, immutable");
        let again = HeaderMap::from_iter([(IF_NONE_MATCH, headers[ETAG].clone())]);
        assert_eq!(get("/assets/a-12345678.js", &again).await.0, 304);
        for page in ["/", "/chat/agent:main:main", "/index.html"] {
            let (status, headers, body) = get(page, &none).await;
            assert!(status == 200 && str::from_utf8(&body).unwrap().contains("index"), "{page}");
            assert_eq!(headers[CACHE_CONTROL], "no-cache");
        }
        let (_, _, config) = get("/control-ui-config.json", &none).await;
        assert!(str::from_utf8(&config).unwrap().contains(r#""basePath":"""#));
        for missing in ["/assets/b.js", "/link.txt", "/..%2fsecret.txt"] {
            assert_eq!(get(missing, &none).await.0, 404, "{missing}");
        }
    }

    /// Between the look at a path and its opening, a link may be put in its place.
    #[test]
    fn what_is_opened_is_reached_without_a_link_at_any_step() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("ui");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/x.js"), "x").unwrap();
        fs::write(folder.path().join("x.js"), "secret").unwrap();
        assert!(beneath(&root, Path::new("a/x.js")).is_ok());
        std::os::unix::fs::symlink(folder.path(), root.join("out")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("x.js"), root.join("x.js")).unwrap();
        for led_out in ["out/x.js", "x.js"] {
            assert!(beneath(&root, Path::new(led_out)).is_err(), "{led_out}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_pipe_in_the_folder_keeps_no_reader_waiting() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("index.html"), "<html>").unwrap();
        let pipe = folder.path().join("pipe.js");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let files = Files::open(folder.path(), "").unwrap();
        let got = tokio::time::timeout(Duration::from_secs(5), files.get("/pipe.js", &HeaderMap::new())).await;
        assert_eq!(got.expect("it is answered").status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn empty_files_under_many_names_are_bounded_too() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("index.html"), "<html>").unwrap();
        let files = Files::open(folder.path(), "").unwrap();
        let file = Arc::new(File::new("x", Bytes::new(), (0, None)));
        for number in 0..=MAX_KEPT_BYTES / ENTRY_BYTES {
            files.shelf.keep(&number.to_string(), &file);
        }
        assert!(files.shelf.kept().files.len() < MAX_KEPT_BYTES / ENTRY_BYTES);
    }

    #[tokio::test]
    async fn below_a_base_the_slash_matters() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("index.html"), "<html>").unwrap();
        let files = Files::open(folder.path(), "/oc").unwrap();
        assert_eq!((files.below("/ocx"), files.below("/"), files.below("/oc/x")), (None, None, Some("/x")));
        let answer = files.get(files.below("/oc").unwrap(), &HeaderMap::new()).await;
        assert_eq!((answer.status(), answer.headers()[LOCATION].to_str().unwrap()), (StatusCode::FOUND, "/oc/"));
    }
}
