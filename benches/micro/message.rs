//! What goes into messages.

use virtiofs_fuse::Opcode;
use virtiofs_fuse::wire::InHeader;
use zerocopy::IntoBytes;

/// A FUSE request: the header for `opcode`, and its arguments.
pub fn request(opcode: Opcode, arguments: &[u8]) -> Vec<u8> {
    let len = 40 + arguments.len() as u32;
    let header = InHeader { len, opcode: opcode as u32, unique: 2, nodeid: 1, ..InHeader::default() };
    [header.as_bytes(), arguments].concat()
}
