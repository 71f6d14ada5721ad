"""Where a share is known to differ from the directory behind it: each is a fault when it no longer differs.

Nearly all are limits of the guest's kernel or of the FUSE protocol, which no server can lift; the reason names the place.
"""

from .comparison import Difference

RANGES = "fuse_file_fallocate of Linux passes on KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE alone"
UNTOLD = "FALLOCATE and COPY_FILE_RANGE do not say whether the caller has CAP_FSETID"
BLOCKS = "with writeback, Linux keeps st_blocks as it was before it wrote back, until the attributes expire"

DIFFERENCES: tuple[Difference, ...] = (
    Difference("fallocate.collapse_range", RANGES),
    Difference("fallocate.insert_range", RANGES),
    Difference("killpriv.by_another_user.copy_file_range", UNTOLD),
    Difference("killpriv.by_another_user.fallocate", UNTOLD),
    Difference("killpriv.by_another_user.punch_hole", UNTOLD),
    Difference("killpriv.by_the_owner.copy_file_range", UNTOLD),
    Difference("killpriv.by_the_owner.fallocate", UNTOLD),
    Difference("killpriv.by_the_owner.punch_hole", UNTOLD),
    Difference(
        "killpriv.sgid_without_group_execution.stranger",
        "WRITE does not name the caller's groups, so S_ISGID is cleared of executables only: FUSE_WRITE_KILL_SUIDGID, fuse.h",
    ),
    Difference("fallocate.punch_hole_frees", BLOCKS, where="*-writeback"),
    Difference("truncate.frees_the_blocks", BLOCKS, where="*-writeback"),
    Difference("sparse.the_end_is_a_hole", "fuse_lseek of Linux does not write back first", where="*-writeback"),
    Difference("sparse.unsynced_data_is_data", "fuse_lseek of Linux does not write back first", where="*-writeback"),
)
