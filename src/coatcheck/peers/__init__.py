"""Who is at the other end of a connection inside the farm: kernel credentials, and proofs of the farm's credential."""
