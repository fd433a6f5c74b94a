"""What runs the flows against the world."""
