"""Prints the requirements of an extra of this project, for pip: tools/requirements.py EXTRA."""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    extras: dict[str, list[str]] = tomllib.load(file)["project"]["optional-dependencies"]
wanted = [sys.argv[1]]
for extra in wanted:
    for requirement in extras[extra]:
        if requirement.startswith("virtiofs["):
            wanted += requirement.removeprefix("virtiofs[").removesuffix("]").split(",")
        else:
            print(requirement)
