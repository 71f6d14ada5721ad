"""What a daemon delivers and what it costs, beside others: `virtiofs bench`.

The load comes from the embedded guest: real virtqueues over vhost-user, without a virtual machine whose cost would hide the
daemon's. Daemons take turns on the same files, so that a slow minute of the machine hits all of them; figures are medians over
the rounds. In code: a `Plan`, daemons (`known` finds them), and `measure`.
"""

from .daemons import Daemon, known
from .measure import Measurement, Plan, measure

__all__ = ["Daemon", "Measurement", "Plan", "known", "measure"]
