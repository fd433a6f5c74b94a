"""What a farm counts, for Prometheus: the same counts as ``coatcheck status`` has, under stable names."""
