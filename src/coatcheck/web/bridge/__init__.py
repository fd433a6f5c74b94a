"""WSGI apps on an event loop: each request of theirs runs in a thread, and everything around it stays ASGI."""
