"""The director's sockets, timers and logs: they report events to its rules and carry out what those ask for."""
