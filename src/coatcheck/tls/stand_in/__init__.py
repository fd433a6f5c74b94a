"""An ``SSLContext`` over the system's OpenSSL, for Pythons that have their own built in, out of reach.

Such a context is a real :class:`ssl.SSLContext`, and its connections are the standard library's ``SSLObject`` and
``SSLSocket``; only what these call in the C module ``_ssl`` is ours, and asks the system's libssl through ``ctypes``.
:func:`stand_in_context` makes one, where it was proved that it works.
"""

from __future__ import annotations

from coatcheck.tls.stand_in.context import StandInContext
from coatcheck.tls.stand_in.proof import stand_in_context

__all__ = ["StandInContext", "stand_in_context"]
