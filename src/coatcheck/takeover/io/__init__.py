"""Sockets that report to the rules and do what they ask."""
