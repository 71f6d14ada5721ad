//! Where the events of all crates go: lines on standard error or to syslog, written natively, or Python's `logging`.
//!
//! An event is handed to Python by a thread of its own: whoever logs never waits for the interpreter, and loses the event
//! (counted) if Python does not keep up.
//!
//! Much of what is logged a guest can bring about as often as it likes. So there is a bound in time for each place in the code that logs
//! (`limit.rs`): a guest fills no disk of the host with it.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata};

mod limit;

/// Events that may wait for Python before more are dropped.
const BACKLOG: usize = 1024;

struct Record {
    level: Level,
    target: &'static str,
    message: String,
    fields: Vec<(String, String)>,
}

enum Sink {
    Nowhere,
    Stderr,
    Syslog(UnixDatagram),
    Python(SyncSender<Record>),
}

static SINK: RwLock<Sink> = RwLock::new(Sink::Nowhere);
/// The thread that serves Python, and the process that has it: a fork has not.
static LANE: Mutex<Option<(u32, JoinHandle<()>)>> = Mutex::new(None);
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The most verbose level let through: 0 is off, 1 is error, 5 is trace.
static LEVEL: AtomicUsize = AtomicUsize::new(0);

/// The subscriber of this process: events only, spans are not kept.
struct Collector;

impl tracing::Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && rank(*metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if !limit::admits(event) {
            return;
        }
        let mut record = Record::of(metadata);
        event.record(&mut record);
        emit(record);
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl Record {
    fn of(metadata: &Metadata<'static>) -> Record {
        Record { level: *metadata.level(), target: metadata.target(), message: String::new(), fields: Vec::new() }
    }

    fn add(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.fields.push((field.name().to_owned(), value));
        }
    }

    /// Message and fields on one line: `message key=value key="two words"`.
    fn text(&self) -> String {
        let mut line = plain(&self.message);
        for (key, value) in &self.fields {
            let _ = write!(line, " {key}={}", word(value));
        }
        line
    }
}

/// `text` without control characters: what a guest puts into a name must not make lines of its own.
fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        if char.is_control() {
            out.extend(char.escape_default())
        } else {
            out.push(char)
        }
        out
    })
}

/// `value` as one word: quoted where it would fall apart otherwise.
fn word(value: &str) -> String {
    let quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
    if !value.is_empty() && (quoted || !value.contains([' ', '"', '='])) { plain(value) } else { format!("{value:?}") }
}

fn rank(level: Level) -> usize {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Number of the level in Python's `logging`.
fn python_level(level: Level) -> u32 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

fn emit(record: Record) {
    match &*SINK.read() {
        Sink::Nowhere => {}
        Sink::Stderr => {
            let line = format!("{} {:<5} {}: {}\n", now(), record.level.as_str(), record.target, record.text());
            // There is nobody left to tell when standard error is gone.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
        Sink::Syslog(socket) => {
            // RFC 3164: facility daemon (3), severity by level.
            let severity = [7, 3, 4, 6, 7, 7][rank(record.level)];
            let line = format!("<{}>virtiofs[{}]: {}", 3 * 8 + severity, std::process::id(), record.text());
            let _ = socket.send(line.as_bytes());
        }
        Sink::Python(lane) => {
            if let Err(TrySendError::Full(_)) = lane.try_send(record) {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The time of day in UTC, as RFC 3339 writes it.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    // Days since 0000-03-01, in eras of 400 years: the leap day is the last day of such a year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (era * 400 + year, month + 3) } else { (era * 400 + year + 1, month - 9) };
    let (hour, minute, second, milli) = (second / 3600, second / 60 % 60, second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn install(sink: Sink, level: &str) -> PyResult<()> {
    let rank = match level {
        "off" => 0,
        "error" => 1,
        "warn" => 2,
        "info" => 3,
        "debug" => 4,
        "trace" => 5,
        _ => {
            return Err(PyValueError::new_err(format!(
                "level must be off, error, warn, info, debug or trace, not {level:?}"
            )));
        }
    };
    // A process has one collector; that of a program which embeds us for its own tracing would stay.
    let _ = tracing::subscriber::set_global_default(Collector);
    let before = std::mem::replace(&mut *SINK.write(), sink);
    LEVEL.store(rank, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
    drop(before);
    Ok(())
}

/// Takes events to Python until the sender is gone.
fn carry(events: Receiver<Record>) {
    let deliver = |py: Python<'_>, record: &Record| -> PyResult<()> {
        let extra = PyDict::new(py);
        extra.set_item("fields", record.fields.iter().cloned().collect::<std::collections::BTreeMap<_, _>>())?;
        let name = record.target.replace("::", ".").replacen("virtiofs_", "virtiofs.", 1);
        let keywords = PyDict::new(py);
        keywords.set_item("extra", extra)?;
        py.import("logging")?.call_method1("getLogger", (name,))?.call_method(
            "log",
            (python_level(record.level), "%s", record.text()),
            Some(&keywords),
        )?;
        Ok(())
    };
    while let Ok(record) = events.recv() {
        // None where the interpreter is going away: then nobody reads logs any more.
        let alive = Python::try_attach(|py| {
            if let Err(error) = deliver(py, &record) {
                error.write_unraisable(py, None);
            }
        });
        if alive.is_none() {
            return;
        }
    }
}

/// Writes events of at least `level` (off, error, warn, info, debug, trace) to standard error, without Python.
#[pyfunction]
pub(crate) fn log_to_stderr(py: Python<'_>, level: &str) -> PyResult<()> {
    log_stop(py);
    install(Sink::Stderr, level)
}

/// Writes events of at least `level` to the syslog socket at `path`, without Python.
#[pyfunction]
#[pyo3(signature = (level, path = "/dev/log"))]
pub(crate) fn log_to_syslog(py: Python<'_>, level: &str, path: &str) -> PyResult<()> {
    log_stop(py);
    let socket = UnixDatagram::unbound().and_then(|socket| socket.connect(path).map(|()| socket));
    install(Sink::Syslog(socket?), level)
}

/// Hands events of at least `level` to the loggers `virtiofs.*` of Python's `logging`.
#[pyfunction]
pub(crate) fn log_to_python(py: Python<'_>, level: &str) -> PyResult<()> {
    log_stop(py);
    let (sender, events) = mpsc::sync_channel(BACKLOG);
    let lane =
        std::thread::Builder::new().name("virtiofs-log".into()).stack_size(256 * 1024).spawn(move || carry(events));
    let lane = lane.map_err(|error| PyRuntimeError::new_err(format!("no thread for logging: {error}")))?;
    *LANE.lock() = Some((std::process::id(), lane));
    install(Sink::Python(sender), level)
}

/// Sends no more events anywhere; returns once those that wait were delivered.
#[pyfunction]
pub(crate) fn log_stop(py: Python<'_>) {
    LEVEL.store(0, Ordering::Relaxed);
    limit::tell_all();
    let before = std::mem::replace(&mut *SINK.write(), Sink::Nowhere);
    let lane = LANE.lock().take();
    py.detach(|| {
        drop(before);
        match lane {
            Some((process, lane)) if process == std::process::id() => drop(lane.join()),
            lane => std::mem::forget(lane),
        }
    });
    let dropped = DROPPED.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        let _ = writeln!(std::io::stderr().lock(), "virtiofs: {dropped} log events came faster than Python took them");
    }
}

/// Where events go now: nowhere, stderr, syslog or python.
#[pyfunction]
pub(crate) fn log_sink() -> &'static str {
    match &*SINK.read() {
        Sink::Nowhere => "nowhere",
        Sink::Stderr => "stderr",
        Sink::Syslog(_) => "syslog",
        Sink::Python(_) => "python",
    }
}

/// Logs one event of the Python side, at `level`, in the same stream as the native ones.
#[pyfunction]
#[pyo3(signature = (level, message, **fields))]
pub(crate) fn log(level: &str, message: String, fields: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let level = level.parse::<Level>().map_err(|_| PyValueError::new_err(format!("no such level: {level:?}")))?;
    if rank(level) > LEVEL.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut record = Record { level, target: "virtiofs", message, fields: Vec::new() };
    for (key, value) in fields.into_iter().flatten() {
        record.fields.push((key.extract()?, value.str()?.to_string_lossy().into_owned()));
    }
    emit(record);
    Ok(())
}
