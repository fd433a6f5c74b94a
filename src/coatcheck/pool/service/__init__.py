"""The pool as an HTTP service, for programs in other languages."""
