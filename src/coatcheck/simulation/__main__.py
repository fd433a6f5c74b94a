"""``python -m coatcheck.simulation``."""

from __future__ import annotations

import sys

from coatcheck.simulation import main

raise SystemExit(main(sys.argv[1:]))
