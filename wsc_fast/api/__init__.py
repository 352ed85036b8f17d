"""The HTTP API of a hub: other programs publish, read and disconnect by requests with JSON."""
