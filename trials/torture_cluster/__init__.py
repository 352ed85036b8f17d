"""Several hubs on one bus, of which everything is killed, frozen and cut off: see run.py."""
