"""Fuzzers of the parsers in C and of the compiled client, and their corpus."""
