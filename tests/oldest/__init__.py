"""``make oldest``: the adapters' tests with the oldest version of each framework that its extra allows."""
