"""Web servers and session servers without their shells: the product's flows, messages, and fast histories."""
