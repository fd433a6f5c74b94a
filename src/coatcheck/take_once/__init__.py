"""Items that exist on one store and are taken there once: the rule, the port, and a table in memory."""
