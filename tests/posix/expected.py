"""Where a share is known to differ from the directory behind it: each is a fault when it no longer differs.

Nearly all are limits of the guest's kernel or of the FUSE protocol, which no server can lift; the reason names the place.
"""

from .comparison import Difference

RANGES = "fuse_file_fallocate of Linux passes on KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE alone"
BLOCKS = "with writeback, Linux keeps st_blocks as it was before it wrote back, until the attributes expire"
ACLS = "with ownership=xattr there are none: the host would apply them to the daemon"
HOLES = "with writeback, fuse_lseek of Linux does not write back before it asks: so it is told to take all for data"

DIFFERENCES: tuple[Difference, ...] = (
    Difference("fallocate.collapse_range", RANGES),
    Difference("fallocate.insert_range", RANGES),
    Difference(
        "killpriv.sgid_without_group_execution.stranger",
        "WRITE does not name the caller's groups, so S_ISGID is cleared of executables only: FUSE_WRITE_KILL_SUIDGID, fuse.h",
    ),
    Difference("acl.*", ACLS, where="xattr"),
    Difference("fallocate.punch_hole_frees", BLOCKS, where="*-writeback"),
    Difference("truncate.frees_the_blocks", BLOCKS, where="*-writeback"),
    Difference("sparse.finds.*", HOLES, where="*-writeback"),
    Difference("sparse.no_more_data", HOLES, where="*-writeback"),
    Difference(
        "times.read_marks_atime",
        "what Linux reads from its own cache the host does not see; and with writeback a new mtime does not empty it",
        where="always-writeback",
    ),
)
