"""What the browser holds: keys, the sealed token and the chain of rotation, pure."""
