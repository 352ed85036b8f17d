"""How a hub lives in a process: its callbacks, its deadlines, threads, signals and limits."""
