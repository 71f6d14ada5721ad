//! The names in a request.

use std::ffi::CStr;

use crate::wire::NAME_MAX;
use crate::{Error, Result};

const EINVAL: Error = Error::Errno(libc::EINVAL);

/// The names behind the arguments of a request, each closed by a NUL.
pub(crate) struct Names<'a>(&'a [u8]);

impl<'a> Names<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Names<'a> {
        Names(bytes)
    }

    /// The next string, whatever it holds.
    pub(crate) fn string(&mut self) -> Result<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| EINVAL)?;
        self.0 = self.0.get(string.to_bytes_with_nul().len()..).unwrap_or(&[]);
        Ok(string)
    }

    /// The next string, as the name of a directory entry: what a host system call must never take for a path is refused here,
    /// for all operations at once.
    pub(crate) fn entry(&mut self) -> Result<&'a CStr> {
        let name = self.string()?;
        match name.to_bytes() {
            [] | b"." | b".." => Err(EINVAL),
            bytes if bytes.contains(&b'/') => Err(EINVAL),
            bytes if bytes.len() > NAME_MAX => Err(Error::Errno(libc::ENAMETOOLONG)),
            _ => Ok(name),
        }
    }

    /// The next string, as the name of an extended attribute: 1..=255 bytes (xattr(7)).
    pub(crate) fn xattr(&mut self) -> Result<&'a CStr> {
        let name = self.string()?;
        match name.count_bytes() {
            1..=NAME_MAX => Ok(name),
            _ => Err(Error::Errno(libc::ERANGE)),
        }
    }

    /// Nothing may stand behind the last name.
    pub(crate) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(EINVAL) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        let refused: [&[u8]; 7] = [b"\0", b".\0", b"..\0", b"/\0", b"a/b\0", b"no end", b""];
        for name in refused {
            assert_eq!(Names::new(name).entry(), Err(EINVAL), "{name:?}");
        }
        let mut long = vec![b'x'; 256];
        long.push(0);
        assert_eq!(Names::new(&long).entry(), Err(Error::Errno(libc::ENAMETOOLONG)));
        assert_eq!(Names::new(&long[1..]).entry().unwrap().count_bytes(), 255);
        assert_eq!(Names::new(b"\xff\xfe\0").entry().unwrap().to_bytes(), b"\xff\xfe");
    }

    #[test]
    fn names_come_one_after_the_other_and_nothing_after_the_last() {
        let mut names = Names::new(b"old\0new\0");
        assert_eq!(names.entry().unwrap(), c"old");
        assert_eq!(names.entry().unwrap(), c"new");
        assert!(names.end().is_ok());
        let mut names = Names::new(b"old\0new\0");
        names.entry().unwrap();
        assert_eq!(names.end(), Err(EINVAL));
    }
}
