"""What the director decides, as pure rules: no socket, clock, thread or randomness (held by the import walls)."""
