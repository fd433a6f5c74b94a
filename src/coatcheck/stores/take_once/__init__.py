"""Who keeps items that may be taken once: an adapter for each kind of store behind :mod:`coatcheck.take_once.port`."""
