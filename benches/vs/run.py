"""`virtiofs bench` with the peers that the tests' virtual machines come with, if they were fetched (`make guests`).

python benches/vs/run.py [options of virtiofs bench]
"""

import os
import sys
from pathlib import Path

from virtiofs.cli import main

ROOT = Path(__file__).resolve().parents[2]
FETCHED = Path(os.environ.get("VIRTIOFS_VM_CACHE", ROOT / ".cache" / "vm")) / "bin"
PEERS = {"--rust": FETCHED / "virtiofsd", "--c": FETCHED / "virtiofsd-c"}

found = [word for option, path in PEERS.items() if path.exists() for word in (option, str(path))]
raise SystemExit(main(["bench", *found, *sys.argv[1:]]))
