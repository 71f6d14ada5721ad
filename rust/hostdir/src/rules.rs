//! What holds for single inodes, by rules: a small program that runs when an inode is first entered.
//!
//! Each rule has conditions, which all must hold, and changes to the effects of the share. Of several rules that hold and change the
//! same thing, the first has its way. What a rule finds at an inode's first appearance stays for the life of its node.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use parking_lot::Mutex;
use virtiofs_fuse::wire::Attr;
use virtiofs_fuse::{Error, Result};

use crate::config::{Effects, Pace};
use crate::ids::Translation;

/// Rules that one share may have: what holds for an inode is remembered as a set of them.
pub const RULES_MAX: usize = u128::BITS as usize;

/// Somebody who is asked about an inode. May take long.
pub trait Judge: Send + Sync {
    /// Whether a rule holds for the inode that was found at `path`, relative to the share.
    fn holds(&self, path: &Path, attr: &Attr) -> Result<bool>;
}

/// When a rule holds. What is empty or `None` holds always.
#[derive(Default)]
pub struct Conditions {
    /// Globs, of which one fits the name.
    pub names: Vec<String>,
    /// Globs, of which one fits the path from the share's root. `*` stays within a component, `**` does not.
    pub paths: Vec<String>,
    /// Types (`S_IFREG` and its like), one of which is the inode's.
    pub kinds: Vec<u32>,
    /// The size in bytes.
    pub sizes: Option<RangeInclusive<u64>>,
    /// Owners.
    pub uids: Vec<u32>,
    /// Groups.
    pub gids: Vec<u32>,
    /// Asked last.
    pub judge: Option<Box<dyn Judge>>,
}

/// What a rule changes of [`Effects`]. `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Changes {
    pub entry_ttl: Option<Duration>,
    pub attr_ttl: Option<Duration>,
    pub negative_ttl: Option<Duration>,
    pub pace: Option<Option<Pace>>,
    /// Flags of OPEN: those that may change, and their values.
    pub open_flags: (u32, u32),
    pub dir_open_flags: Option<u32>,
    pub read_only: Option<bool>,
    pub hidden: Option<bool>,
    pub dax: Option<Option<u64>>,
    pub users: Option<Option<Arc<Translation>>>,
    pub groups: Option<Option<Arc<Translation>>>,
}

impl Changes {
    fn apply(&self, effects: &mut Effects) {
        fn set<T: Clone>(field: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                *field = value.clone();
            }
        }
        set(&mut effects.entry_ttl, &self.entry_ttl);
        set(&mut effects.attr_ttl, &self.attr_ttl);
        set(&mut effects.negative_ttl, &self.negative_ttl);
        set(&mut effects.pace, &self.pace);
        set(&mut effects.dir_open_flags, &self.dir_open_flags);
        set(&mut effects.hidden, &self.hidden);
        set(&mut effects.dax, &self.dax);
        set(&mut effects.users, &self.users);
        set(&mut effects.groups, &self.groups);
        let (mask, bits) = self.open_flags;
        effects.open_flags = effects.open_flags & !mask | bits;
        // A share that is read-only stays that.
        effects.read_only |= self.read_only == Some(true);
    }
}

struct Rule {
    names: Option<GlobSet>,
    paths: Option<GlobSet>,
    conditions: Conditions,
    changes: Changes,
}

/// What is known of an inode, or of one that is to be made.
pub(crate) struct Facts<'a> {
    pub(crate) name: &'a [u8],
    /// Looked for when it is needed.
    pub(crate) path: &'a dyn Fn() -> Result<PathBuf>,
    /// The type bits of its mode.
    pub(crate) kind: Option<u32>,
    /// `None`: there is none yet.
    pub(crate) attr: Option<Attr>,
}

/// The rules of a share.
pub struct Rules {
    rules: Vec<Rule>,
    asks: bool,
    hides: bool,
    translates: bool,
    /// The effects that were needed so far, by the rules that hold.
    made: Mutex<HashMap<u128, Arc<Effects>>>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("count", &self.rules.len()).finish_non_exhaustive()
    }
}

fn globs(patterns: &[String], in_paths: bool) -> std::result::Result<Option<GlobSet>, String> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(in_paths).build();
        set.add(glob.map_err(|error| error.to_string())?);
    }
    set.build().map(Some).map_err(|error| error.to_string())
}

impl Rules {
    /// Makes a program of rules, the most important one first. Refuses globs that are none.
    pub fn new(given: Vec<(Conditions, Changes)>) -> std::result::Result<Rules, String> {
        if given.len() > RULES_MAX {
            return Err(format!("{} rules are more than {RULES_MAX}", given.len()));
        }
        let asks = given.iter().any(|(conditions, _)| conditions.judge.is_some());
        let hides = given.iter().any(|(_, changes)| changes.hidden == Some(true));
        let translates = given.iter().any(|(_, changes)| changes.users.is_some() || changes.groups.is_some());
        let rules = given.into_iter().map(|(conditions, changes)| {
            let (names, paths) = (globs(&conditions.names, false)?, globs(&conditions.paths, true)?);
            Ok::<_, String>(Rule { names, paths, conditions, changes })
        });
        let rules = rules.collect::<std::result::Result<_, _>>()?;
        Ok(Rules { rules, asks, hides, translates, made: Mutex::default() })
    }

    /// Whether anybody is asked, which may take long.
    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// Whether any inode may be hidden.
    pub(crate) fn hides(&self) -> bool {
        self.hides
    }

    /// Whether owners of any inode are called something else.
    pub(crate) fn translates(&self) -> bool {
        self.translates
    }

    /// What holds for an inode, where `base` holds for the others.
    pub(crate) fn effects(&self, facts: &Facts<'_>, base: &Arc<Effects>) -> Result<Arc<Effects>> {
        let mut holding = 0u128;
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.holds(facts)? {
                holding |= 1 << index;
            }
        }
        if holding == 0 {
            return Ok(Arc::clone(base));
        }
        let make = || {
            let mut effects = Effects::clone(base);
            let held = self.rules.iter().enumerate().rev().filter(|(index, _)| holding & (1 << index) != 0);
            held.for_each(|(_, rule)| rule.changes.apply(&mut effects));
            Arc::new(effects)
        };
        Ok(Arc::clone(self.made.lock().entry(holding).or_insert_with(make)))
    }
}

impl Rule {
    /// Whether all conditions hold. What is not there yet has neither size nor owner, and nobody is asked about it.
    fn holds(&self, facts: &Facts<'_>) -> Result<bool> {
        let Conditions { kinds, sizes, uids, gids, judge, .. } = &self.conditions;
        let attr = facts.attr.as_ref();
        let easy = self.names.as_ref().is_none_or(|names| names.is_match(OsStr::from_bytes(facts.name)))
            && (kinds.is_empty() || facts.kind.is_some_and(|kind| kinds.contains(&kind)))
            && sizes.as_ref().is_none_or(|sizes| attr.is_some_and(|attr| sizes.contains(&attr.size)))
            && (uids.is_empty() || attr.is_some_and(|attr| uids.contains(&attr.uid)))
            && (gids.is_empty() || attr.is_some_and(|attr| gids.contains(&attr.gid)));
        if !easy || (self.paths.is_none() && judge.is_none()) {
            return Ok(easy);
        }
        let path = (facts.path)()?;
        if self.paths.as_ref().is_some_and(|paths| !paths.is_match(&path)) {
            return Ok(false);
        }
        match (judge, attr) {
            (None, _) => Ok(true),
            (Some(_), None) => Ok(false),
            (Some(judge), Some(attr)) => judge.holds(&path, attr),
        }
    }
}

/// Refused since it would be hidden.
pub(crate) const HIDDEN: Error = Error::Errno(libc::EPERM);

#[cfg(test)]
mod tests {
    use super::*;

    fn names(patterns: &[&str]) -> Conditions {
        Conditions { names: patterns.iter().map(ToString::to_string).collect(), ..Conditions::default() }
    }

    fn read_only() -> Changes {
        Changes { read_only: Some(true), ..Changes::default() }
    }

    fn effects(rules: &Rules, path: &str, attr: Option<Attr>) -> Arc<Effects> {
        let name = path.rsplit('/').next().unwrap();
        let kind = attr.map(|attr| attr.mode & libc::S_IFMT);
        let facts = Facts { name: name.as_bytes(), path: &|| Ok(path.into()), kind, attr };
        rules.effects(&facts, &Arc::default()).unwrap()
    }

    #[test]
    fn all_conditions_must_hold() {
        let conditions = Conditions {
            paths: vec!["lib/**/*.so".into(), "bin/*".into()],
            kinds: vec![libc::S_IFREG],
            sizes: Some(10..=20),
            uids: vec![7],
            ..Conditions::default()
        };
        let rules = Rules::new(vec![(conditions, read_only())]).unwrap();
        let attr = Attr { mode: libc::S_IFREG | 0o644, size: 15, uid: 7, ..Attr::default() };
        let fits = |path, attr| effects(&rules, path, attr).read_only;
        assert!(fits("lib/a/b/c.so", Some(attr)));
        assert!(fits("lib/c.so", Some(attr)));
        assert!(fits("bin/x", Some(attr)));
        assert!(!fits("bin/x/y", Some(attr)));
        assert!(!fits("other/c.so", Some(attr)));
        assert!(!fits("bin/x", Some(Attr { size: 21, ..attr })));
        assert!(!fits("bin/x", Some(Attr { uid: 8, ..attr })));
        assert!(!fits("bin/x", Some(Attr { mode: libc::S_IFDIR, ..attr })));
        assert!(!fits("bin/x", None), "it has no size yet");
    }

    #[test]
    fn the_first_rule_that_changes_something_has_its_way_and_others_add_to_it() {
        let ttl = |seconds| Changes { attr_ttl: Some(Duration::from_secs(seconds)), ..Changes::default() };
        let hidden = Changes { hidden: Some(true), ..ttl(9) };
        let rules = Rules::new(vec![(names(&["*.log"]), ttl(1)), (names(&["a*"]), hidden)]).unwrap();
        let both = effects(&rules, "a.log", None);
        assert_eq!((both.attr_ttl, both.hidden), (Duration::from_secs(1), true));
        assert_eq!(effects(&rules, "b.log", None).attr_ttl, Duration::from_secs(1));
        assert_eq!(effects(&rules, "abc", None).attr_ttl, Duration::from_secs(9));
        assert_eq!(*effects(&rules, "b", None), Effects::default());
        assert!(Arc::ptr_eq(&both, &effects(&rules, "aa.log", None)), "they are made once");
    }

    #[test]
    fn flags_of_open_change_where_they_may() {
        let direct = Changes { open_flags: (0b11, 0b01), ..Changes::default() };
        let mode = Changes { open_flags: (u32::MAX, 0b110), ..Changes::default() };
        let rules = Rules::new(vec![(names(&["*"]), direct), (names(&["*"]), mode)]).unwrap();
        assert_eq!(effects(&rules, "x", None).open_flags, 0b101);
    }

    #[test]
    fn an_error_of_a_judge_is_the_answer() {
        struct Failing;
        impl Judge for Failing {
            fn holds(&self, _: &Path, _: &Attr) -> Result<bool> {
                Err(Error::Errno(libc::EIO))
            }
        }
        let conditions = Conditions { judge: Some(Box::new(Failing)), ..names(&["x"]) };
        let rules = Rules::new(vec![(conditions, read_only())]).unwrap();
        let facts = |name| Facts { name, path: &|| Ok("x".into()), kind: None, attr: Some(Attr::default()) };
        assert_eq!(rules.effects(&facts(b"x"), &Arc::default()).unwrap_err(), Error::Errno(libc::EIO));
        assert!(rules.effects(&facts(b"y"), &Arc::default()).is_ok());
    }

    #[test]
    fn what_is_no_glob_is_refused() {
        assert!(Rules::new(vec![(names(&["a["]), read_only())]).unwrap_err().contains("a["));
    }
}
