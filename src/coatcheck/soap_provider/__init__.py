"""A test kit: a SOAP web service with sessions, to prove clients on (mission D8). Nothing else of coatcheck needs it.

Session types None, Stateless, Stateful and ServerDetermine in SOAP headers; encrypted session tokens that are
renewed with every response; a WSDL; and it can be told to misbehave. Needs the ``soap`` extra (lxml, Starlette).

```python
from coatcheck.soap_provider import ProviderOptions, soap_app

app = soap_app(ProviderOptions(users={"SADMIN": "secret"}))  # any ASGI server runs it
```
"""

from __future__ import annotations

from coatcheck.pool.soap.faults import LOG_IN_REASONS, FaultReason, SoapFault
from coatcheck.pool.soap.session_headers import SESSION_NS
from coatcheck.soap_provider.app import SOAP_PATH, soap_app
from coatcheck.soap_provider.messages import SERVICE_NS
from coatcheck.soap_provider.misbehaviour import Misbehaviour
from coatcheck.soap_provider.options import ProviderOptions
from coatcheck.soap_provider.session_types import SessionType

__all__ = [
    "LOG_IN_REASONS",
    "SERVICE_NS",
    "SESSION_NS",
    "SOAP_PATH",
    "FaultReason",
    "Misbehaviour",
    "ProviderOptions",
    "SessionType",
    "SoapFault",
    "soap_app",
]
