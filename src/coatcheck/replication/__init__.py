"""Where the copies of a session are: rules and flows, pure."""
