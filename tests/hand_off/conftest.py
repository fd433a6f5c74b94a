"""The store that the farms share."""

from tls.conftest import redis_url

__all__ = ["redis_url"]
