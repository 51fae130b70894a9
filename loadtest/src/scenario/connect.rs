//! `connect`: a storm of clients that come, are let in, and leave at once.

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::nodes::SEED;
use super::{STALL, engine, plan};
use crate::args::{Connect, Kind, Run};
use crate::client::{End, Engine, Key, Link, Load, Nanos, Wire};
use crate::floor::{self, Floor};
use crate::identity::Identity;
use crate::progress::Progress;
use crate::report::{Report, show};
use crate::rounds::{Contest, contest, nanos};
use crate::stats::{Side, Tally};
use crate::target::Target;
use crate::wire::{Who, masked_frame_bytes, received_frame_bytes, upgrade};

/// Source addresses of a storm: a port rests for a minute where its connection was closed first.
const SOURCES: u16 = 64;

/// What one admission costs in bytes, from a look at the first.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    upgrade: usize,
    /// The answer to the upgrade, the challenge included.
    challenge: usize,
    connect: usize,
    hello: usize,
}

/// A connection that is under way.
#[derive(Debug)]
enum Visit {
    /// To the gateway.
    Gateway(Rc<Who>),
    /// To the floor, which has answered so often.
    Floor(u32),
}

/// The storm.
#[derive(Debug)]
struct Storm {
    target: Rc<crate::client::Gateway>,
    floor: Option<std::net::SocketAddr>,
    kind: Kind,
    concurrency: usize,
    /// Clients that wait for their turn; new nodes are made when theirs comes.
    waiting: VecDeque<Rc<Who>>,
    under_way: HashMap<Key, Visit>,
    /// Connections begun so far.
    begun: usize,
    made: u64,
    most: u64,
    /// Tells this run's new nodes from those of others.
    seed: String,
    sizes: Sizes,
    side: Side,
    issuing: bool,
    window: Range<Nanos>,
    tallies: [Tally; 2],
    failure: Option<String>,
}

impl Storm {
    /// The next client; `None` when everybody is under way.
    fn next(&mut self) -> Result<Option<Rc<Who>>> {
        if self.kind != Kind::NewNode {
            return Ok(self.waiting.pop_front());
        }
        ensure!(self.made < self.most, "all {} new nodes are paired; see --most", self.most);
        self.made += 1;
        Ok(Some(Rc::new(Who::Node(Identity::new(&self.seed, self.made)?))))
    }

    /// Begins connections until `concurrency` are under way.
    fn fill(&mut self, engine: &mut Engine, concurrency: usize) -> Result<()> {
        while self.under_way.len() < concurrency {
            let (wire, visit) = match (self.side, self.floor) {
                (Side::Floor, Some(address)) => {
                    let answer_bytes = self.sizes.challenge;
                    (Wire::Floor { address, greeting_bytes: 0, answer_bytes }, Visit::Floor(0))
                }
                _ => {
                    let Some(who) = self.next()? else { break };
                    (Wire::Gateway(Rc::clone(&self.target), Rc::clone(&who)), Visit::Gateway(who))
                }
            };
            let key = engine.open(&wire).context("opening a connection")?;
            self.under_way.insert(key, visit);
            self.begun += 1;
        }
        Ok(())
    }

    fn admitted(&mut self, link: &mut Link<'_>) {
        let tally = &mut self.tallies[self.side as usize];
        if self.window.contains(&link.now) {
            tally.operations += 1;
            tally.latencies.record(link.now - link.begun);
        }
        link.leave();
    }
}

impl Load for Storm {
    fn opened(&mut self, link: &mut Link<'_>, hello: &str) {
        if hello.is_empty() {
            link.send_raw(&vec![b'x'; self.sizes.upgrade]);
            return;
        }
        if self.floor.is_none() {
            self.sizes.hello = received_frame_bytes(hello.len());
        }
        self.admitted(link);
    }

    fn text(&mut self, _: &mut Link<'_>, _: &str) {}

    /// The floor's first answer stands for upgrade and challenge, its second one for hello.
    fn answers(&mut self, link: &mut Link<'_>, _: usize) {
        let Some(Visit::Floor(answers)) = self.under_way.get_mut(&link.key) else { return };
        *answers += 1;
        if *answers == 1 {
            link.send_raw(&vec![b'x'; self.sizes.connect]);
            link.expect(self.sizes.hello);
        } else {
            self.admitted(link);
        }
    }

    fn closed(&mut self, key: Key, end: End) {
        if end != End::Left {
            self.tallies[self.side as usize].fail(|| format!("a connection {end}"));
        }
        if let Some(Visit::Gateway(who)) = self.under_way.remove(&key)
            && self.kind != Kind::NewNode
        {
            self.waiting.push_back(who);
        }
    }
}

impl Contest for Storm {
    fn open(&self) -> usize {
        self.under_way.len()
    }

    fn begin(&mut self, _: &mut Engine, side: Side, _: f64) {
        self.side = side;
        self.issuing = true;
    }

    fn count(&mut self, window: Range<Nanos>) {
        self.window = window;
    }

    fn keep_up(&mut self, engine: &mut Engine, _: Nanos) -> Option<Nanos> {
        if self.issuing
            && let Err(error) = self.fill(engine, self.concurrency)
        {
            self.failure.get_or_insert_with(|| format!("{error:#}"));
        }
        None
    }

    fn stop(&mut self) {
        self.issuing = false;
    }

    fn in_flight(&self) -> usize {
        self.under_way.len()
    }

    fn give_up(&mut self, _: Nanos) {}

    fn tally(&mut self, side: Side) -> &mut Tally {
        &mut self.tallies[side as usize]
    }

    fn lost(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

/// Runs the scenario.
pub fn run(options: &Connect, run: &Run) -> Result<Report> {
    let target = Target::find(run)?;
    let mut progress = Progress::new("connect", run.progress);
    let concurrency = options.concurrency as usize;
    let sources = run.sources.unwrap_or(SOURCES);
    let mut engine = engine(&Run { sources: Some(sources), ..run.clone() }, concurrency)?;
    let operator = Rc::new(Who::Operator(clawgate::id::uuid()));
    let waiting = match options.kind {
        Kind::Operator => vec![operator; concurrency].into(),
        // Twice as many as connect at a time: nobody comes back before having left.
        Kind::KnownNode => (0..2 * u64::from(options.concurrency))
            .map(|number| Ok(Rc::new(Who::Node(Identity::new(SEED, number)?))))
            .collect::<Result<_>>()?,
        Kind::NewNode => VecDeque::new(),
    };
    let mut load = Storm {
        target: Rc::clone(&target.gateway),
        floor: None,
        kind: options.kind,
        concurrency,
        waiting,
        under_way: HashMap::new(),
        begun: 0,
        made: 0,
        most: options.most.into(),
        seed: clawgate::id::uuid(),
        sizes: Sizes::default(),
        side: Side::Gateway,
        issuing: false,
        window: 0..0,
        tallies: [Tally::new()?, Tally::new()?],
        failure: None,
    };
    introduce(&mut engine, &mut load)?;

    let Sizes { upgrade, challenge, connect, hello } = load.sizes;
    let steps = vec![(upgrade, challenge), (connect, hello)];
    let floor = (!run.no_floor).then(|| Floor::start(&floor::Kind::Exchange { steps }, &target.cores)).transpose()?;
    load.floor = floor.as_ref().map(|floor| floor.address);
    let (gateway, beside) = contest(&mut engine, &mut load, &plan(run, &target, floor.as_ref()), &mut progress)?;

    let what = match options.kind {
        Kind::Operator => "operators",
        Kind::KnownNode => "known nodes (signature checked)",
        Kind::NewNode => "new nodes (paired durably)",
    };
    let mut report = Report::new("connect", format!("{what}, {concurrency} at a time"), &target);
    report.set("kind", what);
    report.set("concurrency", concurrency);
    report.set("duration", format!("{:?} in {} rounds", run.duration, run.rounds));
    report.set("bytes", format!("{} sent, {} received", upgrade + connect, challenge + hello));
    report.add_contest("admissions", &gateway, beside.as_ref());
    if let Some(folder) = target.state_folder().filter(|_| options.kind == Kind::NewNode) {
        let sync = sync_time(folder)?;
        report.note(format!("one write of 4 KiB reaches the state folder's disk in {}", show::duration(sync)));
    }
    Ok(report)
}

/// Lets a first client in, to see what an admission looks like, and then every known node, so that they are.
fn introduce(engine: &mut Engine, load: &mut Storm) -> Result<()> {
    let some_node = Who::Node(Identity::new(SEED, 0)?);
    let alike = load.waiting.front().map_or(&some_node, |who| &**who);
    let connect = alike.connect(&load.target.credentials, &clawgate::id::uuid())?;
    load.sizes.connect = masked_frame_bytes(connect.len());
    load.sizes.upgrade = upgrade(&load.target.host).len();
    let before = engine.traffic.received_bytes;
    admit(engine, load, 1, 1)?;
    // All that came, less hello and the two bytes of the goodbye's answer.
    let came = (engine.traffic.received_bytes - before) as usize;
    load.sizes.challenge = came.saturating_sub(load.sizes.hello + 2).max(1);
    if load.kind == Kind::KnownNode {
        admit(engine, load, load.waiting.len(), 64)?;
    }
    Ok(())
}

/// Lets `count` clients in, so many at a time.
fn admit(engine: &mut Engine, load: &mut Storm, count: usize, at_a_time: usize) -> Result<()> {
    let end = load.begun + count;
    let mut moved = (load.begun, engine.now());
    while load.begun < end || !load.under_way.is_empty() {
        load.fill(engine, at_a_time.min(load.under_way.len() + end - load.begun))?;
        engine.turn(load, Duration::from_millis(5))?;
        if let Some(error) = &load.tallies[0].first_error {
            bail!("the first connections fail: {error}");
        }
        if moved.0 != load.begun {
            moved = (load.begun, engine.now());
        }
        let waited = engine.now() - moved.1;
        ensure!(waited < nanos(STALL), "no connection was admitted for {} s", STALL.as_secs());
    }
    Ok(())
}

/// Nanoseconds in which a small write reaches the disk under `folder`: the least of several.
fn sync_time(folder: &Path) -> Result<f64> {
    let path = folder.join("sync");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let mut least = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        least = least.min(start.elapsed().as_nanos() as f64);
    }
    std::fs::remove_file(path)?;
    Ok(least)
}
