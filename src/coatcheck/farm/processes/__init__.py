"""What runs in a process of the farm: the entry, a web server, a director, a session server."""
