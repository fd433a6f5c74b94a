"""The letter of A2 to A4: a new token with each response, and no grace for the one that it replaced."""

from __future__ import annotations

STRICT = ("--rotate-after", "0", "--grace", "0", "--theft", "refuse")
