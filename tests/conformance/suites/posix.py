"""Our own checks, tests/posix, beside the suites of others."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

from tests.posix.runner import Result

from . import Boot


class Posix:
    """The checks; the guest has this checkout as ``/suites/checkout``."""

    name = "posix"
    folder = "checkout"

    def run(self, boot: Boot, done: Collection[str]) -> Iterator[Result]:
        # All at once: it takes a minute.
        with boot() as ground:
            ground.guest.run(
                "cd /suites/checkout\npython3 -B -m tests.posix --quiet --json /tmp/posix.json /mnt/test", timeout=1800
            )
            answer = json.loads(ground.guest.check("cat /tmp/posix.json"))
            yield from (Result(**result) for result in answer["results"] if result["name"] not in done)
            yield from ground.health()
