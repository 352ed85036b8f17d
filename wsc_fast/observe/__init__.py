"""The parts that watch a hub: metrics, traces, statistics of single clients."""
