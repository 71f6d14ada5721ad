//! The reply check of Linux 7.3 (`fs/fuse/virtio_fs.c`, `virtio_fs_verify_response`): who breaks a rule here gets EIO there.

use virtiofs_fuse::op::{Operation, ReplyForm};
use virtiofs_fuse::wire::OutHeader;

use crate::{Error, Result};

/// Bytes of a reply header.
pub(crate) const OUT_HEADER: usize = size_of::<OutHeader>();

/// What was asked, as far as the reply must fit to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expect {
    /// Opcode of the request.
    pub opcode: u32,
    /// Its number.
    pub unique: u64,
    /// Room given for the reply, header included, in bytes. 0: no reply is wanted.
    pub room: u32,
    /// The request asked how large the answer would be (GETXATTR, LISTXATTR with size 0).
    pub size_only: bool,
}

impl Expect {
    /// Checks the length that the device reported and the header that it wrote.
    ///
    /// # Errors
    /// [`Error::Protocol`] that names the rule that was broken. An errno in the reply is not an error here.
    pub fn verify(&self, used: u32, header: &OutHeader) -> Result<()> {
        if self.room == 0 {
            return self.rule(used == 0, || format!("used length {used} where no reply is wanted"));
        }
        self.rule(used as usize >= OUT_HEADER, || format!("used length {used} is shorter than a reply header"))?;
        self.rule(used <= self.room, || format!("used length {used} where there was room for {}", self.room))?;
        self.rule(header.len == used, || format!("used length {used}, but the header says {}", header.len))?;
        self.rule(header.unique == self.unique, || format!("unique {:#x} answers {:#x}", header.unique, self.unique))?;
        self.rule((-511..=0).contains(&header.error), || format!("error {} is not in -511..=0", header.error))?;
        if header.error != 0 {
            return self
                .rule(used as usize == OUT_HEADER, || format!("{used} bytes with error {}, not 16", header.error));
        }
        let body = used as usize - OUT_HEADER;
        match self.exact() {
            Some(want) => self.rule(body == want, || format!("{body} bytes behind the header, not {want}")),
            None => Ok(()),
        }
    }

    /// Bytes that a success reply has behind its header, if their number is fixed. An opcode that the protocol does not have
    /// has no success reply to speak of; whatever comes is let pass.
    fn exact(&self) -> Option<usize> {
        match Operation::by_number(self.opcode)?.reply {
            ReplyForm::Nothing => Some(0),
            ReplyForm::Exact(size) => Some(size),
            ReplyForm::SizeOr(size) => self.size_only.then_some(size),
            ReplyForm::UpTo => None,
        }
    }

    fn rule(&self, holds: bool, broken: impl FnOnce() -> String) -> Result<()> {
        if holds {
            return Ok(());
        }
        let name = Operation::by_number(self.opcode).map_or("?", |row| row.name);
        Err(Error::Protocol(format!("{name} ({}): {}", self.opcode, broken())))
    }
}

#[cfg(test)]
mod tests {
    use virtiofs_fuse::Opcode;

    use super::*;

    fn expect(opcode: Opcode, room: u32) -> Expect {
        Expect { opcode: opcode as u32, unique: 8, room, size_only: false }
    }

    fn broken(expect: Expect, used: u32, header: OutHeader) -> String {
        match expect.verify(used, &header) {
            Err(Error::Protocol(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_rule_of_the_kernel_is_kept() {
        let good = OutHeader { len: 120, error: 0, unique: 8 };
        let getattr = expect(Opcode::Getattr, 120);
        getattr.verify(120, &good).unwrap();
        getattr.verify(16, &OutHeader { len: 16, error: -2, unique: 8 }).unwrap();
        getattr.verify(16, &OutHeader { len: 16, error: -511, unique: 8 }).unwrap();

        assert!(broken(getattr, 0, good).contains("shorter than a reply header"));
        assert!(broken(getattr, 121, OutHeader { len: 121, ..good }).contains("room for 120"));
        assert!(broken(getattr, 120, OutHeader { len: 119, ..good }).contains("header says 119"));
        assert!(broken(getattr, 120, OutHeader { unique: 10, ..good }).contains("unique 0xa answers 0x8"));
        assert!(broken(getattr, 16, OutHeader { len: 16, error: -512, unique: 8 }).contains("-511..=0"));
        assert!(broken(getattr, 16, OutHeader { len: 16, error: 2, unique: 8 }).contains("-511..=0"));
        assert!(broken(getattr, 120, OutHeader { error: -2, ..good }).contains("not 16"));
        assert!(broken(getattr, 112, OutHeader { len: 112, ..good }).contains("96 bytes behind the header, not 104"));
        assert!(broken(getattr, 112, OutHeader { len: 112, ..good }).starts_with("GETATTR (3): "));
    }

    #[test]
    fn lengths_follow_the_table_of_operations() {
        let header = |len| OutHeader { len, error: 0, unique: 8 };
        expect(Opcode::Read, 4112).verify(100, &header(100)).unwrap();
        expect(Opcode::Getxattr, 272).verify(21, &header(21)).unwrap();
        let size_only = Expect { size_only: true, ..expect(Opcode::Getxattr, 24) };
        size_only.verify(24, &header(24)).unwrap();
        assert!(broken(size_only, 20, header(20)).contains("not 8"));
        expect(Opcode::Forget, 0).verify(0, &OutHeader::default()).unwrap();
        assert!(broken(expect(Opcode::Forget, 0), 16, header(16)).contains("no reply is wanted"));
        assert!(broken(expect(Opcode::Destroy, 16), 0, header(0)).contains("shorter"));
    }
}
