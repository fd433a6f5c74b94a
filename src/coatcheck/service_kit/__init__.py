"""What our HTTP services share: the pool's and the session service (coatcheck.pool.service, coatcheck.service)."""
