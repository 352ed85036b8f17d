"""From bind to an accepted socket: what a hub listens with, and who may connect."""
