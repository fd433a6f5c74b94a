"""Importing the app in a process of its own, to see whether it can be imported.

``python -m coatcheck.farm.processes.try_app APP INTERFACE [--factory]``: exit code 0 if it can; else one line on stderr
and 1.
"""

from __future__ import annotations

import sys

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.processes.application import load_application
from coatcheck.farm.settings.farm_settings import Interface


def main(arguments: list[str]) -> int:
    try:
        load_application(arguments[0], "--factory" in arguments[2:], msgspec.convert(arguments[1], Interface))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
