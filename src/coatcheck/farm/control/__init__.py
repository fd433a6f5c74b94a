"""How the supervisor, its processes and the command line talk: lines of JSON over sockets."""
