//! What a request that creates something says beside name and mode: PROTOCOL extensions at the tail of the message.

use std::ffi::CStr;

use zerocopy::FromBytes;

use crate::Malformed;
use crate::wire::{ExtHeader, Secctx, SecctxHeader, bits};

/// The circumstances of a creation, decoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Creation<'a> {
    /// The caller's umask. It applies unless the parent directory has a default ACL; 0 if the guest applied it already (no
    /// `DONT_MASK`).
    pub umask: u32,
    /// The group of the parent when the caller is a member of it (`CREATE_SUPP_GROUP`): without it a creation in a
    /// setgid directory would lose S_ISGID.
    pub supplementary_group: Option<u32>,
    /// A security label that the new inode must have from the start (`SECURITY_CTX`): name of the attribute, value.
    pub security: Option<(&'a CStr, &'a [u8])>,
}

impl<'a> Creation<'a> {
    /// Decodes the records in `extensions` (the last `total_extlen` × 8 bytes of the message).
    ///
    /// Each record starts with its own size, header included, and is padded to 8 bytes; types 0..=31 are a count of security
    /// contexts, 32 is a list of groups, others are skipped (`fs/fuse/dir.c`, `get_create_ext`).
    pub(crate) fn parse(umask: u32, mut extensions: &'a [u8]) -> Result<Creation<'a>, Malformed> {
        let mut new = Creation { umask, ..Creation::default() };
        while !extensions.is_empty() {
            let (header, _) = ExtHeader::read_from_prefix(extensions).map_err(|_| Malformed)?;
            let size = usize::try_from(header.size).map_err(|_| Malformed)?;
            let body = extensions.get(size_of::<ExtHeader>()..size).ok_or(Malformed)?;
            match header.kind {
                0 => {}
                1..bits::EXT_GROUPS => new.security = Some(first_context(body)?),
                bits::EXT_GROUPS => new.supplementary_group = only_group(body)?,
                _ => {}
            }
            extensions = extensions.get(size.next_multiple_of(8)..).unwrap_or(&[]);
        }
        Ok(new)
    }
}

// The record's header is at the same time the `SecctxHeader`; behind it: `Secctx`, the attribute's name, NUL, the value. A
// file system takes one label; Linux sends one.
const _: () = assert!(size_of::<SecctxHeader>() == size_of::<ExtHeader>());

fn first_context(body: &[u8]) -> Result<(&CStr, &[u8]), Malformed> {
    let (context, rest) = Secctx::read_from_prefix(body).map_err(|_| Malformed)?;
    let name = CStr::from_bytes_until_nul(rest).map_err(|_| Malformed)?;
    let value = rest.get(name.to_bytes_with_nul().len()..).ok_or(Malformed)?;
    let value = value.get(..usize::try_from(context.size).map_err(|_| Malformed)?).ok_or(Malformed)?;
    Ok((name, value))
}

fn only_group(body: &[u8]) -> Result<Option<u32>, Malformed> {
    let (count, rest) = u32::read_from_prefix(body).map_err(|_| Malformed)?;
    match count {
        0 => Ok(None),
        1 => Ok(Some(u32::read_from_prefix(rest).map_err(|_| Malformed)?.0)),
        // The kernel sends one; who sends more wants rights that one creation does not need.
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((8 + body.len()) as u32).to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn labels_and_groups_are_found_and_unknown_records_are_skipped() {
        let mut label = 5u32.to_le_bytes().to_vec();
        label.extend([0; 4]);
        label.extend(b"security.selinux\0u:o:r");
        let mut bytes = record(1, &label);
        bytes.extend(record(77, b"whatever"));
        bytes.extend(record(bits::EXT_GROUPS, &[1u32.to_le_bytes(), 4711u32.to_le_bytes()].concat()));
        let new = Creation::parse(0o22, &bytes).unwrap();
        assert_eq!(new.umask, 0o22);
        assert_eq!(new.supplementary_group, Some(4711));
        assert_eq!(new.security, Some((c"security.selinux", &b"u:o:r"[..])));
    }

    #[test]
    fn a_header_without_contexts_is_what_a_guest_without_labels_sends() {
        let bytes = record(0, &[]);
        let new = Creation::parse(0, &bytes).unwrap();
        assert!(new.security.is_none() && new.supplementary_group.is_none());
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        for size in [0u32, 7, 9, 17, 4096, u32::MAX] {
            let mut bytes = record(bits::EXT_GROUPS, &[1u32.to_le_bytes(), 1u32.to_le_bytes()].concat());
            bytes[..4].copy_from_slice(&size.to_le_bytes());
            assert!(Creation::parse(0, &bytes).is_err(), "size {size}");
        }
        assert!(Creation::parse(0, &[1, 2, 3]).is_err());
        assert!(Creation::parse(0, &record(bits::EXT_GROUPS, &7u32.to_le_bytes())).is_err());
        assert!(Creation::parse(0, &record(1, b"\xff\xff\0\0\0\0\0\0security.selinux\0x")).is_err());
    }
}
