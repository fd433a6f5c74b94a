"""The session service: sessions over HTTP for servers in any language, and for proxies that ask it (forward-auth)."""
