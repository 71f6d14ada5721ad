// UNSAFETY: clock_gettime(2) on the CPU clock of another process has no safe wrapper that takes a process id.
#![allow(unsafe_code)]
//! What a daemon costs: CPU time and memory of a process and its descendants.

use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A process with all that it has started.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    pids: Vec<u32>,
}

/// Resident memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Memory of its own.
    pub anonymous: u64,
    /// Pages of its programs and libraries.
    pub file: u64,
    /// Shared memory: of the guest, for the most part.
    pub shared: u64,
}

impl Processes {
    /// The processes `pids` and their descendants, as they are now.
    pub fn of(pids: &[u32]) -> Processes {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name in parentheses may hold anything: what counts comes behind the last one.
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            if let Some(parent) = parent {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut found: Vec<u32> = Vec::new();
        let mut waiting = pids.to_vec();
        while let Some(pid) = waiting.pop() {
            if !found.contains(&pid) {
                found.push(pid);
                waiting.extend(children.get(&pid).into_iter().flatten());
            }
        }
        Processes { pids: found }
    }

    /// This process alone.
    pub(crate) fn own() -> Processes {
        Processes { pids: vec![std::process::id()] }
    }

    /// CPU time of all their threads so far, those that have ended included, to the nanosecond.
    pub fn cpu(&self) -> Duration {
        self.pids.iter().filter_map(|pid| cpu_of(*pid)).sum()
    }

    /// Resident memory.
    pub fn memory(&self) -> Memory {
        let mut sum = Memory::default();
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name: &str| -> u64 {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
            };
            sum.anonymous += field("RssAnon:");
            sum.file += field("RssFile:");
            sum.shared += field("RssShmem:");
        }
        sum
    }
}

/// CPU time of the calling thread so far.
pub(super) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn cpu_of(pid: u32) -> Option<Duration> {
    // The kernel's encoding of "all CPU time of a process" as a clock: include/linux/posix-timers.h, CPUCLOCK_SCHED.
    const SCHED: libc::clockid_t = 2;
    let clock = (!libc::clockid_t::try_from(pid).ok()? << 3) | SCHED;
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel writes a whole timespec to the place given if it answers 0, and the place is large enough for one.
    let result = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: written by the call above, which succeeded.
    let time = unsafe { time.assume_init() };
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_grows_with_work_and_memory_is_seen() {
        let own = Processes::own();
        let before = own.cpu();
        let mut sum = 0u64;
        for i in 0..3_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31) ^ i);
        }
        assert!(own.cpu() > before, "{sum}");
        assert!(own.memory().anonymous > 0);
    }

    #[test]
    fn children_belong_to_it_and_the_dead_cost_nothing() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let all = Processes::of(&[std::process::id()]);
        let found = all.pids.contains(&child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
        assert_eq!(cpu_of(u32::MAX), None);
    }
}
