//! What must hold at the end, whatever happened: told from what the simulator wrote down, which the product cannot see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use defender_bridge::simulator::cognito::{Brain, BulkHost, BulkKind, TagWrite, Writer};
use defender_bridge::simulator::{ActionPost, Control, Isolation};
use jiff::SignedDuration;

use super::analysts::PROTECTS;
use super::stage::{BLOCK, CONTEXT, PREFIX, TENANT, UNBLOCK};

/// A request that was withdrawn so shortly before Defender took it was withdrawn in the race of `cognito.md` 5.10, no. 2:
/// a call that was slow on its way included.
const WITHDRAWN_BEFORE: SignedDuration = SignedDuration::from_secs(3);

/// How it came out.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What was promised and is not so, by host.
    pub violations: Vec<(u64, String)>,
    /// What is not as the last tag asked and is as the contract says, by reason.
    pub explained: BTreeMap<&'static str, u64>,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Verdict {
    fn wrong(&mut self, host: &BulkHost, what: impl Into<String>) {
        self.violations.push((host.id, what.into()));
    }

    fn explain(&mut self, why: &'static str) {
        *self.explained.entry(why).or_default() += 1;
    }

    fn count(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }
}

/// What the analysts asked for last, as far as the bridge answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Block,
    Unblock,
}

/// What can become of a host's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Isolated,
    /// It is protected: the request is denied.
    Denied,
    /// There is no machine, or not only one.
    NotFound,
}

fn has(tags: &[String], tag: &str) -> bool {
    tags.iter().any(|one| one == tag)
}

fn is_foreign(tag: &str) -> bool {
    !tag.starts_with(PREFIX) && ![BLOCK, UNBLOCK, CONTEXT].contains(&tag)
}

fn fate(host: &BulkHost, tags: &[String]) -> Fate {
    match host.kind {
        BulkKind::Plain if has(tags, PROTECTS) => Fate::Denied,
        BulkKind::Plain => Fate::Isolated,
        BulkKind::Server | BulkKind::KeyAsset | BulkKind::Protected => Fate::Denied,
        BulkKind::NoAgent | BulkKind::SharedAddress | BulkKind::OtherName => Fate::NotFound,
    }
}

/// Looks at everything.
pub fn judge(control: &Control, hosts: &[BulkHost]) -> Verdict {
    let brain = control.brain();
    let mut verdict = Verdict::default();
    let truths = control.isolations(TENANT);
    let posts = control.isolate_posts(TENANT);
    let mut posts_of: HashMap<&str, Vec<&ActionPost>> = HashMap::new();
    for post in &posts {
        posts_of.entry(post.machine.as_str()).or_default().push(post);
    }
    verdict.count("isolations posted", posts.len() as u64);
    verdict.count("releases posted", (control.action_posts(TENANT).len() - posts.len()) as u64);
    let raced = tags_undone(&brain, hosts, &mut verdict);
    for host in hosts {
        let history = brain.history(host.id);
        let tags = brain.tags(host.id).unwrap_or_default();
        verdict.count("tag writes of analysts", writes(&history, Writer::Analyst));
        verdict.count("tag writes of the bridge", writes(&history, Writer::Api));
        foreign_tags(host, &history, &tags, &raced, &mut verdict);
        for machine in &host.machines {
            let truth = truths.get(machine).cloned().unwrap_or_default();
            let posts = posts_of.get(machine.as_str()).map(Vec::as_slice).unwrap_or_default();
            machine_promises(host, &history, &tags, &truth, posts, &mut verdict);
        }
        let truth = host.machines.first().and_then(|machine| truths.get(machine)).cloned().unwrap_or_default();
        final_state(host, &history, &tags, &truth, &mut verdict);
    }
    verdict
}

fn writes(history: &[TagWrite], writer: Writer) -> u64 {
    history.iter().filter(|write| write.writer == writer).count() as u64
}

/// Foreign tags that a write of the bridge undid: in the one race, or not. The former by host and tag.
fn tags_undone(brain: &Brain, hosts: &[BulkHost], verdict: &mut Verdict) -> BTreeSet<(u64, String)> {
    let by_id: HashMap<u64, &BulkHost> = hosts.iter().map(|host| (host.id, host)).collect();
    let mut raced = BTreeSet::new();
    for undone in brain.undone(|tag| !is_foreign(tag)) {
        let Some(host) = by_id.get(&undone.host) else { continue };
        if undone.raced {
            verdict
                .explain("a foreign tag was set or removed between a reading and the writing after it (5.10, no. 1)");
            raced.insert((undone.host, undone.tag));
        } else {
            let what = if undone.lost { "lost" } else { "brought back" };
            verdict.wrong(host, format!("write {} {what} {:?}, which it had been shown", undone.write, undone.tag));
        }
    }
    raced
}

/// What analysts did is there, but for what was raced.
fn foreign_tags(
    host: &BulkHost,
    history: &[TagWrite],
    tags: &[String],
    raced: &BTreeSet<(u64, String)>,
    verdict: &mut Verdict,
) {
    let mut expected: BTreeSet<&String> = BTreeSet::new();
    for write in history.iter().filter(|write| write.writer == Writer::Analyst) {
        expected.extend(write.new.iter().filter(|tag| !write.old.contains(tag)));
        expected.retain(|tag| write.new.contains(tag) || !write.old.contains(tag));
    }
    let expected: BTreeSet<&String> = expected.into_iter().filter(|tag| is_foreign(tag)).collect();
    let present: BTreeSet<&String> = tags.iter().filter(|tag| is_foreign(tag)).collect();
    for tag in expected.symmetric_difference(&present) {
        if !raced.contains(&(host.id, (*tag).clone())) {
            let what = if present.contains(tag) { "is there again" } else { "is lost" };
            verdict.wrong(host, format!("the foreign tag {tag:?} {what}"));
        }
    }
}

/// What holds for a machine at every moment.
fn machine_promises(
    host: &BulkHost,
    history: &[TagWrite],
    tags: &[String],
    truth: &Isolation,
    posts: &[&ActionPost],
    verdict: &mut Verdict,
) {
    let isolable = fate(host, tags) == Fate::Isolated;
    if !isolable && (!posts.is_empty() || !truth.changes.is_empty()) {
        verdict.wrong(host, format!("a machine that must not be isolated ({:?}) was asked to be", host.kind));
    }
    if truth.most_open_isolates > 1 {
        verdict.wrong(host, format!("{} isolations were open at once", truth.most_open_isolates));
    }
    if truth.harmful > 0 {
        verdict.wrong(host, format!("{} duplicates do harm", truth.harmful));
    }
    verdict.count("isolations posted for what was isolated or open", truth.duplicates as u64);
    for post in posts {
        let before = history.iter().rfind(|write| write.at <= post.at);
        if before.is_some_and(|write| has(&write.new, BLOCK)) {
            continue;
        }
        let withdrawn = history.iter().rfind(|write| {
            write.at <= post.at && has(&write.old, BLOCK) && !has(&write.new, BLOCK) && write.writer == Writer::Analyst
        });
        match withdrawn {
            Some(write) if post.at.duration_since(write.at) <= WITHDRAWN_BEFORE => {
                verdict.explain("a block tag was withdrawn between the last look and the request (5.10, no. 2)");
            }
            _ => verdict.wrong(host, format!("the machine was isolated at {} and nobody asked for it", post.at)),
        }
    }
}

/// What the tags asked for last, and whether withdrawals or races leave open what came of it.
fn last_request(history: &[TagWrite]) -> (Last, bool) {
    let (mut last, mut open) = (Last::Nothing, false);
    // Since the bridge answered the last one.
    let (mut both, mut withdrawn) = (false, false);
    for (index, write) in history.iter().enumerate() {
        let removed = |tag| has(&write.old, tag) && !has(&write.new, tag);
        if write.writer == Writer::Analyst {
            withdrawn |= removed(BLOCK) || removed(UNBLOCK);
        } else if removed(BLOCK) || removed(UNBLOCK) {
            // A tag that came after the last reading was not what was answered.
            let unseen = |tag| {
                removed(tag)
                    && history[..index].iter().any(|earlier| {
                        write.known.is_none_or(|known| earlier.number > known)
                            && !has(&earlier.old, tag)
                            && has(&earlier.new, tag)
                    })
            };
            open = (both && withdrawn) || unseen(BLOCK) || unseen(UNBLOCK);
            last = if removed(BLOCK) { Last::Block } else { Last::Unblock };
            (both, withdrawn) = (false, false);
        }
        both |= has(&write.new, BLOCK) && has(&write.new, UNBLOCK);
    }
    (last, open || withdrawn)
}

/// What the decision table gives for the last tags.
fn final_state(host: &BulkHost, history: &[TagWrite], tags: &[String], truth: &Isolation, verdict: &mut Verdict) {
    for trigger in [BLOCK, UNBLOCK, CONTEXT] {
        if has(tags, trigger) {
            verdict.wrong(host, format!("the tag {trigger:?} was not answered"));
        }
    }
    let own = |name: &str| -> Vec<&str> {
        let value = |tag: &'_ String| -> Option<usize> {
            tag.strip_prefix(PREFIX)?.strip_prefix(name)?.strip_prefix('=')?;
            Some(PREFIX.len() + name.len() + 1)
        };
        tags.iter().filter_map(|tag| Some(&tag[value(tag)?..])).collect()
    };
    for name in ["isolation", "isolation-id", "isolation-action", "request", "request-reason", "agent"] {
        if own(name).len() > 1 {
            verdict.wrong(host, format!("the tags say {name} twice: {:?}", own(name)));
        }
    }
    let (isolation, request) = (own("isolation").first().copied(), own("request").first().copied());
    let reason = own("request-reason").first().copied();
    if let Some(isolation) = isolation.filter(|isolation| !["isolated", "released"].contains(isolation)) {
        verdict.wrong(host, format!("the tags still say {isolation}"));
    }
    if truth.isolated != (isolation == Some("isolated")) {
        verdict.wrong(host, format!("the machine is isolated: {}; the tags say {isolation:?}", truth.isolated));
    }
    if truth.isolated && own("isolation-id").first() != host.machines.first().map(String::as_str).as_ref() {
        verdict.wrong(host, format!("the tags name another machine: {:?}", own("isolation-id")));
    }
    let enriched = history
        .iter()
        .any(|write| write.writer == Writer::Api && has(&write.old, CONTEXT) && !has(&write.new, CONTEXT));
    if enriched && own("agent").is_empty() {
        verdict.wrong(host, "context was asked for and is not there");
    }

    let (last, open) = last_request(history);
    let as_asked = match (last, fate(host, tags)) {
        (Last::Nothing, _) => isolation.is_none() && request.is_none(),
        (Last::Block, Fate::Isolated) => isolation == Some("isolated") && request.is_none(),
        (Last::Block, Fate::Denied) => request == Some("denied"),
        (Last::Unblock, Fate::Isolated | Fate::Denied) => isolation == Some("released") && request.is_none(),
        (_, Fate::NotFound) => isolation.is_none() && request == Some("failed"),
    };
    verdict.count(
        match last {
            Last::Nothing => "hosts without a request",
            Last::Block => "hosts last blocked",
            Last::Unblock => "hosts last unblocked",
        },
        1,
    );
    if as_asked {
        return;
    }
    if reason == Some("action_failed") {
        verdict.explain("Defender's action failed or timed out, and the tags say so");
    } else if open {
        verdict.explain("a request was withdrawn, or set again, while it was being answered (5.10, nos. 2 and 3)");
    } else {
        verdict.wrong(host, format!("last asked: {last:?}; isolation {isolation:?}, request {request:?} {reason:?}"));
    }
}

/// All there is to know about a host, for people.
pub fn story(control: &Control, host: &BulkHost) -> String {
    let brain = control.brain();
    let mut text = format!("host {} ({:?}, machines {:?})\n", host.id, host.kind, host.machines);
    let mut lines: Vec<(jiff::Timestamp, String)> = Vec::new();
    for write in brain.history(host.id) {
        let changes = |from: &[String], to: &[String], sign: char| -> String {
            from.iter().filter(|tag| !to.contains(tag)).map(|tag| format!(" {sign}{tag}")).collect()
        };
        let known = write.known.map_or(String::new(), |known| format!(" (had read {known})"));
        let changed = changes(&write.new, &write.old, '+') + &changes(&write.old, &write.new, '-');
        lines.push((write.at, format!("tags {} by {}{known}:{changed}", write.number, write.actor)));
    }
    for post in control.action_posts(TENANT).iter().filter(|post| host.machines.contains(&post.machine)) {
        let what = format!(
            "{:?} asked, {:?}, action {:?}, duplicate {}: {}",
            post.kind, post.fate, post.action, post.duplicate, post.comment
        );
        lines.push((post.at, what));
    }
    for machine in &host.machines {
        for change in control.isolation(TENANT, machine).changes {
            let what = if change.isolated { "isolated" } else { "released" };
            lines.push((change.at, format!("the machine is {what} by {}", change.action)));
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    for (at, line) in lines {
        let _ = writeln!(text, "  {at}  {line}");
    }
    for note in brain.notes(host.id) {
        let _ = writeln!(text, "  note: {}", note.text.replace('\n', " / "));
    }
    let _ = writeln!(text, "  now: {:?}", brain.tags(host.id).unwrap_or_default());
    text
}
