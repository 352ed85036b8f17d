"""The end-to-end benchmarks: run.py is their command line.

machine    the cores, the C programs, a server on one core and the load on another
servers    who is measured
scenarios  what is measured: rows of cases, as data
measure    one run of one case, whatever kind it is; rounds over the servers
results    runs as JSON, written, read and merged; figures drawn from runs
claims     the targets of this project, beside what was measured
tables     Markdown
plots      SVG
"""
