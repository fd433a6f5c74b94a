"""What a session is, and what its request and response do to it: rules and flows, pure."""
