"""Benchmarks: paired, against named peers, one command (``python -m benchmarks``)."""
