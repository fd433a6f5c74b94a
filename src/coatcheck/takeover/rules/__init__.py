"""What is known of a live TLS connection, and who goes on with it: pure, run by asyncio and by the simulation alike."""
