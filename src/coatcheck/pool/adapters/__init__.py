"""Leased tokens for client libraries, a module for each, imported only by who uses that library:

``httpx``, ``httpx2`` (``PoolAuth``, ``PoolTransport``, and ``Async...`` of both), ``requests`` (``PoolAdapter``),
``aiohttp`` (``PoolMiddleware``), ``zeep`` (``SessionPlugin``, ``ZeepSessions``, ``AsyncZeepSessions``); and
``placing``: where tokens stand in requests and responses.
"""
