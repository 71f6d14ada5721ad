//! What a guest knows of nodes, and when it stops to believe it.

use super::*;

fn entry(nodeid: u64, valid: u64) -> EntryOut {
    EntryOut { nodeid, entry_valid: valid, ..EntryOut::default() }
}

#[test]
fn counts_go_back_when_the_last_name_and_the_last_user_are_gone() {
    let mut nodes = Nodes::new(100, None);
    nodes.entered(1, b"a", &entry(7, 60), Noted::default());
    nodes.entered(1, b"a", &entry(7, 60), Noted::default());
    nodes.entered(1, b"hard link", &entry(7, 60), Noted::default());
    assert_eq!(nodes.cached(1, b"a"), Some(Leads::To(7, 0)));
    for _ in 0..4 {
        assert_eq!(nodes.unpin(7), None, "names are left");
    }
    assert_eq!(nodes.forget_name(1, b"a"), []);
    assert_eq!(nodes.forget_name(1, b"hard link"), [(7, 3)]);
    assert_eq!(nodes.len(), 0);
}

#[test]
fn a_node_in_use_outlives_its_name() {
    let mut nodes = Nodes::new(100, None);
    nodes.entered(1, b"a", &entry(7, 60), Noted::default());
    assert_eq!(nodes.clear(), []);
    assert_eq!(nodes.unpin(7), Some((7, 1)));
}

#[test]
fn names_expire_move_and_are_replaced() {
    let mut nodes = Nodes::new(2, None);
    nodes.entered(1, b"a", &entry(7, 0), Noted::default());
    assert_eq!(nodes.cached(1, b"a"), None);
    nodes.unpin(7);
    nodes.entered(1, b"b", &entry(8, u64::MAX / 4), Noted::default());
    nodes.unpin(8);
    assert_eq!(nodes.renamed(1, b"b", 1, b"a"), [(7, 1)]);
    assert_eq!(nodes.cached(1, b"a"), Some(Leads::To(8, 0)));
    nodes.unpin(8);
    nodes.entered(1, b"c", &entry(9, 60), Noted::default());
    nodes.unpin(9);
    let mut gone = nodes.entered(1, b"d", &entry(10, 60), Noted::default());
    gone.sort_unstable();
    assert_eq!(gone, [(8, 1), (9, 1)], "the limit was reached");
}

#[test]
fn with_a_table_all_holds_as_long_as_the_counters_stand() {
    let table = virtiofs_coherence::Table::anonymous(64).unwrap();
    let view = Arc::new(View::new(table.fd()).unwrap());
    let mut nodes = Nodes::new(100, Some(view));
    let attr = |size| Attr { size, mode: libc::S_IFREG, ..Attr::default() };
    let out = |attr| AttrOut { attr, ..AttrOut::default() };
    let noted = nodes.note(1);
    nodes.entered(1, b"d", &EntryOut { attr: Attr { mode: libc::S_IFDIR, ..Attr::default() }, ..entry(66, 0) }, noted);
    let noted = nodes.note(66);
    nodes.entered(66, b"f", &EntryOut { attr: attr(0), ..entry(67, 0) }, noted);
    assert!(nodes.walk(b"/d/f", true).is_none(), "nobody told the attributes");
    nodes.told(67, &out(attr(9)), nodes.note(67));
    assert_eq!(nodes.walk(b"/d//./f", true).unwrap().unwrap().size, 9);
    nodes.absent(66, b"none", None, nodes.note(66));
    assert!(matches!(nodes.walk(b"d/none", true), Some(Err(Error::Errno(libc::ENOENT)))));
    assert!(nodes.walk(b"d/f/x", true).is_none() && nodes.walk(b"d/../d/f", true).is_none());
    table.bump(67 % 64);
    assert_eq!((nodes.attributes(67), nodes.cached(66, b"f")), (None, Some(Leads::To(67, libc::S_IFREG))));
    nodes.told(67, &out(attr(10)), nodes.note(67));
    table.bump(66 % 64);
    assert!(nodes.walk(b"d/none", true).is_none() && nodes.walk(b"d/f", true).is_none());
    assert_eq!(nodes.attributes(67).unwrap().size, 10);
    assert!(matches!(nodes.cached(1, b"d"), Some(Leads::To(66, _))));
    nodes.told(1, &out(attr(3)), nodes.note(1));
    assert_eq!(nodes.walk(b"/", true).unwrap().unwrap().size, 3);
    table.bump_all();
    assert!(nodes.walk(b"", true).is_none() && nodes.cached(1, b"d").is_none());
}

#[test]
fn with_a_table_a_name_that_moves_is_asked_for_anew() {
    let table = virtiofs_coherence::Table::anonymous(64).unwrap();
    let mut nodes = Nodes::new(100, Some(Arc::new(View::new(table.fd()).unwrap())));
    for (name, noted) in [(b"file", nodes.note(66)), (b"gone", nodes.note(66))] {
        assert_eq!(nodes.entered(66, name, &entry(67, 0), noted), []);
        assert_eq!(nodes.unpin(67), None);
    }
    nodes.absent(66, b"gone", None, nodes.note(66));
    // Nothing was changed yet, so the counters of both directories are equal.
    assert_eq!(nodes.note(66), nodes.note(68));
    assert_eq!(nodes.renamed(66, b"file", 68, b"a"), [(67, 2)]);
    assert_eq!(nodes.renamed(66, b"gone", 68, b"b"), []);
    assert_eq!((nodes.cached(68, b"a"), nodes.cached(68, b"b")), (None, None));
    assert_eq!((nodes.len(), nodes.names), (0, 0));
}

#[test]
fn with_notifications_all_holds_until_it_is_told_to_be_old() {
    let mut nodes = Nodes::new(100, None);
    let changes = Arc::new(AtomicU64::new(0));
    nodes.listen(Arc::clone(&changes));
    let told = |size| AttrOut {
        attr_valid: 60,
        attr: Attr { size, mode: libc::S_IFREG, ..Attr::default() },
        ..AttrOut::default()
    };
    nodes.entered(1, b"a", &entry(7, 60), nodes.note(1));
    nodes.told(7, &told(3), nodes.note(7));
    nodes.absent(1, b"none", Some(&entry(0, 60)), nodes.note(1));
    nodes.absent(1, b"forbidden to say", None, nodes.note(1));
    assert_eq!(nodes.walk(b"a", true).unwrap().unwrap().size, 3);
    assert!(matches!(nodes.walk(b"none", true), Some(Err(Error::Errno(libc::ENOENT)))));
    assert!(nodes.walk(b"forbidden to say", true).is_none());
    // Another node's news, but an answer is on its way.
    let noted = nodes.note(7);
    assert_eq!(nodes.heard(&Notice::Inode { node: 9, offset: 0, len: 0 }), []);
    assert_eq!(nodes.attributes(7).unwrap().size, 3);
    nodes.told(7, &told(4), noted);
    assert!(nodes.attributes(7).is_none());
    nodes.told(7, &told(5), nodes.note(7));
    assert_eq!(nodes.attributes(7).unwrap().size, 5);
    changes.fetch_add(1, Ordering::Release);
    assert!(nodes.attributes(7).is_none(), "this guest itself changed something");
    nodes.told(7, &told(6), nodes.note(7));
    nodes.heard(&Notice::Inode { node: 7, offset: -1, len: 0 });
    assert!(nodes.attributes(7).is_none());
    nodes.heard(&Notice::Entry { parent: 1, name: b"none".to_vec() });
    assert_eq!((nodes.leads(1, b"none"), nodes.leads(1, b"a")), (None, Some(Leads::To(7, 0))));
    nodes.heard(&Notice::Epoch);
    assert_eq!(nodes.leads(1, b"a"), None);
    nodes.unpin(7);
    assert_eq!(nodes.heard(&Notice::Delete { parent: 1, child: 7, name: b"a".to_vec() }), [(7, 1)]);
}
