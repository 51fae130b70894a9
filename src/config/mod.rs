//! What the operator said: one JSON5 file, the environment and the flags, turned into typed settings.
//!
//! The road of a setting: [`paths`] says where the file is; [`load`] reads it; [`raw`] parses the JSON5 text
//! and keeps comments, order and keys this gateway does not know; [`decode`] turns it into the closed,
//! typed [`model::Config`] or into a list of everything that is wrong, each with file, line and key;
//! [`resolve`] decides, from the typed settings, the environment, the flags and facts about the host, which
//! authentication the server runs with, where it listens, or why it must not start.
//!
//! Only [`load`] touches files, processes or network interfaces; the rest is pure and takes
//! text, maps and facts. It knows nothing of connections or of the wire, except that [`snapshot`] has the
//! shape of the `config.get` result.
//!
//! Start reading at [`model`], then [`decode`], then [`resolve`].

pub mod advertised;
pub mod audit;
pub mod decode;
pub mod edit;
pub mod environment;
pub mod fingerprint;
pub mod flow;
#[cfg(any(test, feature = "internals"))]
pub mod fuzz;
pub mod in_clear;
pub mod key_path;
pub mod keyword;
pub mod load;
pub mod model;
pub mod paths;
pub mod raw;
pub mod redact;
pub mod resolve;
pub mod restart;
pub mod schema;
pub mod secret_ref;
pub mod snapshot;
pub mod spelling;

pub use self::decode::{Decoded, Problem};
pub use self::environment::Environment;
pub use self::key_path::KeyPath;
pub use self::model::Config;
pub use self::paths::{Paths, Profile};
