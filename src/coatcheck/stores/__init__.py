"""Who keeps the copies, as a web server sees it: the port, and a client of each kind of session server."""
