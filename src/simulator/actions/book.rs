//! The actions of all tenants and how they go on. Time is an argument; what was due by then happens first, in its order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ActionBehaviour, ActionKind, ActionPost, ActionRefusal, Fate, Isolation, IsolationChange, Outcome, WhenIsolated,
    WhileOpen,
};
use crate::simulator::faults::Random;
use crate::simulator::odata::{Filter, Lookup};

/// The error number of failed actions: access denied, as in the contract's example.
const FAILED_HRESULT: i64 = -2_147_024_891;

/// One moment on the clocks that matter.
#[derive(Debug, Clone, Copy)]
pub(in crate::simulator) struct Moment {
    /// The real one.
    pub(in crate::simulator) instant: Instant,
    /// The real one, as a date.
    pub(in crate::simulator) date: Timestamp,
    /// The story's.
    pub(in crate::simulator) story: Timestamp,
}

impl Moment {
    /// The story's time at `due`, which is not later than this moment.
    fn story_at(&self, due: Instant) -> Timestamp {
        let ago = SignedDuration::try_from(self.instant.saturating_duration_since(due)).unwrap_or_default();
        self.story.checked_sub(ago).unwrap_or(self.story)
    }
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub(in crate::simulator) struct Asked<'a> {
    pub(super) kind: ActionKind,
    pub(super) scope: Option<&'a str>,
    pub(super) comment: &'a str,
    pub(super) requestor: &'a str,
    pub(super) portal: bool,
}

/// What a request is answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Posted {
    /// This action, new or open already.
    Action(Value),
    Busy,
    Refused(ActionRefusal),
}

/// Why an action was not cancelled.
#[derive(Debug, PartialEq)]
pub(super) enum NotCancelled {
    Unknown,
    Final,
}

/// All actions.
#[derive(Debug, Default)]
pub(in crate::simulator) struct Book {
    behaviour: ActionBehaviour,
    random: Random,
    tenants: HashMap<String, Tenant>,
    /// What happens when: by time, then in the order it was planned.
    due: BTreeMap<(Instant, u64), Due>,
    planned: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    /// In the order they were asked for.
    actions: Vec<Action>,
    by_id: HashMap<String, usize>,
    machines: HashMap<String, Machine>,
    posts: Vec<ActionPost>,
}

#[derive(Debug, Default)]
struct Machine {
    actions: Vec<usize>,
    refusal: Option<ActionRefusal>,
    outcomes: VecDeque<Outcome>,
    truth: Isolation,
}

#[derive(Debug)]
struct Action {
    /// As the service shows it.
    shown: Value,
    kind: ActionKind,
    machine: String,
    stage: Stage,
    /// Waits for the machine's release.
    hangs: bool,
    /// How it ends, once that is drawn.
    outcome: Option<Outcome>,
    /// When the list begins to show it.
    listed: Instant,
    /// What is due under another plan does not happen any more.
    plan: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Pending,
    InProgress,
    Final,
}

#[derive(Debug)]
struct Due {
    tenant: String,
    action: usize,
    plan: u64,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    End(Outcome),
}

impl Book {
    /// Forgets all actions and behaves as in the beginning.
    pub(in crate::simulator) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn behaviour(&self) -> &ActionBehaviour {
        &self.behaviour
    }

    pub(super) fn set_behaviour(&mut self, behaviour: ActionBehaviour) {
        self.random = Random(behaviour.seed);
        self.behaviour = behaviour;
    }

    /// Lets everything happen that is due.
    pub(super) fn advance(&mut self, now: Moment) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now.instant) {
            let (at, _) = *entry.key();
            let due = entry.remove();
            let known = self.tenants.get(&due.tenant).and_then(|tenant| tenant.actions.get(due.action));
            if known.is_none_or(|action| action.plan != due.plan || action.stage == Stage::Final) {
                continue;
            }
            match due.step {
                Step::Begin => self.change(&due.tenant, due.action, Stage::InProgress, "InProgress", now.story_at(at)),
                Step::End(outcome) => self.end(&due.tenant, due.action, outcome, at, now.story_at(at)),
            }
        }
    }

    /// When the next thing is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes a request for `machine`, which is as REST shows it.
    pub(super) fn post(&mut self, now: Moment, tenant: &str, machine: &Value, asked: Asked<'_>) -> Posted {
        self.advance(now);
        let id = machine["id"].as_str().unwrap_or_default().to_ascii_lowercase();
        let (coin, behaviour) = (self.random.bits() & 1 == 0, self.behaviour.clone());
        let of_tenant = self.tenants.entry(tenant.to_owned()).or_default();
        let of_machine = of_tenant.machines.entry(id.clone()).or_default();
        let open = |kind| {
            let actions = of_machine.actions.iter().rev().map(|&index| (index, &of_tenant.actions[index]));
            actions.filter(move |(_, action)| action.kind == kind && action.stage != Stage::Final)
        };
        let same = open(asked.kind).next().map(|(index, _)| index);
        let crossed = match asked.kind {
            ActionKind::Isolate => open(ActionKind::Unisolate).next().is_some(),
            // A release passes by an isolation that hangs; that is what makes the latter harmful.
            ActionKind::Unisolate => open(ActionKind::Isolate).any(|(_, action)| !action.hangs),
            kind => kind.opposite().is_some_and(|opposite| open(opposite).next().is_some()),
        };
        let isolates = asked.kind == ActionKind::Isolate;
        let duplicate = isolates && (same.is_some() || of_machine.truth.isolated);
        let fate = match (of_machine.refusal, same, behaviour.while_open) {
            (Some(_), _, _) if matches!(asked.kind, ActionKind::Isolate | ActionKind::Unisolate) => Fate::Refused,
            _ if crossed => Fate::Busy,
            (_, None, _) => Fate::Created,
            (_, Some(_), WhileOpen::Hang) if isolates => Fate::Created,
            // Of a running collection the service never gives the action back (`defender.md` 5.10).
            (_, Some(_), _) if asked.kind == ActionKind::CollectInvestigationPackage => Fate::Busy,
            (_, Some(_), WhileOpen::Return) => Fate::Returned,
            (_, Some(_), WhileOpen::Either) if coin => Fate::Returned,
            (_, Some(_), _) => Fate::Busy,
        };
        let hangs =
            duplicate && fate == Fate::Created && (same.is_some() || behaviour.when_isolated == WhenIsolated::Hang);
        of_machine.truth.duplicates += usize::from(duplicate);
        of_machine.truth.harmful += usize::from(hangs);
        let refusal = of_machine.refusal;
        let index = match fate {
            Fate::Created => Some(self.create(now, tenant, machine, &id, asked, hangs)),
            Fate::Returned => same,
            Fate::Busy | Fate::Refused => None,
        };
        let of_tenant = self.tenants.entry(tenant.to_owned()).or_default();
        let shown = index.map(|index| of_tenant.actions[index].shown.clone());
        of_tenant.posts.push(ActionPost {
            number: of_tenant.posts.len() as u64 + 1,
            at: now.date,
            kind: asked.kind,
            machine: id,
            comment: asked.comment.to_owned(),
            requestor: asked.requestor.to_owned(),
            portal: asked.portal,
            fate,
            action: shown.as_ref().and_then(|shown| shown["id"].as_str().map(str::to_owned)),
            duplicate,
            harmful: hangs,
        });
        match (shown, refusal.filter(|_| fate == Fate::Refused)) {
            (Some(shown), _) => Posted::Action(shown),
            (None, Some(refusal)) => Posted::Refused(refusal),
            (None, None) => Posted::Busy,
        }
    }

    fn create(&mut self, now: Moment, tenant: &str, machine: &Value, id: &str, asked: Asked<'_>, hangs: bool) -> usize {
        let time = shown_time(now.story);
        let action_id = Uuid::now_v7().to_string();
        let shown = json!({
            "id": action_id,
            "type": asked.kind.as_str(),
            "title": null,
            "requestor": asked.requestor,
            "requestorComment": asked.comment,
            "status": "Pending",
            "machineId": machine["id"],
            "computerDnsName": machine["computerDnsName"],
            "creationDateTimeUtc": time,
            "lastUpdateDateTimeUtc": time,
            "cancellationRequestor": null,
            "cancellationComment": null,
            "cancellationDateTimeUtc": null,
            "errorHResult": 0,
            "scope": asked.scope,
            "externalId": null,
            "requestSource": if asked.portal { "Portal" } else { "PublicApi" },
            "relatedFileInfo": null,
            "commands": [],
        });
        let listed = now.instant + Duration::from_millis(self.behaviour.list_delay_ms);
        let action = Action {
            shown,
            kind: asked.kind,
            machine: id.to_owned(),
            stage: Stage::Pending,
            hangs,
            outcome: None,
            listed,
            plan: 0,
        };
        let of_tenant = self.tenants.entry(tenant.to_owned()).or_default();
        let index = of_tenant.actions.len();
        of_tenant.actions.push(action);
        of_tenant.by_id.insert(action_id, index);
        let of_machine = of_tenant.machines.entry(id.to_owned()).or_default();
        of_machine.actions.push(index);
        if asked.kind == ActionKind::Isolate {
            let truth = &mut of_machine.truth;
            truth.open_isolates += 1;
            truth.most_open_isolates = truth.most_open_isolates.max(truth.open_isolates);
        }
        self.plan(tenant, index, now.instant);
        index
    }

    /// Plans how a pending action goes on from `now`; what was planned before does not happen any more.
    fn plan(&mut self, tenant: &str, index: usize, now: Instant) {
        let Some(of_tenant) = self.tenants.get_mut(tenant) else { return };
        let Some(action) = of_tenant.actions.get_mut(index) else { return };
        let of_machine = of_tenant.machines.entry(action.machine.clone()).or_default();
        action.plan += 1;
        let plan = action.plan;
        let mut steps = Vec::new();
        if action.hangs || of_machine.truth.offline {
            let gives_up = now.checked_add(Duration::from_millis(self.behaviour.gives_up_ms));
            steps.extend(gives_up.map(|at| (at, Step::End(Outcome::TimeOut))));
        } else if !self.behaviour.held {
            let behaviour = &self.behaviour;
            let mut stretched = |ms: u64| {
                let factor = 1.0 + behaviour.spread.max(0.0) * self.random.fraction();
                Duration::try_from_secs_f64(ms as f64 / 1_000.0 * factor).unwrap_or_default()
            };
            let begin = now + stretched(behaviour.pending_ms);
            let end = begin + stretched(behaviour.in_progress_ms);
            let drawn = self.random.fraction();
            let outcome = action.outcome.or_else(|| of_machine.outcomes.pop_front()).unwrap_or({
                if drawn < behaviour.failed {
                    Outcome::Failed
                } else if drawn < behaviour.failed + behaviour.timed_out {
                    Outcome::TimeOut
                } else {
                    Outcome::Succeeded
                }
            });
            action.outcome = Some(outcome);
            steps.extend([(begin, Step::Begin), (end, Step::End(outcome))]);
        }
        for (at, step) in steps {
            self.add_due(at, Due { tenant: tenant.to_owned(), action: index, plan, step });
        }
    }

    fn add_due(&mut self, at: Instant, due: Due) {
        self.planned += 1;
        self.due.insert((at, self.planned), due);
    }

    fn change(&mut self, tenant: &str, index: usize, stage: Stage, status: &str, story: Timestamp) {
        if let Some(action) = self.tenants.get_mut(tenant).and_then(|tenant| tenant.actions.get_mut(index)) {
            action.stage = stage;
            action.shown["status"] = json!(status);
            action.shown["lastUpdateDateTimeUtc"] = json!(shown_time(story));
        }
    }

    /// Ends an action and lets its machine feel it.
    fn end(&mut self, tenant: &str, index: usize, outcome: Outcome, at: Instant, story: Timestamp) {
        self.change(tenant, index, Stage::Final, outcome.status(), story);
        let Some(of_tenant) = self.tenants.get_mut(tenant) else { return };
        let Some(action) = of_tenant.actions.get_mut(index) else { return };
        if outcome == Outcome::Failed {
            action.shown["errorHResult"] = json!(FAILED_HRESULT);
        }
        let (kind, id) = (action.kind, action.shown["id"].as_str().unwrap_or_default().to_owned());
        let of_machine = of_tenant.machines.entry(action.machine.clone()).or_default();
        if kind == ActionKind::Isolate {
            of_machine.truth.open_isolates -= 1;
        }
        if outcome != Outcome::Succeeded {
            return;
        }
        match kind {
            ActionKind::Isolate | ActionKind::Unisolate => {}
            ActionKind::RestrictCodeExecution => of_machine.truth.restricted = true,
            ActionKind::UnrestrictCodeExecution => of_machine.truth.restricted = false,
            ActionKind::RunAntiVirusScan | ActionKind::CollectInvestigationPackage => {}
        }
        if !matches!(kind, ActionKind::Isolate | ActionKind::Unisolate) {
            return;
        }
        let isolated = kind == ActionKind::Isolate;
        if of_machine.truth.isolated != isolated {
            of_machine.truth.isolated = isolated;
            of_machine.truth.changes.push(IsolationChange { at: story, isolated, action: id });
        }
        if isolated {
            return;
        }
        let wake_at = at + Duration::from_millis(self.behaviour.hang_after_release_ms);
        let hanging: Vec<(usize, u64)> = of_machine
            .actions
            .iter()
            .map(|&index| (index, &of_tenant.actions[index]))
            .filter(|(_, action)| action.hangs && action.stage != Stage::Final)
            .map(|(index, action)| (index, action.plan))
            .collect();
        for (action, plan) in hanging {
            let step = Step::End(Outcome::Succeeded);
            self.add_due(wake_at, Due { tenant: tenant.to_owned(), action, plan, step });
        }
    }

    /// Takes an action back that is not final.
    pub(super) fn cancel(
        &mut self,
        now: Moment,
        tenant: &str,
        id: &str,
        comment: &str,
        requestor: &str,
    ) -> Result<Value, NotCancelled> {
        self.advance(now);
        let of_tenant = self.tenants.get_mut(tenant).ok_or(NotCancelled::Unknown)?;
        let index = *of_tenant.by_id.get(&id.to_ascii_lowercase()).ok_or(NotCancelled::Unknown)?;
        let action = &mut of_tenant.actions[index];
        if action.stage == Stage::Final {
            return Err(NotCancelled::Final);
        }
        let time = json!(shown_time(now.story));
        action.stage = Stage::Final;
        action.shown["status"] = json!("Cancelled");
        action.shown["lastUpdateDateTimeUtc"] = time.clone();
        action.shown["cancellationRequestor"] = json!(requestor);
        action.shown["cancellationComment"] = json!(comment);
        action.shown["cancellationDateTimeUtc"] = time;
        let shown = action.shown.clone();
        if action.kind == ActionKind::Isolate {
            of_tenant.machines.entry(action.machine.clone()).or_default().truth.open_isolates -= 1;
        }
        Ok(shown)
    }

    /// One action as it is now.
    pub(super) fn action(&mut self, now: Moment, tenant: &str, id: &str) -> Option<&Value> {
        self.advance(now);
        let of_tenant = self.tenants.get(tenant)?;
        of_tenant.by_id.get(&id.to_ascii_lowercase()).map(|&index| &of_tenant.actions[index].shown)
    }

    /// One action, if it is final now.
    pub(super) fn ended(&mut self, now: Moment, tenant: &str, id: &str) -> Option<&Value> {
        self.advance(now);
        let of_tenant = self.tenants.get(tenant)?;
        let action = &of_tenant.actions[*of_tenant.by_id.get(&id.to_ascii_lowercase())?];
        (action.stage == Stage::Final).then_some(&action.shown)
    }

    /// The actions that pass `filter` and are listed by now, newest first.
    pub(super) fn list(&mut self, now: Moment, tenant: &str, filter: Option<&Filter>) -> Vec<&Value> {
        self.advance(now);
        let Some(of_tenant) = self.tenants.get(tenant) else { return Vec::new() };
        let passes =
            |action: &&Action| action.listed <= now.instant && filter.is_none_or(|filter| filter.passes(&action.shown));
        match filter.and_then(|filter| of_tenant.candidates(filter)) {
            Some(few) => few.iter().rev().map(|&index| &of_tenant.actions[index]).filter(passes).map(shown).collect(),
            None => of_tenant.actions.iter().rev().filter(passes).map(shown).collect(),
        }
    }

    /// Ends an action that is not final. False if there is none.
    pub(super) fn finish(&mut self, now: Moment, tenant: &str, id: &str, outcome: Outcome) -> bool {
        self.advance(now);
        let found = self.tenants.get(tenant).and_then(|of_tenant| {
            let index = *of_tenant.by_id.get(&id.to_ascii_lowercase())?;
            (of_tenant.actions[index].stage != Stage::Final).then_some(index)
        });
        if let Some(index) = found {
            self.end(tenant, index, outcome, now.instant, now.story);
        }
        found.is_some()
    }

    /// Takes a machine off the network or brings it back; pending actions wait for it.
    pub(super) fn set_offline(&mut self, now: Moment, tenant: &str, machine: &str, offline: bool) {
        self.advance(now);
        let of_tenant = self.tenants.entry(tenant.to_owned()).or_default();
        let of_machine = of_tenant.machines.entry(machine.to_ascii_lowercase()).or_default();
        if std::mem::replace(&mut of_machine.truth.offline, offline) == offline {
            return;
        }
        let waiting: Vec<usize> = of_machine
            .actions
            .iter()
            .copied()
            .filter(|&index| of_tenant.actions[index].stage == Stage::Pending && !of_tenant.actions[index].hangs)
            .collect();
        for index in waiting {
            self.plan(tenant, index, now.instant);
        }
    }

    pub(super) fn set_refusal(&mut self, tenant: &str, machine: &str, refusal: Option<ActionRefusal>) {
        self.machine(tenant, machine).refusal = refusal;
    }

    pub(super) fn add_outcome(&mut self, tenant: &str, machine: &str, outcome: Outcome) {
        self.machine(tenant, machine).outcomes.push_back(outcome);
    }

    fn machine(&mut self, tenant: &str, machine: &str) -> &mut Machine {
        let of_tenant = self.tenants.entry(tenant.to_owned()).or_default();
        of_tenant.machines.entry(machine.to_ascii_lowercase()).or_default()
    }

    /// The requests of a tenant, oldest first.
    pub(super) fn posts(&self, tenant: &str) -> &[ActionPost] {
        self.tenants.get(tenant).map_or(&[], |of_tenant| &of_tenant.posts)
    }

    /// What is true of a machine.
    pub(super) fn isolation(&mut self, now: Moment, tenant: &str, machine: &str) -> Isolation {
        self.advance(now);
        let of_machine = self.tenants.get(tenant).and_then(|of| of.machines.get(&machine.to_ascii_lowercase()));
        of_machine.map(|of_machine| of_machine.truth.clone()).unwrap_or_default()
    }

    /// What is true of every machine that anything was asked for.
    pub(super) fn isolations(&mut self, now: Moment, tenant: &str) -> BTreeMap<String, Isolation> {
        self.advance(now);
        let machines = self.tenants.get(tenant).into_iter().flat_map(|of_tenant| &of_tenant.machines);
        machines.map(|(id, machine)| (id.clone(), machine.truth.clone())).collect()
    }
}

fn shown(action: &Action) -> &Value {
    &action.shown
}

impl Tenant {
    /// The places of the actions that can pass `filter`, where an index tells; oldest first.
    fn candidates(&self, filter: &Filter) -> Option<Vec<usize>> {
        filter.candidates(&|property, lookup| match (property, lookup) {
            ("machineId", Lookup::Is(id)) => {
                Some(self.machines.get(&id.to_ascii_lowercase()).map_or_else(Vec::new, |of| of.actions.clone()))
            }
            ("id", Lookup::Is(id)) => Some(self.by_id.get(&id.to_ascii_lowercase()).copied().into_iter().collect()),
            _ => None,
        })
    }
}

/// Seven fraction digits, as the service has them.
fn shown_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.7fZ").to_string()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TENANT: &str = "tenant";

    /// A book, and a clock that tests move.
    struct Lab {
        book: Book,
        start: Instant,
    }

    impl Lab {
        fn new(behaviour: ActionBehaviour) -> Self {
            let mut book = Book::default();
            book.set_behaviour(behaviour);
            Self { book, start: Instant::now() }
        }

        fn at(&self, ms: u64) -> Moment {
            let story: Timestamp = "2026-11-20T09:00:00Z".parse().unwrap();
            let passed = Duration::from_millis(ms);
            Moment { instant: self.start + passed, date: story + passed, story: story + passed }
        }

        fn post(&mut self, ms: u64, kind: ActionKind, machine: &str) -> Posted {
            let scope = (kind == ActionKind::Isolate).then_some("Full");
            let asked = Asked { kind, scope, comment: "why", requestor: "app", portal: false };
            let machine = json!({"id": machine, "computerDnsName": format!("{machine}.example")});
            self.book.post(self.at(ms), TENANT, &machine, asked)
        }

        fn isolate(&mut self, ms: u64, machine: &str) -> String {
            id(&self.post(ms, ActionKind::Isolate, machine))
        }

        fn release(&mut self, ms: u64, machine: &str) -> String {
            id(&self.post(ms, ActionKind::Unisolate, machine))
        }

        fn status(&mut self, ms: u64, id: &str) -> String {
            self.book.action(self.at(ms), TENANT, id).unwrap()["status"].as_str().unwrap().to_owned()
        }

        fn truth(&mut self, ms: u64, machine: &str) -> Isolation {
            self.book.isolation(self.at(ms), TENANT, machine)
        }

        fn listed(&mut self, ms: u64, filter: Option<&str>) -> Vec<String> {
            use crate::simulator::odata::Kind;
            const PROPERTIES: crate::simulator::odata::Properties =
                &[("machineId", Kind::Text), ("type", Kind::Text), ("id", Kind::Text), ("status", Kind::Text)];
            let filter = filter.map(|text| Filter::parse(text, PROPERTIES).unwrap());
            let found = self.book.list(self.at(ms), TENANT, filter.as_ref());
            found.iter().map(|action| action["id"].as_str().unwrap().to_owned()).collect()
        }
    }

    fn id(posted: &Posted) -> String {
        match posted {
            Posted::Action(action) => action["id"].as_str().unwrap().to_owned(),
            refused => panic!("{refused:?}"),
        }
    }

    #[test]
    fn an_action_pends_then_runs_then_ends_and_says_when() {
        let mut lab = Lab::new(ActionBehaviour::default());
        let action = lab.isolate(0, "m");
        for (ms, status, isolated) in
            [(0, "Pending", false), (99, "Pending", false), (100, "InProgress", false), (299, "InProgress", false)]
        {
            assert_eq!((lab.status(ms, &action).as_str(), lab.truth(ms, "m").isolated), (status, isolated), "{ms}");
        }
        // Looked at long after, it ended when it was due.
        assert_eq!((lab.status(9_000, &action).as_str(), lab.truth(9_000, "m").isolated), ("Succeeded", true));
        let shown = lab.book.action(lab.at(9_000), TENANT, &action).unwrap().clone();
        assert_eq!(shown["creationDateTimeUtc"], "2026-11-20T09:00:00.0000000Z");
        assert_eq!(shown["lastUpdateDateTimeUtc"], "2026-11-20T09:00:00.3000000Z");
        let truth = lab.truth(9_000, "M");
        assert_eq!((truth.open_isolates, truth.most_open_isolates), (0, 1));
        assert_eq!(truth.changes.len(), 1);
        assert_eq!((&truth.changes[0].action, truth.changes[0].isolated), (&action, true));
    }

    #[rstest]
    #[case(Outcome::Succeeded, "Succeeded", 0, true)]
    #[case(Outcome::Failed, "Failed", FAILED_HRESULT, false)]
    #[case(Outcome::TimeOut, "TimeOut", 0, false)]
    fn only_success_changes_the_machine(
        #[case] outcome: Outcome,
        #[case] status: &str,
        #[case] result: i64,
        #[case] isolated: bool,
    ) {
        let mut lab = Lab::new(ActionBehaviour::default());
        lab.book.add_outcome(TENANT, "M", outcome);
        let action = lab.isolate(0, "m");
        assert_eq!(lab.status(300, &action), status);
        assert_eq!(lab.book.action(lab.at(300), TENANT, &action).unwrap()["errorHResult"], result);
        assert_eq!(lab.truth(300, "m").isolated, isolated);
        // The next one is not told how to end.
        let next = if isolated { lab.release(301, "m") } else { lab.isolate(301, "m") };
        assert_eq!(lab.status(700, &next), "Succeeded");
    }

    #[rstest]
    // While an isolation is open.
    #[case::refused(100, ActionKind::Isolate, WhileOpen::Refuse, WhenIsolated::Hang, Fate::Busy, true, false)]
    #[case::returned(100, ActionKind::Isolate, WhileOpen::Return, WhenIsolated::Hang, Fate::Returned, true, false)]
    #[case::hanging(100, ActionKind::Isolate, WhileOpen::Hang, WhenIsolated::Succeed, Fate::Created, true, true)]
    #[case::crossed(100, ActionKind::Unisolate, WhileOpen::Return, WhenIsolated::Hang, Fate::Busy, false, false)]
    // Once it is done.
    #[case::again(400, ActionKind::Isolate, WhileOpen::Refuse, WhenIsolated::Hang, Fate::Created, true, true)]
    #[case::harmless(400, ActionKind::Isolate, WhileOpen::Refuse, WhenIsolated::Succeed, Fate::Created, true, false)]
    #[case::release(400, ActionKind::Unisolate, WhileOpen::Refuse, WhenIsolated::Hang, Fate::Created, false, false)]
    fn a_second_request_comes_to_what_was_set(
        #[case] ms: u64,
        #[case] kind: ActionKind,
        #[case] while_open: WhileOpen,
        #[case] when_isolated: WhenIsolated,
        #[case] fate: Fate,
        #[case] duplicate: bool,
        #[case] harmful: bool,
    ) {
        let mut lab = Lab::new(ActionBehaviour { while_open, when_isolated, ..ActionBehaviour::default() });
        let first = lab.isolate(0, "m");
        let second = lab.post(ms, kind, "m");
        let post = lab.book.posts(TENANT)[1].clone();
        assert_eq!((post.number, post.fate, post.duplicate, post.harmful), (2, fate, duplicate, harmful));
        match fate {
            Fate::Busy => assert_eq!((second, post.action), (Posted::Busy, None)),
            Fate::Returned => assert_eq!((id(&second), post.action), (first, Some(id(&second)))),
            _ => assert_ne!(id(&second), first),
        }
        let truth = lab.truth(ms, "m");
        assert_eq!((truth.duplicates, truth.harmful), (usize::from(duplicate), usize::from(harmful)));
        assert_eq!(truth.most_open_isolates, if harmful && ms == 100 { 2 } else { 1 });
    }

    #[test]
    fn either_draws_between_refusing_and_returning() {
        let fates = |seed| {
            let mut lab = Lab::new(ActionBehaviour {
                seed,
                held: true,
                while_open: WhileOpen::Either,
                ..ActionBehaviour::default()
            });
            lab.isolate(0, "m");
            (0..20).map(|_| lab.post(1, ActionKind::Isolate, "m") == Posted::Busy).collect::<Vec<_>>()
        };
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
        assert!(fates(1).contains(&true) && fates(1).contains(&false));
    }

    #[test]
    fn a_hanging_duplicate_isolates_again_after_the_release() {
        let mut lab = Lab::new(ActionBehaviour::default());
        lab.isolate(0, "m");
        let duplicate = lab.isolate(1_000, "m");
        assert_eq!(lab.status(3_600_000, &duplicate), "Pending");
        let release = lab.release(3_600_000, "m");
        assert_eq!(lab.status(3_600_299, &release), "InProgress");
        assert_eq!(
            (lab.status(3_600_300, &release).as_str(), lab.truth(3_600_300, "m").isolated),
            ("Succeeded", false)
        );
        assert_eq!(lab.status(3_600_499, &duplicate), "Pending");
        assert_eq!(
            (lab.status(3_600_500, &duplicate).as_str(), lab.truth(3_600_500, "m").isolated),
            ("Succeeded", true)
        );
        assert_eq!(
            lab.truth(3_600_500, "m").changes.iter().map(|c| c.isolated).collect::<Vec<_>>(),
            [true, false, true]
        );
    }

    #[test]
    fn a_hanging_duplicate_that_is_cancelled_or_given_up_does_no_harm() {
        let mut lab = Lab::new(ActionBehaviour { gives_up_ms: 10_000, ..ActionBehaviour::default() });
        for machine in ["a", "b"] {
            lab.isolate(0, machine);
        }
        let (cancelled, given_up) = (lab.isolate(1_000, "a"), lab.isolate(1_000, "b"));
        lab.book.cancel(lab.at(2_000), TENANT, &cancelled, "not so", "app").unwrap();
        assert_eq!(lab.status(11_000, &given_up), "TimeOut");
        for (machine, duplicate, status) in [("a", cancelled, "Cancelled"), ("b", given_up, "TimeOut")] {
            lab.release(12_000, machine);
            assert_eq!((lab.status(20_000, &duplicate).as_str(), lab.truth(20_000, machine).isolated), (status, false));
        }
    }

    #[test]
    fn what_is_cancelled_never_happens_and_what_is_final_stays() {
        let mut lab = Lab::new(ActionBehaviour::default());
        let action = lab.isolate(0, "m");
        let shown = lab.book.cancel(lab.at(150), TENANT, &action.to_uppercase(), "not so", "app").unwrap();
        assert_eq!((&shown["status"], &shown["cancellationComment"]), (&json!("Cancelled"), &json!("not so")));
        assert_eq!(shown["cancellationDateTimeUtc"], "2026-11-20T09:00:00.1500000Z");
        assert_eq!((lab.status(9_000, &action).as_str(), lab.truth(9_000, "m").isolated), ("Cancelled", false));
        assert_eq!(lab.truth(9_000, "m").open_isolates, 0);
        assert_eq!(lab.book.cancel(lab.at(9_000), TENANT, &action, "c", "app"), Err(NotCancelled::Final));
        assert_eq!(lab.book.cancel(lab.at(9_000), TENANT, "x", "c", "app"), Err(NotCancelled::Unknown));
        // Nothing is open any more, so it can be asked for again.
        let again = lab.isolate(9_000, "m");
        assert_eq!(lab.status(9_300, &again), "Succeeded");
    }

    #[test]
    fn an_offline_machine_lets_its_actions_wait_until_it_is_back_or_the_service_gives_up() {
        let mut lab = Lab::new(ActionBehaviour { gives_up_ms: 60_000, ..ActionBehaviour::default() });
        for machine in ["back", "gone"] {
            lab.book.set_offline(lab.at(0), TENANT, machine, true);
            lab.book.add_outcome(TENANT, machine, Outcome::Succeeded);
        }
        let (back, gone) = (lab.isolate(0, "back"), lab.isolate(0, "gone"));
        assert_eq!(lab.status(50_000, &back), "Pending");
        lab.book.set_offline(lab.at(50_000), TENANT, "BACK", false);
        assert_eq!(lab.status(50_100, &back), "InProgress");
        assert_eq!((lab.status(50_300, &back).as_str(), lab.truth(50_300, "back").isolated), ("Succeeded", true));
        assert_eq!(lab.status(59_999, &gone), "Pending");
        assert_eq!((lab.status(60_000, &gone).as_str(), lab.truth(60_000, "gone").isolated), ("TimeOut", false));
        // One that goes away while its action pends.
        let leaving = lab.isolate(70_000, "leaving");
        lab.book.set_offline(lab.at(70_050), TENANT, "leaving", true);
        assert_eq!(lab.status(80_000, &leaving), "Pending");
    }

    #[test]
    fn actions_of_different_machines_finish_out_of_order_the_same_way_for_the_same_seed() {
        let order = |seed| {
            let mut lab = Lab::new(ActionBehaviour { seed, spread: 5.0, ..ActionBehaviour::default() });
            let asked: Vec<String> = (0..20).map(|n| lab.isolate(n, &format!("m{n}"))).collect();
            let mut done = Vec::new();
            for ms in 0..3_000 {
                for (n, action) in asked.iter().enumerate() {
                    if !done.contains(&n) && lab.status(ms, action) == "Succeeded" {
                        done.push(n);
                    }
                }
            }
            done
        };
        assert_eq!(order(3), order(3));
        assert_eq!(order(3).len(), 20);
        assert!(!order(3).is_sorted());
    }

    #[test]
    fn held_actions_end_when_they_are_told_to_and_in_that_order() {
        let mut lab = Lab::new(ActionBehaviour { held: true, ..ActionBehaviour::default() });
        let (first, second) = (lab.isolate(0, "a"), lab.isolate(0, "b"));
        assert_eq!(lab.status(1_000_000, &first), "Pending");
        assert!(lab.book.finish(lab.at(10), TENANT, &second, Outcome::Succeeded));
        assert!(!lab.book.finish(lab.at(10), TENANT, &second, Outcome::Failed));
        assert!(lab.truth(10, "b").isolated && !lab.truth(10, "a").isolated);
        assert!(lab.book.finish(lab.at(20), TENANT, &first, Outcome::TimeOut));
        assert_eq!(lab.status(20, &first), "TimeOut");
        assert!(!lab.book.finish(lab.at(20), TENANT, "x", Outcome::Failed));
    }

    #[test]
    fn outcomes_come_near_their_probabilities() {
        let mut lab = Lab::new(ActionBehaviour { failed: 0.2, timed_out: 0.1, ..ActionBehaviour::default() });
        let asked: Vec<String> = (0..1_000).map(|n| lab.isolate(0, &format!("m{n}"))).collect();
        let mut ended: HashMap<String, usize> = HashMap::new();
        for action in &asked {
            *ended.entry(lab.status(1_000, action)).or_default() += 1;
        }
        assert!((150..250).contains(&ended["Failed"]) && (60..140).contains(&ended["TimeOut"]), "{ended:?}");
    }

    #[test]
    fn the_list_is_newest_first_and_may_lag_behind() {
        let mut lab = Lab::new(ActionBehaviour { list_delay_ms: 500, ..ActionBehaviour::default() });
        let (first, other) = (lab.isolate(0, "m"), lab.isolate(100, "other"));
        let release = lab.release(400, "m");
        assert_eq!(lab.listed(400, None), [] as [&str; 0]);
        assert_eq!(lab.status(400, &release), "Pending");
        assert_eq!(lab.listed(500, None), std::slice::from_ref(&first));
        assert_eq!(lab.listed(900, None), [release.clone(), other, first.clone()]);
        assert_eq!(lab.listed(900, Some("machineId eq 'm'")), [release, first.clone()]);
        assert_eq!(lab.listed(900, Some(&format!("id eq '{first}' or machineId eq 'none'"))), [first]);
    }

    #[test]
    fn the_list_of_one_machine_looks_at_no_other() {
        let mut lab = Lab::new(ActionBehaviour::default());
        for n in 0..5_000 {
            lab.isolate(n, &format!("m{n}"));
        }
        let filter = "machineId eq 'm7' and type in ('Isolate','Unisolate')";
        assert_eq!(lab.listed(9_000, Some(filter)).len(), 1);
        let of_tenant = &lab.book.tenants[TENANT];
        use crate::simulator::odata::Kind;
        let properties = &[("machineId", Kind::Text), ("type", Kind::Text)];
        assert_eq!(of_tenant.candidates(&Filter::parse(filter, properties).unwrap()), Some(vec![7]));
        assert_eq!(of_tenant.candidates(&Filter::parse("type eq 'Isolate'", properties).unwrap()), None);
    }

    #[test]
    fn a_machine_that_refuses_gets_no_action() {
        let mut lab = Lab::new(ActionBehaviour::default());
        lab.book.set_refusal(TENANT, "m", Some(ActionRefusal::ClientVersion));
        assert_eq!(lab.post(0, ActionKind::Isolate, "m"), Posted::Refused(ActionRefusal::ClientVersion));
        assert_eq!(lab.book.posts(TENANT)[0].fate, Fate::Refused);
        lab.book.set_refusal(TENANT, "m", None);
        lab.isolate(1, "m");
        assert_eq!(lab.truth(400, "m").changes.len(), 1);
    }
}
