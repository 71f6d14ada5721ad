"""Named POSIX checks over a mount point: ``python -m tests.posix DIR``; README.md says how they are used and written."""
