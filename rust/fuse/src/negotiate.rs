//! INIT: what guest and server agree on.

use crate::wire::*;
use crate::{Error, Mappable, Result};

/// What a server is willing to agree on: numbers only, chosen by whoever configures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// INIT flags to accept where the guest offers them ([`init`]).
    pub want: u64,
    /// Largest READ and WRITE in bytes, 4096 at least. The guest's ring and its `fs.fuse.max_pages_limit` bound it as well.
    pub max_write: u32,
    /// Largest read-ahead in bytes; can only lower the guest's own.
    pub max_readahead: u32,
    /// Background requests (read-ahead, writeback, asynchronous direct I/O) that the guest may have in flight.
    pub max_background: u16,
    /// Background requests from which on the guest counts as congested.
    pub congestion_threshold: u16,
    /// Granularity of time stamps in nanoseconds.
    pub time_gran: u32,
    /// Seconds after which the guest gives up on a request, and on the mount with it; 0 = never.
    pub request_timeout: u16,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            want: init::ASYNC_READ
                | init::BIG_WRITES
                | init::PARALLEL_DIROPS
                | init::ASYNC_DIO
                | init::MAX_PAGES
                | init::INIT_EXT
                | init::SETXATTR_EXT
                | init::SUBMOUNTS
                | init::NO_EXPORT_SUPPORT
                | init::DO_READDIRPLUS
                | init::READDIRPLUS_AUTO
                | init::ATOMIC_O_TRUNC
                | init::HANDLE_KILLPRIV_V2
                | init::AUTO_INVAL_DATA
                | init::HAS_IOCTL_DIR
                | init::ABORT_ERROR
                | init::CREATE_SUPP_GROUP
                | init::DONT_MASK,
            max_write: 4 << 20,
            max_readahead: u32::MAX,
            max_background: 1024,
            congestion_threshold: 768,
            time_gran: 1,
            request_timeout: 0,
        }
    }
}

/// What holds for a session after INIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Minor version that both sides speak.
    pub minor: u32,
    /// INIT flags that both sides agreed on.
    pub flags: u64,
    /// Largest WRITE in bytes.
    pub max_write: u32,
    /// Largest read-ahead in bytes.
    pub max_readahead: u32,
    /// What the DAX window can do, if there is one and the guest uses it.
    pub mappable: Option<Mappable>,
}

impl Negotiated {
    /// Whether all bits of `flag` were agreed on.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag == flag
    }
}

impl Limits {
    /// The answer to an INIT, and what follows from it. EPROTO for a guest that is too old to be served.
    pub(crate) fn answer(&self, request: &InitIn, window: Option<Mappable>) -> Result<(Negotiated, InitOut)> {
        let ours = InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
        if request.major > KERNEL_VERSION {
            // The guest reads our version and asks again with it.
            return Ok((Negotiated::default(), ours));
        }
        if request.major < KERNEL_VERSION || request.minor < OLDEST_MINOR_VERSION {
            return Err(Error::Errno(libc::EPROTO));
        }
        let mut offered = u64::from(request.flags);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(request.flags2) << 32;
        }
        let mut flags = offered & self.want;
        if flags & init::INIT_EXT == 0 {
            flags &= u64::from(u32::MAX);
        }
        // An ACL is worth nothing to a server that cannot see the umask, or that may not clear sgid along with it.
        if flags & (init::DONT_MASK | init::SETXATTR_EXT) != init::DONT_MASK | init::SETXATTR_EXT {
            flags &= !init::POSIX_ACL;
        }
        if flags & init::NO_OPEN_SUPPORT != 0 {
            // Nobody hears of an open then: of its O_TRUNC, nor of the close that ends its locks.
            flags &= !(init::ATOMIC_O_TRUNC | init::POSIX_LOCKS | init::FLOCK_LOCKS);
        }
        let mappable = window.filter(|_| flags & init::MAP_ALIGNMENT != 0);
        if mappable.is_none() {
            flags &= !(init::MAP_ALIGNMENT | init::HAS_INODE_DAX);
        }
        // Linux invalidates what it has cached of a file whose attributes have changed, also what it has mapped, which has no copy and must
        // not go (`fuse_change_attributes`, `fs/fuse/inode.c`; a warning of `dax_disassociate_entry`).
        let unwanted = if mappable.is_some() && flags & init::EXPLICIT_INVAL_DATA != 0 {
            init::AUTO_INVAL_DATA
        } else {
            init::EXPLICIT_INVAL_DATA
        };
        flags &= !unwanted;
        let max_write = self.max_write.max(4096);
        let agreed = Negotiated {
            minor: request.minor.min(KERNEL_MINOR_VERSION),
            flags,
            max_write: if flags & init::MAX_PAGES != 0 { max_write } else { max_write.min(32 * 4096) },
            max_readahead: request.max_readahead.min(self.max_readahead),
            mappable,
        };
        let out = InitOut {
            max_readahead: agreed.max_readahead,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            max_background: self.max_background,
            congestion_threshold: self.congestion_threshold,
            max_write: agreed.max_write,
            time_gran: self.time_gran,
            max_pages: u16::try_from(agreed.max_write.div_ceil(4096)).unwrap_or(u16::MAX),
            map_alignment: mappable.map_or(0, |mappable| mappable.alignment),
            request_timeout: if flags & init::REQUEST_TIMEOUT != 0 { self.request_timeout } else { 0 },
            ..ours
        };
        Ok((agreed, out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(minor: u32, flags: u64) -> InitIn {
        InitIn {
            major: 7,
            minor,
            max_readahead: 131_072,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..InitIn::default()
        }
    }

    #[test]
    fn only_what_both_sides_want_is_agreed_on() {
        let limits = Limits::default();
        let (agreed, out) = limits.answer(&asking(46, u64::MAX), None).unwrap();
        assert_eq!(agreed.flags, limits.want);
        assert_eq!((out.major, out.minor, out.max_write, out.max_pages), (7, 46, 4 << 20, 1024));
        assert_eq!(out.flags2, (limits.want >> 32) as u32);
        let (agreed, out) = limits.answer(&asking(31, 0), None).unwrap();
        assert_eq!((agreed.flags, agreed.max_write, out.flags2), (0, 128 << 10, 0));
        assert_eq!(agreed.minor, 31);
    }

    #[test]
    fn the_upper_flags_need_init_ext_on_both_sides() {
        let limits = Limits { want: u64::MAX, ..Limits::default() };
        let (agreed, _) = limits.answer(&asking(46, !init::INIT_EXT), None).unwrap();
        assert_eq!(agreed.flags >> 32, 0);
        let limits = Limits { want: !init::INIT_EXT, ..limits };
        let (agreed, _) = limits.answer(&asking(46, u64::MAX), None).unwrap();
        assert_eq!(agreed.flags >> 32, 0);
    }

    #[test]
    fn acls_fall_without_the_umask() {
        let limits = Limits { want: u64::MAX, ..Limits::default() };
        let (agreed, _) = limits.answer(&asking(46, !init::DONT_MASK), None).unwrap();
        assert!(!agreed.has(init::POSIX_ACL));
    }

    #[test]
    fn what_needs_an_open_falls_with_it() {
        let limits = Limits { want: u64::MAX, ..Limits::default() };
        let opens = init::ATOMIC_O_TRUNC | init::POSIX_LOCKS | init::FLOCK_LOCKS;
        let (agreed, out) = limits.answer(&asking(46, u64::MAX), None).unwrap();
        assert!(agreed.has(init::NO_OPEN_SUPPORT) && agreed.flags & opens == 0 && u64::from(out.flags) & opens == 0);
        let (agreed, _) = limits.answer(&asking(46, !init::NO_OPEN_SUPPORT), None).unwrap();
        assert!(agreed.has(opens));
    }

    #[test]
    fn other_versions_are_told_ours_or_refused() {
        let limits = Limits::default();
        let newer = InitIn { major: 8, ..asking(0, 0) };
        assert_eq!(limits.answer(&newer, None).unwrap().1.major, 7);
        assert_eq!(limits.answer(&asking(26, 0), None), Err(Error::Errno(libc::EPROTO)));
        assert_eq!(limits.answer(&InitIn { major: 6, ..asking(46, 0) }, None), Err(Error::Errno(libc::EPROTO)));
    }
}
