//! System calls that this process may make: seccomp(2).
//!
//! Calls whose arguments do not matter cost next to nothing: the kernel remembers per number that the filter allows them
//! (`seccomp_cache_prepare`, `kernel/seccomp.c`). So a rule about arguments is for calls that are rare.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::syscalls;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made, and the kernel writes it to its audit log.
    Log,
    /// The process gets SIGSYS.
    Trap,
    /// The process ends.
    Kill,
    /// It answers this errno.
    Errno(u16),
}

impl From<Action> for SeccompAction {
    fn from(action: Action) -> SeccompAction {
        match action {
            Action::Allow => SeccompAction::Allow,
            Action::Log => SeccompAction::Log,
            Action::Trap => SeccompAction::Trap,
            Action::Kill => SeccompAction::KillProcess,
            Action::Errno(errno) => SeccompAction::Errno(errno.into()),
        }
    }
}

/// Calls that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls {
    /// By the name that the manual has.
    pub name: String,
    /// Only those whose argument of this number (from 0) is, under this mask, this value. Empty: all. Several rules for one
    /// name add up.
    pub when: Vec<(u8, u64, u64)>,
}

/// A filter: what `listed` is about gets one action, everything else the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The rules. Names that this architecture does not have say nothing.
    pub listed: Vec<Calls>,
    /// For calls that a rule is about.
    pub matched: Action,
    /// For all others.
    pub others: Action,
}

/// Names in `listed` that this crate does not know, on any architecture.
pub fn unknown(listed: &[Calls]) -> Vec<&str> {
    listed.iter().map(|calls| calls.name.as_str()).filter(|name| !syscalls::is_known(name)).collect()
}

/// Applies all `filters`, in their order, to all threads of the process; a call gets the strictest of their actions. Sets
/// no_new_privs.
///
/// # Errors
///
/// EINVAL where a name is unknown or a filter cannot be built; what seccomp(2) says.
pub fn apply(filters: &[Filter]) -> io::Result<()> {
    let programs = filters.iter().map(Filter::compiled).collect::<io::Result<Vec<_>>>()?;
    programs.iter().try_for_each(|program| seccompiler::apply_filter_all_threads(program).map_err(failed))
}

impl Filter {
    fn compiled(&self) -> io::Result<BpfProgram> {
        if let Some(name) = unknown(&self.listed).first() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no system call is called {name}")));
        }
        let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
        let whole = |name: &str| self.listed.iter().any(|calls| calls.name == name && calls.when.is_empty());
        for calls in &self.listed {
            let Some(number) = syscalls::by_name(&calls.name) else { continue };
            let rules = rules.entry(number).or_default();
            if !whole(&calls.name) {
                let conditions = calls.when.iter().map(|&(argument, mask, value)| {
                    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
                });
                let conditions = conditions.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
                rules.push(SeccompRule::new(conditions).map_err(invalid)?);
            }
        }
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(invalid)?;
        let filter = SeccompFilter::new(rules, self.others.into(), self.matched.into(), arch).map_err(invalid)?;
        filter.try_into().map_err(invalid)
    }
}

fn invalid(error: seccompiler::BackendError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn failed(error: seccompiler::Error) -> io::Error {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(name: &str) -> Calls {
        Calls { name: name.into(), when: Vec::new() }
    }

    #[test]
    fn a_name_that_no_kernel_has_is_a_mistake() {
        let filter =
            Filter { listed: vec![calls("read"), calls("raed")], matched: Action::Allow, others: Action::Kill };
        assert_eq!(unknown(&filter.listed), ["raed"]);
        assert_eq!(filter.compiled().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_name_of_another_architecture_is_none() {
        let filter = Filter {
            listed: vec![calls("open"), calls("openat"), calls("open")],
            matched: Action::Allow,
            others: Action::Kill,
        };
        filter.compiled().unwrap();
    }

    #[test]
    fn all_calls_of_a_name_take_precedence_over_some() {
        let some = Calls { name: "prctl".into(), when: vec![(0, u64::MAX, 15)] };
        let filter = |listed| Filter { listed, matched: Action::Allow, others: Action::Kill }.compiled().unwrap();
        assert_ne!(filter(vec![some.clone()]), filter(vec![calls("prctl")]));
        assert_eq!(filter(vec![calls("prctl"), some.clone()]), filter(vec![calls("prctl")]));
        assert_eq!(filter(vec![some, calls("prctl")]), filter(vec![calls("prctl")]));
    }
}
