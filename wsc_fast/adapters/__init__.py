"""Who else than the hub's own server may have made a connection."""
