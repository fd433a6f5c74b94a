"""A session goes from one site of a farm to another (protocol section 12), pure."""
