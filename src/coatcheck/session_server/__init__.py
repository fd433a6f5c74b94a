"""Our session server: keeps entries in memory, and answers web servers over RESP. Its clients are in ``stores``."""
