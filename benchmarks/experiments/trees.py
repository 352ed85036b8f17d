"""Measures builds of the package by turns, for the experiments that compare two of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def measured(
    script: str, arguments: list[str], trees: list[str], rounds: int
) -> dict[str, list[list[float]]]:
    """Of each tree the figures of each round.

    Args:
        script: what a round starts, in a process for each tree; prints its figures as JSON.
        arguments: for the script.
        trees: checkouts with their modules built in place.
        rounds: each begins with another end of the trees.
    """
    command = [sys.executable, script, *arguments]
    figures: dict[str, list[list[float]]] = {tree: [] for tree in trees}
    for number in range(rounds):
        for tree in trees[:: 1 if number % 2 else -1]:
            ran = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": tree}, capture_output=True, check=True
            )
            figures[tree].append(json.loads(ran.stdout))
    return figures
