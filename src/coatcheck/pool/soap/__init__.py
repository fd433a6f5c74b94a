"""SOAP 1.1 and 1.2 as the pool speaks them: envelopes from hostile bytes, session headers, and the gateway."""
