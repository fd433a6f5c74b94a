"""What a farm may be told: the settings, where they are read from, and what follows from them."""
