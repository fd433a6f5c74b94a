"""Which processes a farm has, what each is told, and where each listens."""
