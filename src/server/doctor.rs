//! `clawgate doctor proxy`: what the gateway makes of a request that comes through a proxy.
//!
//! An administrator asks for a number over their connection (`gateway.doctor.proxy.begin`), sends a request with it through
//! the proxy to [`PATH`], and fetches the report over their connection again (`gateway.doctor.proxy.report`). The request
//! itself is answered with nothing; without a number that was given out, [`PATH`] is a page that is not there. So a stranger
//! learns nothing, not even that anybody is looking.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::auth::explain::Report;
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::RpcError;
use crate::secret::SecretHash;

/// Where the request goes.
pub const PATH: &str = "/clawgate/doctor";
/// The header that carries the number.
pub const HEADER: &str = "x-clawgate-doctor";
/// Milliseconds that a number is good for.
const TTL_MS: u64 = 120_000;
/// Numbers that are out at a time; the oldest gives way.
const MAX_OUT: usize = 8;

/// Methods of this page's own; the wire of the incumbent has none like them.
pub const METHODS: &[Method<Doctor>] = &[
    Method { name: "gateway.doctor.proxy.begin", handler: begin },
    Method { name: "gateway.doctor.proxy.report", handler: report },
];

/// Handle to the numbers that are out. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Doctor(Arc<Mutex<VecDeque<Examination>>>);

#[derive(Debug)]
struct Examination {
    number: SecretHash,
    expires_at: UnixMs,
    report: Option<Report>,
}

impl Doctor {
    /// Takes a request that says `number`. `report` is made and kept when the number was given out and not used yet.
    pub fn examine(&self, number: &str, now: UnixMs, report: impl FnOnce() -> Report) -> bool {
        let number = SecretHash::of(number);
        let mut out = self.out(now);
        let Some(examination) = out.iter_mut().find(|it| it.number == number && it.report.is_none()) else {
            return false;
        };
        examination.report = Some(report());
        true
    }

    fn out(&self, now: UnixMs) -> MutexGuard<'_, VecDeque<Examination>> {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.retain(|examination| now < examination.expires_at);
        out
    }
}

fn begin(doctor: &Doctor, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Begun<'a> {
        number: &'a str,
        path: &'static str,
        header: &'static str,
        expires_at_ms: UnixMs,
    }
    call.no_params()?;
    let number = id::token();
    let expires_at = call.now().plus(TTL_MS);
    {
        let mut out = doctor.out(call.now());
        if out.len() >= MAX_OUT {
            out.pop_front();
        }
        out.push_back(Examination { number: SecretHash::of(&number), expires_at, report: None });
    }
    call.answer(&Begun { number: &number, path: PATH, header: HEADER, expires_at_ms: expires_at })
}

fn report(doctor: &Doctor, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        number: String,
    }
    #[derive(Serialize)]
    struct Answer {
        report: Option<Report>,
    }
    let Params { number } = call.params()?;
    let number = SecretHash::of(&number);
    let report = {
        let mut out = doctor.out(call.now());
        let at = out.iter().position(|examination| examination.number == number);
        let at = at.ok_or_else(|| RpcError::invalid("this number was not given out, or it is too old: begin again"))?;
        // Given once; until the request has come, it is asked for again.
        if out[at].report.is_some() { out.remove(at).and_then(|examination| examination.report) } else { None }
    };
    call.answer(&Answer { report })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let policy = crate::auth::Policy::new(1, crate::auth::AuthMode::None);
        crate::auth::explain::explain([127, 0, 0, 1].into(), crate::auth::HeaderView::default(), Some(&[]), &policy)
    }

    #[test]
    fn a_number_serves_once_and_for_a_while() {
        let doctor = Doctor::default();
        let now = UnixMs(1_000);
        let give = |number: &str| {
            let examination =
                Examination { number: SecretHash::of(number), expires_at: now.plus(TTL_MS), report: None };
            doctor.out(now).push_back(examination);
        };
        assert!(!doctor.examine("", now, report) && !doctor.examine("one", now, report), "none is out");
        give("one");
        assert!(!doctor.examine("two", now, report));
        assert!(doctor.examine("one", now, report));
        assert!(!doctor.examine("one", now, report), "it was used");
        give("old");
        assert!(!doctor.examine("old", now.plus(TTL_MS), report), "it is too old");
    }
}
