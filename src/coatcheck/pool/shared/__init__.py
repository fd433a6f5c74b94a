"""Shared tokens: one token, many users at once, renewed ahead of its end by one login among all processes."""
