//! Small promises of a process about itself.

use std::io;

use rustix::process::{DumpableBehavior, Signal};

/// No execve(2) gives privileges any more (`PR_SET_NO_NEW_PRIVS`); filters of unprivileged processes need it.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Leaves no core file, and lets no process of the same user trace this one.
pub fn undumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Dies by SIGKILL with the thread that started it. The kernel forgets that when the process gains capabilities or changes its
/// user (`commit_creds`, `kernel/cred.c`), so it comes after both.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Children of children become ours when their parents end.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}
