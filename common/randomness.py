"""Random streams that are a function of (seed, purpose, site, round), and the one place that seeds torch."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, purpose: str, *, site: str = "", round: int = 0) -> int:
    """A 256-bit integer: SHA-256 over seed, purpose, site and round, each with its length in front.

    Guarantees: different arguments give different input to the hash (no two can run together).
    """
    parts = (str(seed), purpose, site, str(round))
    text = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return int.from_bytes(hashlib.sha256(text).digest(), "big")


def stream(seed: int, purpose: str, *, site: str = "", round: int = 0) -> np.random.Generator:
    """A numpy generator of its own for one use of randomness. Not for noise, keys or masks: it is predictable."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, site=site, round=round)))


@contextmanager
def seeded(seed: int, purpose: str, *, site: str = "", round: int = 0) -> Iterator[None]:
    """Torch's global generators seeded inside the block and put back as they were after it.

    For what knows no generator argument: initialisation, dropout, torchvision's samplers. Not for two threads at once.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    start = derive(seed, purpose, site=site, round=round) % 2**63
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(start)  # torch.manual_seed takes 1 ms where there is no device to seed
        if devices:
            torch.cuda.manual_seed_all(start)
        yield
