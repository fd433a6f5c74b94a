"""What an operator asks of a running farm: status, drain, restart, reload, new keys."""
