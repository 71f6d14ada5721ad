//! Names of extended attributes: what the guest calls them and what they are called on the host.
//!
//! A list of rules, of which the first that fits a name holds. With no rules, which is the rule, names are what they are and nothing
//! here runs. Otherwise a name goes to the host through a buffer on the stack and comes back as its own tail: no way allocates.

use std::ffi::{CStr, CString};

use virtiofs_fuse::wire::NAME_MAX;
use virtiofs_fuse::{Error, Result};

/// The attribute that holds a program's privileges. The host takes it away when the file changes, but only under this name.
const CAPABILITY: &CStr = c"security.capability";

/// What becomes of names that begin in a certain way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRule {
    /// It holds for names of the guest that begin so; `None`: for none.
    pub guest: Option<Vec<u8>>,
    /// It holds for names on the host that begin so, `prefix` included; `None`: for none.
    pub host: Option<Vec<u8>>,
    /// What a name of the guest gets in front on the host, and loses on its way back.
    pub prefix: Vec<u8>,
    /// Not 0: a guest that uses such a name gets this errno, and such names on the host are not listed.
    pub errno: i32,
}

impl NameRule {
    /// How many bytes a name of the host loses. `None` hides it: it is refused, nothing would be left of it, or the guest could not ask
    /// for what is left by this rule.
    fn strips(&self, name: &[u8]) -> Option<usize> {
        let rest = name.get(self.prefix.len()..).filter(|rest| !rest.is_empty() && self.errno == 0)?;
        let answers = self.prefix.is_empty() || self.guest.as_ref().is_none_or(|begin| rest.starts_with(begin));
        answers.then_some(self.prefix.len())
    }
}

/// Room for a name on its way to the host.
pub(crate) type NameBuffer = [u8; NAME_MAX + 1];
pub(crate) const NAME_BUFFER: NameBuffer = [0; NAME_MAX + 1];

/// The rules of a share.
pub(crate) struct NameMap {
    rules: Vec<NameRule>,
    /// What the guest's security.capability is called on the host, if that is something else.
    pub(crate) capability: Option<CString>,
}

impl NameMap {
    pub(crate) fn new(rules: Vec<NameRule>) -> NameMap {
        let map = NameMap { rules, capability: None };
        let mut buffer = NAME_BUFFER;
        let capability =
            map.to_host(CAPABILITY, &mut buffer).ok().filter(|&name| name != CAPABILITY).map(CStr::to_owned);
        NameMap { capability, ..map }
    }

    /// Whether no name changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What a guest's name is called on the host. EPERM for a name that no rule fits; ERANGE, as from the host, if it gets too long.
    pub(crate) fn to_host<'n>(&self, name: &'n CStr, buffer: &'n mut NameBuffer) -> Result<&'n CStr> {
        if self.rules.is_empty() {
            return Ok(name);
        }
        let fits = |rule: &&NameRule| rule.guest.as_ref().is_some_and(|begin| name.to_bytes().starts_with(begin));
        match self.rules.iter().find(fits) {
            None => Err(Error::Errno(libc::EPERM)),
            Some(rule) if rule.errno != 0 => Err(Error::Errno(rule.errno)),
            Some(rule) if rule.prefix.is_empty() => Ok(name),
            Some(rule) => {
                let (begin, name) = (rule.prefix.len(), name.to_bytes_with_nul());
                const TOO_LONG: Error = Error::Errno(libc::ERANGE);
                let whole = buffer.get_mut(..begin + name.len()).ok_or(TOO_LONG)?;
                let (front, back) = whole.split_at_mut(begin);
                front.copy_from_slice(&rule.prefix);
                back.copy_from_slice(name);
                CStr::from_bytes_with_nul(whole).map_err(|_| Error::Errno(libc::EINVAL))
            }
        }
    }

    /// How many bytes a name of the host loses to become the guest's; `None` if the guest is not to see it.
    pub(crate) fn strips(&self, name: &[u8]) -> Option<usize> {
        if self.rules.is_empty() {
            return Some(0);
        }
        let fits = |rule: &&NameRule| rule.host.as_ref().is_some_and(|begin| name.starts_with(begin));
        self.rules.iter().find(fits)?.strips(name)
    }
}

/// Keeps of a list of names, each closed by a NUL, those for which `strips` has an answer, without as many of their first bytes. In
/// place; answers the new length.
pub(crate) fn narrow(list: &mut [u8], strips: impl Fn(&[u8]) -> Option<usize>) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(rest) = list.get(from..).filter(|rest| !rest.is_empty()) {
        let length = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        let next = list.len().min(from + length + 1);
        if let Some(lost) = rest.get(..length).and_then(&strips) {
            let start = next.min(from + lost);
            list.copy_within(start..next, to);
            to += next - start;
        }
        from = next;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(guest: Option<&str>, host: Option<&str>, prefix: &str, errno: i32) -> NameRule {
        let bytes = |text: &str| text.as_bytes().to_vec();
        NameRule { guest: guest.map(bytes), host: host.map(bytes), prefix: bytes(prefix), errno }
    }

    /// `trusted.` below `user.virtiofs.`, which the guest may not touch itself; the rest as it is.
    fn moved() -> NameMap {
        NameMap::new(vec![
            rule(Some("trusted."), Some("user.virtiofs."), "user.virtiofs.", 0),
            rule(None, Some("trusted."), "", libc::EPERM),
            rule(Some("user.virtiofs."), None, "", libc::EPERM),
            rule(Some("system."), Some("system."), "", libc::EOPNOTSUPP),
            rule(Some(""), Some(""), "", 0),
        ])
    }

    fn there(map: &NameMap, name: &CStr) -> Result<CString> {
        let mut buffer = NAME_BUFFER;
        map.to_host(name, &mut buffer).map(CStr::to_owned)
    }

    fn back(map: &NameMap, list: &[u8]) -> Vec<u8> {
        let mut list = list.to_vec();
        let length = narrow(&mut list, |name| map.strips(name));
        list.truncate(length);
        list
    }

    #[test]
    fn the_first_rule_that_fits_holds() {
        let map = moved();
        assert_eq!(there(&map, c"trusted.x").unwrap().as_c_str(), c"user.virtiofs.trusted.x");
        assert_eq!(there(&map, c"user.x").unwrap().as_c_str(), c"user.x");
        assert_eq!(there(&map, c"user.virtiofs.trusted.x"), Err(Error::Errno(libc::EPERM)));
        assert_eq!(there(&map, c"system.x"), Err(Error::Errno(libc::EOPNOTSUPP)));
        let host = b"user.a\0user.virtiofs.trusted.x\0trusted.own\0system.x\0security.selinux\0";
        assert_eq!(back(&map, host), b"user.a\0trusted.x\0security.selinux\0");
        assert_eq!(back(&map, b""), b"");
        assert_eq!(map.capability, None);
    }

    #[test]
    fn what_the_guest_could_not_ask_for_is_hidden() {
        let map = moved();
        assert_eq!(back(&map, b"user.virtiofs.\0user.virtiofs.security.x\0user.virtiofs.trusted.\0"), b"trusted.\0");
    }

    #[test]
    fn a_name_that_no_rule_fits_is_refused_and_hidden() {
        let map = NameMap::new(vec![rule(Some("user."), Some("user."), "", 0)]);
        assert_eq!(there(&map, c"trusted.x"), Err(Error::Errno(libc::EPERM)));
        assert_eq!(back(&map, b"trusted.x\0user.x\0"), b"user.x\0");
    }

    #[test]
    fn names_are_as_long_as_the_host_takes_them() {
        let map = moved();
        let name = |length: usize| CString::new(format!("trusted.{}", "x".repeat(length - 8))).unwrap();
        assert_eq!(there(&map, &name(255 - 14)).unwrap().count_bytes(), 255);
        assert_eq!(there(&map, &name(255 - 13)), Err(Error::Errno(libc::ERANGE)));
    }

    #[test]
    fn without_rules_all_stays() {
        let map = NameMap::new(Vec::new());
        assert!(map.is_empty());
        assert_eq!(there(&map, c"trusted.x").unwrap().as_c_str(), c"trusted.x");
        assert_eq!(back(&map, b"a\0b\0"), b"a\0b\0");
        assert_eq!(map.capability, None);
    }

    #[test]
    fn it_is_known_where_capabilities_went() {
        let all = NameMap::new(vec![rule(Some(""), Some("user.v."), "user.v.", 0)]);
        assert_eq!(all.capability.as_deref(), Some(c"user.v.security.capability"));
        let refused = NameMap::new(vec![rule(Some(""), Some(""), "", libc::EPERM)]);
        assert_eq!(refused.capability, None);
    }
}
