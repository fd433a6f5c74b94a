"""The ``coatcheck`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the ``farm`` extra, say how to get it."""
    try:
        from coatcheck.cli.commands import coatcheck
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("coatcheck"):
            raise
        print(f"coatcheck: {error.name} is missing; pip install 'coatcheck[farm]'", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        coatcheck(prog_name="coatcheck")
    except OSError as error:  # a full disk behind a redirected output, say
        print(f"coatcheck: {error}", file=sys.stderr)
        raise SystemExit(1) from None
