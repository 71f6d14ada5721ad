//! Runs load on a share behind a vhost-user socket and prints what it cost, as JSON: one object per line.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use virtiofs_guest::load::{self, Plan, Processes, ROWS, Report, RowKind};
use virtiofs_guest::{Error, Guest, Options, Result};

const USAGE: &str = "\
usage: virtiofs-bench --socket PATH [options]

  --pid N             the daemon, if it is not who listens on the socket; children count with it
  --rows A,B,...      kinds of work (default: all; --list names them)
  --depth 1,8,32      operations in flight per queue
  --queues N          request queues, one thread each (default 1)
  --seconds S         time measured per row and depth (default 1)
  --warm S            time before that (default 0.2)
  --queue-size N      ring size (default 1024)
  --polling           look at the ring instead of waiting for calls
  --contiguous        data in one piece instead of scattered 4 KiB pages
  --pipes             pipes instead of eventfds
  --lenient           do not hold replies to the rules of Linux 7.3
  --prepare           make the files that the rows work on, as far as missing, and end unless --rows is given
  --inodes DIR:N      look N names f00000... up in each directory of DIR that is named d000..., hold them, and report memory
  --list              name the rows
";

struct Arguments {
    socket: String,
    pids: Vec<u32>,
    rows: Option<Vec<RowKind>>,
    depths: Vec<usize>,
    queues: usize,
    time: Duration,
    warm: Duration,
    prepare: bool,
    inodes: Option<(String, usize)>,
    options: Options,
}

const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

fn bad(text: impl Into<String>) -> Error {
    Error::Protocol(text.into())
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| bad(format!("{name}: {text:?} is no such number")))
}

fn list<T>(text: &str, each: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    text.split(',').map(|part| each(part.trim())).collect()
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Option<Arguments>> {
    let mut found = Arguments {
        socket: String::new(),
        pids: Vec::new(),
        rows: None,
        depths: vec![1, 8, 32],
        queues: 1,
        time: Duration::from_secs(1),
        warm: Duration::from_millis(200),
        prepare: false,
        inodes: None,
        options: Options::default(),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| bad(format!("{word} needs a value")));
        let seconds = |name: &str, text: &str| {
            Duration::try_from_secs_f64(number(name, text)?).map_err(|_| bad(format!("{name}: {text} s")))
        };
        match word.as_str() {
            "--socket" => found.socket = value()?,
            "--pid" => found.pids.push(number("--pid", &value()?)?),
            "--rows" => found.rows = Some(list(&value()?, str::parse)?),
            "--depth" => found.depths = list(&value()?, |part| number("--depth", part))?,
            "--queues" => found.queues = number("--queues", &value()?)?,
            "--seconds" => found.time = seconds("--seconds", &value()?)?,
            "--warm" => found.warm = seconds("--warm", &value()?)?,
            "--queue-size" => found.options.queue_size = number("--queue-size", &value()?)?,
            "--polling" => found.options.polling = true,
            "--contiguous" => found.options.contiguous = true,
            "--pipes" => found.options.pipes = true,
            "--lenient" => found.options.strict = false,
            "--prepare" => found.prepare = true,
            "--inodes" => {
                let text = value()?;
                let (directory, count) = text.rsplit_once(':').ok_or_else(|| bad("--inodes wants DIR:N"))?;
                found.inodes = Some((directory.to_owned(), number("--inodes", count)?));
            }
            "--list" => {
                ROWS.iter().for_each(|row| println!("{}", row.name()));
                return Ok(None);
            }
            "--help" | "-h" => {
                print!("{USAGE}");
                return Ok(None);
            }
            other => return Err(bad(format!("{other}: no such option\n{USAGE}"))),
        }
    }
    if found.socket.is_empty() {
        return Err(bad(format!("--socket is missing\n{USAGE}")));
    }
    let deepest = found.depths.iter().copied().max().unwrap_or(1).clamp(1, 1024);
    found.options.in_flight = deepest.next_power_of_two() as u16;
    found.options.request_queues = found.queues.clamp(1, 64) as u16;
    found.options.connect_timeout = Duration::from_secs(10);
    Ok(Some(found))
}

fn line(plan: &Plan, report: &Report, memory: load::Memory) -> String {
    let mut out = String::new();
    let micros = |ns: u64| ns as f64 / 1e3;
    let _ = write!(
        out,
        "{{\"row\": \"{}\", \"depth\": {}, \"queues\": {}, \"ops\": {}, \"seconds\": {:.4}, \"ops_per_s\": {:.1}, \
         \"mib_per_s\": {:.2}, \"p50_us\": {:.2}, \"p99_us\": {:.2}, \"daemon_cpu_us\": {:.3}, \"driver_cpu_us\": {:.3}, \
         \"kicks\": {}, \"rss_kib\": {}}}",
        plan.row.name(),
        plan.depth,
        plan.queues,
        report.ops,
        report.time.as_secs_f64(),
        report.rate(),
        report.throughput(),
        micros(report.latency.quantile(0.5)),
        micros(report.latency.quantile(0.99)),
        report.daemon_cpu_per_op(),
        report.driver_cpu_per_op(),
        report.kicks,
        memory.anonymous + memory.file,
    );
    out
}

fn memory_line(what: &str, nodes: usize, memory: load::Memory) {
    println!(
        "{{\"row\": \"{what}\", \"nodes\": {nodes}, \"rss_kib\": {}, \"anonymous_kib\": {}, \"file_kib\": {}, \
         \"shared_kib\": {}}}",
        memory.anonymous + memory.file,
        memory.anonymous,
        memory.file,
        memory.shared,
    );
}

fn hold_inodes(guest: &Guest, daemon: &Processes, directory: &str, count: usize) -> Result<()> {
    memory_line("memory-idle", 0, daemon.memory());
    let client = guest.client();
    let mut nodes = 0;
    let paths = guest.listdir(directory)?.into_iter();
    let paths = paths.map(|name| format!("{directory}/{}", String::from_utf8_lossy(&name)));
    'all: for path in paths {
        let parent = guest.nodeid(&path)?;
        for n in 0..count {
            match client.lookup(parent, format!("f{n:05}").as_bytes()) {
                Ok(_) => nodes += 1,
                // As many as the host lets the daemon hold: how many is part of the answer.
                Err(Error::Errno(EMFILE | ENFILE)) => break 'all,
                Err(error) => return Err(error),
            }
        }
    }
    memory_line("memory-inodes", nodes, daemon.memory());
    Ok(())
}

fn bench(arguments: Arguments) -> Result<()> {
    let guest = Guest::connect(arguments.socket.as_ref(), arguments.options.clone())?;
    let mut pids = arguments.pids.clone();
    if pids.is_empty() {
        pids.extend(guest.client().peer());
    }
    let daemon = Processes::of(&pids);
    if let Some((directory, count)) = &arguments.inodes {
        return hold_inodes(&guest, &daemon, directory, *count);
    }
    if arguments.prepare {
        load::prepare(&guest)?;
        if arguments.rows.is_none() {
            return Ok(());
        }
    }
    let rows = arguments.rows.as_deref().unwrap_or(ROWS);
    for row in rows {
        for depth in &arguments.depths {
            let plan =
                Plan { row: *row, depth: *depth, queues: arguments.queues, warm: arguments.warm, time: arguments.time };
            let report = load::run(&guest, &plan, &daemon)?;
            println!("{}", line(&plan, &report, daemon.memory()));
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)).and_then(|found| found.map_or(Ok(()), bench)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtiofs-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
