"""Share a directory with virtual machines until Ctrl-C, by ``python share.py DIRECTORY SOCKET``."""

import logging
import sys

from virtiofs import AUTO, Passthrough, Server


def main() -> None:
    """Serves the directory and says how a guest gets at it."""
    directory, socket = sys.argv[1:3]
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    fs = Passthrough(directory, AUTO.replace(attr_timeout=5, entry_timeout=5), read_only=True)
    with Server(fs, socket=socket, tag="shared") as server:
        print(server.qemu_line(), flush=True)
        server.run()
    print(f"{sum(server.stats().requests.values())} requests served")


if __name__ == "__main__":
    main()
