//! Load on a share, for benchmarks: the driver's loops run natively, Python says what and for how long.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtiofs_guest::load::{self, Memory, Plan, Processes, ROWS, Report, RowKind};
use virtiofs_guest::{Error, Guest, Options, Result};

use crate::errors;

/// Names of the kinds of work.
#[pyfunction]
pub(crate) fn load_rows() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.name()).collect()
}

/// Runs one kind of work by system calls on `directory`, one after the other in this thread.
#[pyfunction]
#[pyo3(signature = (directory, row, *, seconds=1.0, warm=0.2))]
pub(crate) fn load_native<'py>(
    py: Python<'py>,
    directory: PathBuf,
    row: &str,
    seconds: f64,
    warm: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let plan = plan(row, 1, 1, seconds, warm)?;
    let report = py.detach(|| load::run_native(&directory, &plan)).map_err(|error| errors::of_guest(py, error))?;
    figures(py, &plan, &report, Memory::default())
}

/// Wakes a thread that sleeps as drivers do, for `seconds`: what that costs. `processors` are where the waker and the other stay.
#[pyfunction]
#[pyo3(signature = (*, seconds=0.1, processors=None))]
pub(crate) fn load_wakeup(
    py: Python<'_>,
    seconds: f64,
    processors: Option<(usize, usize)>,
) -> PyResult<Bound<'_, PyDict>> {
    let time = time(seconds)?;
    let found = py.detach(|| load::wake_up(time, processors)).map_err(|error| errors::of_guest(py, error))?;
    let all = PyDict::new(py);
    for (name, value) in [
        ("waker_cpu_us", found.waker_cpu),
        ("delay_us", found.delay),
        ("woken_cpu_us", found.woken_cpu),
        ("round_trip_us", found.round_trip),
        ("round_trip_cpu_us", found.round_trip_cpu),
    ] {
        all.set_item(name, value.as_secs_f64() * 1e6)?;
    }
    Ok(all)
}

fn bad(error: &dyn std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn time(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| bad(&error))
}

fn plan(row: &str, depth: usize, queues: usize, seconds: f64, warm: f64) -> PyResult<Plan> {
    let row: RowKind = row.parse().map_err(|error: Error| bad(&error))?;
    Ok(Plan { row, depth: depth.max(1), queues, warm: time(warm)?, time: time(seconds)? })
}

fn figures<'py>(py: Python<'py>, plan: &Plan, report: &Report, memory: Memory) -> PyResult<Bound<'py, PyDict>> {
    let micros = |ns: u64| ns as f64 / 1e3;
    let per_op = |count: u64| count as f64 / report.ops.max(1) as f64;
    let all = PyDict::new(py);
    all.set_item("row", plan.row.name())?;
    all.set_item("depth", plan.depth)?;
    all.set_item("queues", plan.queues)?;
    all.set_item("ops", report.ops)?;
    all.set_item("seconds", report.time.as_secs_f64())?;
    all.set_item("ops_per_s", report.rate())?;
    all.set_item("mib_per_s", report.throughput())?;
    all.set_item("p50_us", micros(report.latency.quantile(0.5)))?;
    all.set_item("p99_us", micros(report.latency.quantile(0.99)))?;
    all.set_item("daemon_cpu_us", report.daemon_cpu_per_op())?;
    all.set_item("driver_cpu_us", report.driver_cpu_per_op())?;
    all.set_item("kicks_per_op", per_op(report.kicks))?;
    all.set_item("calls_per_op", per_op(report.calls))?;
    all.set_item("rss_kib", memory.anonymous + memory.file)?;
    Ok(all)
}

/// A guest that does nothing but load: real virtqueues over vhost-user, one thread per request queue.
#[pyclass(frozen, module = "virtiofs._core")]
pub(crate) struct Load {
    guest: Guest,
    daemon: Processes,
}

impl Load {
    fn detached<T: Send>(&self, py: Python<'_>, work: impl Send + FnOnce(&Guest) -> Result<T>) -> PyResult<T> {
        py.detach(|| work(&self.guest)).map_err(|error| errors::of_guest(py, error))
    }
}

#[pymethods]
impl Load {
    /// Connects. `pid` is the daemon, if it is not who listens on the socket; what it has started counts with it. `strict` holds
    /// replies to the rules of Linux 7.3.
    #[new]
    #[pyo3(signature = (socket, *, pid=None, depth=32, queues=1, polling=false, strict=true))]
    fn new(
        py: Python<'_>,
        socket: PathBuf,
        pid: Option<u32>,
        depth: usize,
        queues: u16,
        polling: bool,
        strict: bool,
    ) -> PyResult<Load> {
        let options = Options {
            request_queues: queues.clamp(1, 64),
            in_flight: depth.clamp(1, 1024).next_power_of_two() as u16,
            connect_timeout: Duration::from_secs(10),
            polling,
            strict,
            ..Options::default()
        };
        let guest = py.detach(|| Guest::connect(&socket, options)).map_err(|error| errors::of_guest(py, error))?;
        let pids: Vec<u32> = pid.or(guest.client().peer()).into_iter().collect();
        Ok(Load { guest, daemon: Processes::of(&pids) })
    }

    /// Makes the files that the work is done on, as far as they are missing.
    fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, load::prepare)
    }

    /// Runs one kind of work.
    #[pyo3(signature = (row, *, depth=1, queues=1, seconds=1.0, warm=0.2))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        row: &str,
        depth: usize,
        queues: usize,
        seconds: f64,
        warm: f64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let plan = plan(row, depth, queues, seconds, warm)?;
        let report = self.detached(py, |guest| load::run(guest, &plan, &self.daemon))?;
        figures(py, &plan, &report, self.daemon.memory())
    }

    /// Resident memory of the daemon in KiB, without the guest's own.
    fn memory(&self) -> u64 {
        let memory = self.daemon.memory();
        memory.anonymous + memory.file
    }

    /// Looks the names `f00000` and so on up in each directory of `directory`, `count` in each, and holds them. Answers how many the
    /// daemon could hold.
    fn hold(&self, py: Python<'_>, directory: &str, count: usize) -> PyResult<usize> {
        self.detached(py, |guest| load::hold(guest, directory, count))
    }

    /// Ends the session.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, Guest::unmount)
    }
}
