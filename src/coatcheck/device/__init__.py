"""Sessions bound to a browser's key (W3C Device Bound Session Credentials): keys, proofs, challenges, headers. Pure."""
