"""What a farm keeps on the disk: its run directory, the directory of its sockets, and its keys."""
