"""The local director: sends each request to the web server that hosts its session (mission B1).

What a client sees when a web server fails:

* **GET, HEAD, OPTIONS, PUT, DELETE, TRACE**: nothing. The request is sent to another server, up to ``max_tries`` times
  in all, as long as no byte of the response has left and its body (up to ``kept_body_bytes``) is still held. Responses
  of known length up to ``held_response_bytes`` leave in one piece, so that a server's death between head and body is
  covered too. A longer or chunked response that has begun breaks off, visibly.
* **POST, PATCH and others**: if not a byte was written to the server, the request moves to another one. Once sent, it
  may have been carried out, so it is never sent again: 502 when the connection ended, 504 when the server fell silent.
  A pooled connection is asked for its state right before such a request is written; a server that closes it in that
  very instant (microseconds) costs a 502.
* **No web server at all**: the request waits ``no_server_wait_s`` for one, then 503 with ``Retry-After``.

The connection to the client stays usable after these answers, unless the request's body had not come in full.
"""

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer

__all__ = ["DirectorOptions", "EmbeddedDirector", "WebServer"]
