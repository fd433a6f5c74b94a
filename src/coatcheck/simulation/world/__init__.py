"""A world in one thread: machines with event loops and sockets of asyncio's own kind, on virtual time and a faked wire.

Knows nothing of sessions. What runs in it takes its time, its randomness and its sockets from the standard library, as
anywhere else; while the world runs, the standard library has those of the world (:mod:`.takeover`).
"""
