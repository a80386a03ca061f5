"""Federations on one machine: public data sets divided among unbalanced hospitals, to see what a federation would
gain.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`from simulations import run`, without paying for torch where only the command line's help is wanted."""
    if name == "run":
        from simulations.experiment import run

        return run
    raise AttributeError(f"module 'simulations' has no attribute {name!r}")
