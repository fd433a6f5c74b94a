"""Many processes as one farm."""
