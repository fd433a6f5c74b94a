"""Logout signals: identity providers end sessions here, and others are told when sessions end here."""
