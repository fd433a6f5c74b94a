"""The local director: sends each request to the web server that hosts its session (mission B1).

What a client sees when a web server fails stands in docs/operations.md, by method and by kind of failure. It is
decided in ``delivery.py``; which server is fit, in ``routing.py``. Silence is not death: what was sent goes to another
server only when the first one's process or connection is dead: an idempotent request twice at most, others once.

The connection to the client stays usable after these answers, unless the request's body had not come in full.
"""
