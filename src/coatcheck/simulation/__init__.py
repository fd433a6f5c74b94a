"""A seeded world that runs the product's own flows under faults, and checks the protocol's invariants."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run ``coatcheck simulate`` with these arguments; 0 if nothing broke, 1 if something did, 2 on bad usage."""
    from coatcheck.simulation.command import main as run

    return run(argv)
