"""Secure aggregation against Flower's SecAgg+: time, upload and memory of one round, and how they grow.

python -m simulations.benchmarks.secagg [--sites N] [--no-growth]

Both do one site's and the server's arithmetic in one process, without a network. A site: from trained parameters to the
bytes that it sends, with key agreements and the shares that it decrypts; Flower's is its client mod, asked as its
workflow asks. The server: from all replies and opened shares to the sum; Flower's is written out after the workflow,
with flwr's functions. Fedward's sum is checked; Flower's server gets one site's vector in the place of all.
Each figure is the least of two runs, taken in turns; memory is what a third run allocates at most beside its input.
Fedward takes two threads where there are two cores, so processor seconds stand beside those by the clock.
"""

import argparse
import json
import logging
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from numpy.typing import NDArray

from common import params
from common.crypto.agreement import KeyPair, pair_key, self_key, share_key
from common.crypto.sealed import seal, unseal
from common.crypto.shares import SHARE_BYTES, combine, split
from common.masking import Encoding, MaskedSum, encode, mask
from common.models import build_model
from simulations.benchmarks import made_up
from simulations.benchmarks.flower_round import (
    CLIPPING_RANGE,
    MOD_RANGE,
    TARGET_RANGE,
    FlowerRound,
    FlowerSite,
    vector_of,
)

SITES, WIDE, RUNS = 8, 16, 2
GROWTH_SITES, GROWTH_PARAMETERS = (4, 8, 16, 32, 64), (2**20, 2**22, 2**24)
T1, T2 = bytes(32), bytes([1]) * 32  # in the place of the hashes of a session
Job = Callable[[], object]
Arrays = list[NDArray[np.float32]]
Shares = Mapping[int, dict[int, bytes]]  # by dealer, then by holder


class Fedward:
    """One session of ours. The key list's places are 1 to `sites`."""

    def __init__(self, arrays: Arrays, sites: int) -> None:
        self.values = np.concatenate([array.reshape(-1) for array in arrays])
        self.places, self.threshold = range(1, sites + 1), sites // 2 + 1
        self.encoding = Encoding(values=self.values.size, wide=WIDE, range_=CLIPPING_RANGE, sites=sites)
        self.masking, self.channel = ({place: KeyPair.new() for place in self.places} for _ in range(2))
        self.seeds = {place: os.urandom(32) for place in self.places}
        self.sealed = {place: self.share(place) for place in self.places}

    def set_up(self) -> None:
        """A site's keys, and its shares for all."""
        KeyPair.new(), KeyPair.new()
        self.share(1)

    def share(self, place: int) -> dict[int, bytes]:
        """A site's shares of its two secrets, encrypted, by who they are for."""
        masking, own = (
            split(secret, threshold=self.threshold, holders=len(self.places))
            for secret in (self.masking[place].private, self.seeds[place])
        )
        return {
            to: seal(one + other, key=self._channel(place, to), transcript=T1, sender=place, receiver=to)
            for to, one, other in zip(self.places, masking, own, strict=True)
        }

    def client(self, place: int = 1) -> bytes:
        """What a site sends, once it has decrypted its peers' shares."""
        peers = [peer for peer in self.places if peer != place]
        for peer in peers:
            self._opened(peer, place)
        streams = [self._pair(self.masking[place], self.masking[peer], place, peer) for peer in peers]
        streams.append((self_key(self.seeds[place], T2, index=place), 1))
        words, _ = encode(self.values, np.ones(WIDE - 1), self.encoding, key=os.urandom(32))
        mask(words, streams)
        return words.tobytes()

    def opened(self, missing: Sequence[int]) -> Shares:
        """What the server is told: of a missing site the masking key's shares, of others those of the self-mask."""
        holders = [place for place in self.places if place not in missing][: self.threshold]
        halves = {p: slice(0, SHARE_BYTES) if p in missing else slice(SHARE_BYTES, None) for p in self.places}
        return {p: {holder: self._opened(p, holder)[halves[p]] for holder in holders} for p in self.places}

    def server(self, replies: Iterable[bytes], shares: Shares, missing: Sequence[int]) -> NDArray[np.float64]:
        """The sum."""
        total, survivors = MaskedSum(self.encoding), [place for place in self.places if place not in missing]
        for reply in replies:
            total.add(np.frombuffer(reply, "<u8"))
        streams = [(self_key(combine(shares[place]), T2, index=place), 1) for place in survivors]
        for lost in missing:
            key = KeyPair.of(combine(shares[lost]))
            streams += [self._pair(key, self.masking[place], place, lost) for place in survivors]
        total.unmask(streams)
        return total.values(len(survivors))[0]

    def _pair(self, private: KeyPair, public: KeyPair, site: int, peer: int) -> tuple[bytes, int]:
        return pair_key(private.agree(public.public), T2, one=site, other=peer), 1 if site < peer else -1

    def _channel(self, sender: int, receiver: int) -> bytes:
        secret = self.channel[sender].agree(self.channel[receiver].public)
        return share_key(secret, T1, sender=sender, receiver=receiver)

    def _opened(self, sender: int, receiver: int) -> bytes:
        key, sealed = self._channel(sender, receiver), self.sealed[sender][receiver]
        return unseal(sealed, key=key, transcript=T1, sender=sender, receiver=receiver)


class Flower:
    """One round of SecAgg+. Nodes are 1 to `sites`."""

    def __init__(self, arrays: Arrays, sites: int) -> None:
        self.round = FlowerRound([FlowerSite(node, arrays) for node in range(1, sites + 1)])
        self.site = self.round.sites[1]
        self._before = self.site.state

    def set_up(self) -> None:
        """A site's keys, and its shares for all."""
        spare = FlowerSite(1, [])
        self.round.shares(spare, {**self.round.public, 1: self.round.set_up(spare)})

    def ready(self) -> None:
        """Put the site before the stage of masked vectors, with a result of training: it goes through a stage once."""
        self.site.rewind(self._before)
        self.site.train()

    def client(self) -> list[bytes]:
        """What a site sends."""
        return vector_of(self.round.masked(self.site))

    def opened(self, missing: Sequence[int]) -> tuple[FlowerRound, dict[int, list[bytes]]]:
        """A round of as many sites, without arrays, and the shares that its server is handed, by dealer."""
        other = FlowerRound([FlowerSite(node, []) for node in self.round.sites])
        active = [node for node in other.sites if node not in missing]
        shares: dict[int, list[bytes]] = {node: [] for node in other.sites}
        for node in active[: other.threshold]:
            other.masked(other.sites[node])
            for dealer, share in other.opened(other.sites[node], active=active, dead=missing):
                shares[dealer].append(share)
        return other, shares

    def server(
        self, replies: list[list[bytes]], opened: tuple[FlowerRound, dict[int, list[bytes]]], missing: Sequence[int]
    ) -> list[NDArray[np.float64]]:
        """The workflow's last two stages. Source: flwr 1.41, `secaggplus_workflow.py`."""
        keys, shares = opened[0].public, opened[1]
        total: list[NDArray[Any]] | None = None
        for reply in replies:
            vector = [bytes_to_ndarray(data) for data in reply]
            total = vector if total is None else parameters_addition(total, vector)
        masked = parameters_mod(total or [], MOD_RANGE)
        for node, some in shares.items():
            secret = combine_shares(some)
            if node not in missing:
                own = pseudo_rand_gen(secret, MOD_RANGE, get_parameters_shape(masked))
                masked = parameters_subtraction(masked, own)
                continue
            for peer in set(keys) - {node}:
                shared = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(keys[peer][0]))
                pair = pseudo_rand_gen(shared, MOD_RANGE, get_parameters_shape(masked))
                combined = parameters_addition if node > peer else parameters_subtraction
                masked = combined(masked, pair)
        ratio, rest = factor_extract(parameters_mod(masked, MOD_RANGE))
        found = dequantize(rest, CLIPPING_RANGE, TARGET_RANGE)
        for array in found:
            array -= (len(replies) - 1) * CLIPPING_RANGE
            array *= TARGET_RANGE / max(1, ratio)  # of vectors that don't fit together the ratio may be 0
        return found


def timed(job: Job, ready: Job = lambda: None) -> tuple[float, float]:
    """Seconds by the clock and of the processor, once `ready` is done."""
    ready()
    clock, processor = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - clock, time.process_time() - processor


def allocated(job: Job, ready: Job = lambda: None) -> int:
    """Bytes that a job has at most, beside what was there before."""
    ready()
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def unet() -> Arrays:
    """An update of the size of the U-Net with 64 base channels."""
    study = made_up.study(
        side=32,
        study={"task": "segmentation", "classes": ["organ"]},
        model={"name": "unet", "image_size": [32, 32], "base_channels": 64, "norm": "none"},
    )
    rng = np.random.default_rng(0)
    shapes = params.shapes(build_model(study), trainable=False)
    return [(0.01 * rng.standard_normal(shape)).astype(np.float32) for _, shape in shapes]


def one_round(arrays: Arrays, sites: int) -> dict[str, dict[str, float]]:
    """Figures of one round by what was measured, then by whose."""
    ours, flower = Fedward(arrays, sites), Flower(arrays, sites)
    lost = tuple(ours.places)[1:3]
    replies = {place: ours.client(place) for place in ours.places}
    flower.ready()
    reply = flower.client()
    found: dict[str, dict[str, float]] = {
        "upload, bytes a parameter": {
            "fedward": len(replies[1]) / ours.values.size,
            "flower": sum(map(len, reply)) / ours.values.size,
        }
    }

    def both(what: str, own: Job, other: Job, ready: Job = lambda: None) -> None:
        runs = [{"fedward": timed(own), "flower": timed(other, ready)} for _ in range(RUNS)]
        for unit, which in (("seconds", 0), ("processor seconds", 1)):
            found[f"{what}, {unit}"] = {whose: min(run[whose][which] for run in runs) for whose in runs[0]}
        found[f"{what}, slower run, seconds"] = {whose: max(run[whose][0] for run in runs) for whose in runs[0]}
        found[f"{what}, MB"] = {"fedward": allocated(own) / 1e6, "flower": allocated(other, ready) / 1e6}

    def server(missing: Sequence[int]) -> None:
        survivors = [place for place in ours.places if place not in missing]
        shares, others = ours.opened(missing), flower.opened(missing)
        error = np.abs(ours.server((replies[p] for p in survivors), shares, missing) - len(survivors) * ours.values)
        if not error.max() < len(survivors) * ours.encoding.unit * 1.001:
            raise ArithmeticError(f"the sum is off by {error.max() / ours.encoding.unit} units")
        # Fedward takes replies as they come, here a copy that is given up; Flower's grid hands over all at once.
        both(
            f"server: {len(missing)} missing",
            lambda: ours.server((bytes(memoryview(replies[p])) for p in survivors), shares, missing),
            lambda: flower.server([[bytes(memoryview(d)) for d in reply] for _ in survivors], others, missing),
        )

    both("site: keys and shares", ours.set_up, flower.set_up)
    both("site: masked vector", ours.client, flower.client, flower.ready)
    server(())
    server(lost)
    return found


def client_seconds(arrays: Arrays, sites: int) -> dict[str, float]:
    """Seconds of a site's masked vector by whose, and of our server where nobody is missing."""
    ours, flower = Fedward(arrays, sites), Flower(arrays, sites)
    runs = [(timed(ours.client)[0], timed(flower.client, flower.ready)[0]) for _ in range(RUNS)]
    replies, shares = [ours.client(place) for place in ours.places], ours.opened(())
    server = min(timed(lambda: ours.server(replies, shares, ()))[0] for _ in range(RUNS))
    return {"fedward": min(run[0] for run in runs), "flower": min(run[1] for run in runs), "fedward server": server}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="secure aggregation against Flower's SecAgg+")
    parser.add_argument("--sites", type=int, default=SITES, help="sites in the round")
    parser.add_argument("--no-growth", action="store_true", help="one round alone")
    asked = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    arrays, growth = unet(), []
    parameters = sum(array.size for array in arrays)
    print(f"{asked.sites} sites, {parameters} parameters")
    print(f"{'':44}{'Fedward':>12}{'Flower':>12}{'ratio':>9}")
    found = one_round(arrays, asked.sites)
    for what, of in found.items():
        print(f"{what:44}{of['fedward']:12.4f}{of['flower']:12.4f}{of['fedward'] / of['flower']:9.4f}", flush=True)
    if not asked.no_growth:
        print(f"{'sites':>6}{'parameters':>12}{'site, s':>12}{'Flower, s':>12}{'ratio':>9}{'server, s':>12}")
        sizes = [(sites, GROWTH_PARAMETERS[0]) for sites in GROWTH_SITES]
        for sites, count in sizes + [(asked.sites, count) for count in GROWTH_PARAMETERS]:
            seconds = client_seconds([np.full(count, 0.01, np.float32)], sites)
            growth.append({"sites": sites, "parameters": count, **seconds})
            ratio = seconds["fedward"] / seconds["flower"]
            cells = f"{seconds['fedward']:12.4f}{seconds['flower']:12.4f}{ratio:9.4f}{seconds['fedward server']:12.4f}"
            print(f"{sites:6}{count:12}{cells}", flush=True)
    report = {"benchmark": "secagg", "sites": asked.sites, "parameters": parameters, "round": found, "growth": growth}
    print(json.dumps({**report, "targets": {"site_seconds_ratio": 0.25, "bytes_a_parameter": 2.7}}))


if __name__ == "__main__":
    main()
