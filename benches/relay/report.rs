//! What was measured, as text.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::load::Cell;
use crate::process::{Memory, Usage};
use crate::stage::Stage;
use crate::{Kind, Timing};

/// The aims: half of the echo's throughput with cached answers; added latency at one caller in milliseconds; memory of
/// each process in KiB.
const AIM_RATIO: f64 = 0.5;
const AIM_ADDED_MS: f64 = 5.0;
const AIM_MEMORY_KIB: u64 = 40 * 1024;

/// From this share on a machine or a core counts as full: the rest is rounding and waiting for a turn.
const FULL: f64 = 0.9;

/// The order of CPU columns.
const PARTS: [&str; 7] = ["load", "ingress", "worker", "serve", "echo server", "broker", "simulator"];

/// All cells of a run.
pub struct Report {
    cells: BTreeMap<(usize, Kind), Cell>,
    timing: Timing,
    load_before: String,
}

impl Report {
    pub fn begin(stage: &Stage, timing: Timing) -> Self {
        eprintln!("{} bytes of request and {} of reply in the queue", stage.request_bytes, stage.reply_bytes);
        Self { cells: BTreeMap::new(), timing, load_before: load_average() }
    }

    pub fn add(&mut self, kind: Kind, callers: usize, cell: Cell) {
        self.cells.entry((callers, kind)).or_default().merge(cell);
    }

    pub fn all_answered(&self) -> bool {
        self.cells.values().all(|cell| cell.failed == 0 && !cell.latencies_us.is_empty())
    }

    pub fn print(&mut self, stage: &Stage) {
        self.conditions(stage);
        self.throughput();
        self.cpu();
        processes(stage);
        self.aims(stage);
    }

    fn conditions(&self, stage: &Stage) {
        let (cores, processor) = processors();
        println!("\nconditions");
        println!("  machine   {cores} x {processor}, Linux {}", read("/proc/sys/kernel/osrelease"));
        println!("  load      average {} before, {} after (1, 5, 15 minutes)", self.load_before, load_average());
        println!(
            "  product   {} {} build, {} MB binary",
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) { "DEBUG" } else { "release" },
            megabytes(std::fs::metadata(&stage.binary).map(|file| file.len() / 1024).ok()),
        );
        if let Some(node) = &stage.node {
            let whose = if node.is_private() { "a private node on this machine" } else { "as given" };
            println!("  RabbitMQ  {}, {whose}; lapin echo: classic queue, confirms, mandatory, acks", node.version);
        }
        println!("  SQLite    {}", rusqlite::version());
        println!(
            "  cells     {} x {:.1} s after {:.1} s of warm-up, kinds in turn; closed loops, one keep-alive connection (hyper) a caller",
            self.timing.rounds,
            self.timing.measured.as_secs_f64(),
            self.timing.warm_up.as_secs_f64(),
        );
        println!(
            "  question  {} bytes; in the queue {} bytes of request, {} of reply",
            stage.question.len(),
            stage.request_bytes,
            stage.reply_bytes
        );
    }

    fn echo(&self, callers: usize) -> Option<f64> {
        self.cells.get(&(callers, Kind::Echo)).map(Cell::per_second)
    }

    fn throughput(&mut self) {
        println!("\nthroughput and latency (ratio: requests per second to those of the echo, same callers)");
        println!("  callers  what              requests/s   ratio    p50 ms    p99 ms  failed");
        let echoes: BTreeMap<usize, f64> =
            self.cells.keys().filter_map(|(callers, _)| Some((*callers, self.echo(*callers)?))).collect();
        for ((callers, kind), cell) in &mut self.cells {
            let ratio = echoes.get(callers).map_or("-".to_owned(), |echo| format!("{:.2}", cell.per_second() / echo));
            println!(
                "  {callers:>7}  {:<16}  {:>10.0}  {ratio:>6}  {:>8.2}  {:>8.2}  {:>6}",
                kind.name(),
                cell.per_second(),
                cell.percentile_ms(0.5),
                cell.percentile_ms(0.99),
                cell.failed,
            );
        }
    }

    fn cpu(&self) {
        println!("\nCPU time in microseconds per request (ratio: the echo's to this), and what bounds the figure");
        print!("  callers  what            ");
        for part in PARTS {
            print!("  {part:>11}");
        }
        println!("  all ours  ratio  bound by");
        for ((callers, kind), cell) in &self.cells {
            let requests = cell.latencies_us.len().max(1) as f64;
            print!("  {callers:>7}  {:<16}", kind.name());
            for part in PARTS {
                match cell.usage.parts.get(part) {
                    Some(time) => print!("  {:>11.0}", time.as_secs_f64() * 1e6 / requests),
                    None => print!("  {:>11}", ""),
                }
            }
            let each = cost(cell);
            let echo = self.cells.get(&(*callers, Kind::Echo)).map(cost);
            let ratio = echo.map_or("-".to_owned(), |echo| format!("{:.2}", echo / each));
            println!("  {each:>8.0}  {ratio:>5}  {}", bound(&cell.usage, cell.elapsed));
        }
    }

    fn aims(&mut self, stage: &Stage) {
        println!("\naims");
        let ratios: Vec<f64> = self
            .cells
            .iter()
            // With a single caller throughput is latency, which has an aim of its own.
            .filter(|((callers, kind), _)| *kind == Kind::RabbitCached && *callers > 1)
            .filter_map(|((callers, _), cell)| Some(cell.per_second() / self.echo(*callers)?))
            .collect();
        if let (Some(least), Some(most)) =
            (ratios.iter().copied().reduce(f64::min), ratios.iter().copied().reduce(f64::max))
        {
            aim(
                least >= AIM_RATIO,
                &format!(
                    "cached answers on RabbitMQ, 2 callers and more: {least:.2} to {most:.2} of the echo; at least {AIM_RATIO}"
                ),
            );
        }
        let echo = self.cells.get_mut(&(1, Kind::Echo)).map(|cell| cell.percentile_ms(0.5));
        for kind in [Kind::RabbitCached, Kind::RabbitFresh, Kind::SqliteCached, Kind::SqliteFresh] {
            if let (Some(echo), Some(cell)) = (echo, self.cells.get_mut(&(1, kind))) {
                let added = cell.percentile_ms(0.5) - echo;
                let text = format!(
                    "{}: {added:+.2} ms at one caller (p50, against the echo); under {AIM_ADDED_MS}",
                    kind.name()
                );
                aim(added < AIM_ADDED_MS, &text);
            }
        }
        let peaks = stage
            .products()
            .flat_map(|(_, started)| started)
            .filter_map(|started| Memory::of(started.process.id()).peak.map(|peak| (peak, started.process.name)));
        if let Some((peak, name)) = peaks.max() {
            let text = format!("most memory of a process ({name}): {} MB; under 40", megabytes(Some(peak)));
            aim(peak < AIM_MEMORY_KIB, &text);
        }
    }
}

/// CPU time of all our processes for each request, in microseconds.
fn cost(cell: &Cell) -> f64 {
    let all: Duration = cell.usage.parts.values().sum();
    all.as_secs_f64() * 1e6 / cell.latencies_us.len().max(1) as f64
}

fn aim(reached: bool, text: &str) {
    println!("  {}  {text}", if reached { "reached    " } else { "not reached" });
}

fn processes(stage: &Stage) {
    println!("\nprocesses (MB: resident; own = without pages of the program file)");
    println!("  deployment        process   ready ms   idle (own)   after load (own)   peak  threads");
    for (kind, started) in stage.products() {
        for started in started {
            let now = Memory::of(started.process.id());
            println!(
                "  {:<16}  {:<8}  {:>8.0}  {:>5} {:>6}  {:>9} {:>8}  {:>5}  {:>7}",
                kind.name(),
                started.process.name,
                started.ready.as_secs_f64() * 1000.0,
                megabytes(started.idle.resident),
                format!("({})", megabytes(started.idle.own)),
                megabytes(now.resident),
                format!("({})", megabytes(now.own)),
                megabytes(now.peak),
                now.threads.map_or("-".to_owned(), |threads| threads.to_string()),
            );
        }
    }
}

/// What kept the figure from being higher, from the CPU times of a cell.
fn bound(usage: &Usage, elapsed: Duration) -> String {
    let all = usage.busy + usage.idle;
    if all.is_zero() {
        return String::new();
    }
    let busy = usage.busy.as_secs_f64() / all.as_secs_f64();
    let cores = |time: Duration| time.as_secs_f64() / elapsed.as_secs_f64();
    let ours: Duration = usage.parts.values().sum();
    let others = cores(usage.busy.saturating_sub(ours));
    let Some((most, time)) = usage.parts.iter().max_by_key(|(_, time)| **time) else { return String::new() };
    let top = format!("most by {most} ({:.2} cores)", cores(*time));
    let strangers = if others > 0.1 { format!(", {others:.2} cores by others") } else { String::new() };
    if busy >= FULL {
        format!("CPU: machine full; {top}{strangers}")
    } else if cores(*time) >= FULL {
        format!("CPU of {most}{strangers}")
    } else {
        format!("waiting: machine {:.0} % busy; {top}{strangers}", busy * 100.0)
    }
}

fn megabytes(kib: Option<u64>) -> String {
    kib.map_or("-".to_owned(), |kib| format!("{:.1}", kib as f64 / 1024.0))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn load_average() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn processors() -> (usize, String) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = read("/proc/cpuinfo");
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name);
    (cores, model.unwrap_or("processor").trim().to_owned())
}
