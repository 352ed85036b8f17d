"""Programs that run longer than a test: attacks, the Autobahn cases, fuzzers, soak and torture.

Each folder has a program `run`, started from the root of the tree as `python -m trials.soak.run`,
or as `python trials/soak/run.py` in an environment into which `make` has installed the tree.
"""
