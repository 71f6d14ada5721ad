"""Use a share without a virtual machine: the embedded guest is a driver in this process."""

import tempfile
from pathlib import Path

from virtiofs import NONE, Passthrough
from virtiofs.testing import Guest


def main() -> None:
    """Writes on one side and reads on the other."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "from-host").write_text("hello, guest")

        with Guest(Passthrough(directory, NONE)) as guest:
            print("guest reads:", guest.read_file("from-host").decode())
            guest.mkdir("notes")
            guest.write_file("notes/from-guest", b"hello, host")
            guest.symlink("from-guest", "notes/link")
            for path, attr in guest.walk():
                print(f"  {attr.permissions:04o} {attr.size:>6}  {path}")

        print("host reads:", (directory / "notes" / "link").read_text())


if __name__ == "__main__":
    main()
