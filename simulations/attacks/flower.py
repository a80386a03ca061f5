"""Attacks on Flower's SecAgg+: the installed flwr's own client mod and functions.

Each function plays a server, lies only where its text says so, and reads one site's update: why Fedward has a protocol
of its own (DECISIONS.md). The sites are `secaggplus_mod` itself; nothing in flwr is changed.
"""

import math
import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import get_parameters_shape, parameters_mod
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)
from numpy.typing import NDArray

from simulations.attacks.finding import Finding, judged
from simulations.benchmarks.flower_round import (
    CLIPPING_RANGE,
    MOD_RANGE,
    TARGET_RANGE,
    FlowerRound,
    FlowerSite,
    vector_of,
)
from simulations.mersenne import first_numbers

SEED_BITS = 28
VICTIM = 1
EXAMPLES = 400  # of 1000, flwr's largest weight
AGAINST = f"flwr {version('flwr')}"
_BATCH = 2**14  # seeds at a time: their states stay in the processor's cache
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_QUANTUM = 2 * CLIPPING_RANGE / TARGET_RANGE
Integers = list[NDArray[np.int64]]


def open_both_shares(sites: int = 4) -> Finding:
    """Name one site as active and as dropped in the same request, once all masked vectors are there."""
    updates, flower = _round(sites)
    victim = flower.sites[VICTIM]
    sent = vector_of(flower.masked(victim))
    handed: list[list[bytes]] = [[], []]
    for node in list(flower.sites)[1 : 1 + flower.threshold]:
        site = flower.sites[node]
        flower.masked(site)
        answer = flower.opened(site, active=list(flower.sites), dead=[VICTIM])
        for shares, share in zip(handed, (share for owner, share in answer if owner == VICTIM), strict=True):
            shares.append(share)
    own, private = (combine_shares(shares) for shares in handed)
    peers = {node: keys[0] for node, keys in flower.public.items() if node != VICTIM}
    found = _unmasked(sent, [(own, 1), *_pairs(private, peers)])
    return _finding(
        found,
        updates[VICTIM],
        f"{flower.threshold} of {sites} sites, asked once, each handed over both shares of one peer",
    )


def replace_keys(sites: int = 4) -> Finding:
    """Show a site public keys that the server made in the place of its peers': they carry no signature."""
    updates, flower = _round(sites)
    victim, peers = (
        FlowerSite(VICTIM, updates[VICTIM], examples=EXAMPLES),
        [node for node in flower.sites if node != VICTIM],
    )
    forged = {node: [generate_key_pairs(), generate_key_pairs()] for node in peers}
    shown = {node: [public_key_to_bytes(public) for _, public in pairs] for node, pairs in forged.items()}
    own_keys = flower.set_up(victim)
    sealed = flower.shares(victim, {VICTIM: own_keys, **shown})
    channels = {
        node: generate_shared_key(pairs[1][0], bytes_to_public_key(own_keys[1])) for node, pairs in forged.items()
    }
    read = [share_keys_plaintext_separate(decrypt(channels[node], sealed[node])) for node in peers]
    own = combine_shares([share for _, _, share, _ in read[: flower.threshold]])
    private = combine_shares([share for _, _, _, share in read[: flower.threshold]])
    invented = {
        node: encrypt(channels[node], share_keys_plaintext_concat(node, VICTIM, b"share", b"share")) for node in peers
    }
    sent = vector_of(flower.masked(victim, invented))
    found = _unmasked(sent, [(own, 1), *_pairs(private, {node: keys[0] for node, keys in shown.items()})])
    return _finding(
        found,
        updates[VICTIM],
        "the site took the server for all of its peers; it was never asked to open anything, its peers not at all",
    )


def split_orders(sites: int = 4) -> Finding:
    """Have the victim's peers train from weights from which training changes nothing, and open the sum of all.

    Source: Pasquini, Francati, Ateniese 2022, "Eluding Secure Aggregation in Federated Learning via Model
    Inconsistency".
    """
    updates, _ = _round(sites)
    nothing = [np.zeros_like(array) for array in updates[VICTIM]]
    arrays = {node: update if node == VICTIM else nothing for node, update in updates.items()}
    flower = FlowerRound([FlowerSite(node, each, examples=EXAMPLES) for node, each in arrays.items()])
    sent = {node: vector_of(flower.masked(site)) for node, site in flower.sites.items()}
    shares: dict[int, list[bytes]] = {node: [] for node in flower.sites}
    for node in list(flower.sites)[: flower.threshold]:
        for owner, share in flower.opened(flower.sites[node], active=list(flower.sites), dead=[]):
            shares[owner].append(share)
    left = [_masked_integers(sent[node], [(combine_shares(shares[node]), 1)]) for node in flower.sites]
    _, *total = parameters_mod([sum(parts[1:], parts[0]) for parts in zip(*left, strict=True)], MOD_RANGE)
    middle = (sites - 1) * CLIPPING_RANGE  # what the peers' zeros add, as each value is shifted by the range
    found = [(array - middle) * 1000 / EXAMPLES for array in dequantize(total, CLIPPING_RANGE, TARGET_RANGE)]
    return _finding(
        found, updates[VICTIM], f"{sites} sites of which {sites - 1} were asked with other weights; one honest sum"
    )


def search_seed(bits: int = 16) -> Finding:
    """Find the seed of a mask between two honest sites by trying seeds; all else keeps to the protocol.

    Three sites, of which one tells the server its private key; the server opened the victim's self-mask, as it does
    for each survivor. What is left on the vector is one mask, of a seed of 28 bits: with m honest peers there are m
    masks, to be found together. With fewer `bits` the server is told the others, so that the search is short.
    """
    updates, flower = _round(3)
    victim, friend, honest = VICTIM, 2, 3
    sent = vector_of(flower.masked(flower.sites[victim]))
    shares = []
    for node in (friend, honest):
        flower.masked(flower.sites[node])
        shares += [
            s for owner, s in flower.opened(flower.sites[node], active=list(flower.sites), dead=[]) if owner == 1
        ]
    private = flower.sites[friend].state["sk1"]
    friends = generate_shared_key(bytes_to_private_key(_bytes(private)), bytes_to_public_key(flower.public[victim][0]))
    left = _masked_integers(sent, [(combine_shares(shares), 1), (friends, -1)])
    truth = generate_shared_key(
        bytes_to_private_key(_bytes(flower.sites[victim].state["sk1"])), bytes_to_public_key(flower.public[honest][0])
    )
    first = _rank(_folded(truth)) >> bits << bits  # what the server is told, nothing for 28 bits
    start = time.perf_counter()
    seeds = _search(left, first, first + 2**bits)
    seconds = time.perf_counter() - start
    found = [_unmasked(sent, [(combine_shares(shares), 1), (friends, -1), (seed, -1)]) for seed in seeds]
    whole = 2.0 ** (SEED_BITS - bits) * seconds
    return _finding(
        found[0] if len(found) == 1 else None,
        updates[victim],
        f"{2**bits} of 2^{SEED_BITS} seeds in {seconds:.2f} s on one core, {2**bits / seconds / 1e6:.1f} million a "
        f"second; all would take {whole:.0f} s; a seed has {seed_entropy():.2f} bits of entropy",
        brief=f"{SEED_BITS - bits} of {SEED_BITS} bits were told; a search of all takes {whole / 60:.1f} min",
    )


def clear_numbers() -> Finding:
    """Read what comes beside the masked vector."""
    arrays = [np.zeros(4, np.float32)]
    flower = FlowerRound([FlowerSite(node, arrays, examples=100 + node, dice=node / 8) for node in (1, 2, 3)])
    answer = flower.masked(flower.sites[VICTIM])
    numbers = {
        key: value
        for records in (answer.metric_records, answer.config_records)
        for name, record in records.items()
        if name.startswith("fitres")
        for key, value in record.items()
    }
    read = [numbers.get("num_examples", math.nan), numbers.get("dice", math.nan)]
    return judged(
        read,
        [101, 0.125],
        tolerance=0,
        against=AGAINST,
        detail=f"in clear beside the masked vector: {numbers}",
        brief="numbers of examples and metrics alone",
    )


def seed_entropy() -> float:
    """Shannon entropy in bits of the number that `pseudo_rand_gen` makes of the key of a pair, computed exactly.

    The key comes as 44 letters of base64: 42 of 6 random bits, one of 4, and a `=`. They are folded by exclusive or
    into four letters; no letter has its highest bit set, so at most 28 bits are left.
    """
    letters = [list(_BASE64)] * 42 + [list(_BASE64[::4]), [ord("=")]]
    total = 0.0
    for column in range(4):
        chances = np.zeros(256)
        chances[0] = 1
        for position in range(column, 44, 4):
            chances = np.mean([chances[np.arange(256) ^ letter] for letter in letters[position]], axis=0)
        total -= sum(chance * math.log2(chance) for chance in chances.tolist() if chance > 0)
    return total


def _search(left: Integers, first: int, last: int) -> list[bytes]:
    """The seeds, as four bytes each, of rank `first` to `last` whose mask, added, gives integers of the vector's range.

    Three numbers, each of which passes by chance one time in 1024, choose; flwr's own generator decides.
    """
    start = np.concatenate([array.reshape(-1) for array in left])[:3].astype(np.uint32)
    found = []
    for begin in range(first, last, _BATCH):
        seeds = _seed(np.arange(begin, min(begin + _BATCH, last), dtype=np.uint32))
        fits = ((first_numbers(seeds, 3) + start[:, None]) <= TARGET_RANGE).all(axis=0)
        for seed in seeds[fits].tolist():
            folded = int(seed).to_bytes(4, "little")
            mask = pseudo_rand_gen(folded, MOD_RANGE, get_parameters_shape(left))
            if all((((one + other) % MOD_RANGE) <= TARGET_RANGE).all() for one, other in zip(left, mask, strict=True)):
                found.append(folded)
    return found


def _seed(rank: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The seeds of these ranks: 7 bits to each byte."""
    parts = [((rank >> np.uint32(7 * byte)) & np.uint32(127)) << np.uint32(8 * byte) for byte in range(4)]
    seeds: NDArray[np.uint32] = parts[0] | parts[1] | parts[2] | parts[3]
    return seeds


def _rank(seed: int) -> int:
    return sum((seed >> 8 * byte & 127) << 7 * byte for byte in range(4))


def _folded(key: bytes) -> int:
    seed = 0
    for at in range(0, len(key), 4):
        seed ^= int.from_bytes(key[at : at + 4], "little")
    return seed


def _round(sites: int) -> tuple[dict[int, list[NDArray[np.float32]]], FlowerRound]:
    """Updates by node, and an honest round up to the shares."""
    rng = np.random.default_rng(0)
    updates = {
        node: [rng.uniform(-4, 4, shape).astype(np.float32) for shape in ((8, 4), (16,))]
        for node in range(1, sites + 1)
    }
    return updates, FlowerRound([FlowerSite(node, arrays, examples=EXAMPLES) for node, arrays in updates.items()])


def _pairs(private: bytes, peers: dict[int, bytes]) -> list[tuple[bytes, int]]:
    """The victim's masks with its peers: the higher node adds."""
    key = bytes_to_private_key(private)
    return [
        (generate_shared_key(key, bytes_to_public_key(public)), 1 if node < VICTIM else -1)
        for node, public in peers.items()
    ]


def _masked_integers(sent: Sequence[bytes], streams: Sequence[tuple[bytes, int]]) -> Integers:
    """What is sent less these masks, each with the sign with which it was added."""
    left = [bytes_to_ndarray(data) for data in sent]
    for seed, sign in streams:
        mask = pseudo_rand_gen(seed, MOD_RANGE, get_parameters_shape(left))
        left = [one - sign * other for one, other in zip(left, mask, strict=True)]
    return parameters_mod(left, MOD_RANGE)


def _unmasked(sent: Sequence[bytes], streams: Sequence[tuple[bytes, int]]) -> list[NDArray[np.float64]]:
    """The update: the first integer is the weight by which the others were multiplied."""
    weight, *arrays = _masked_integers(sent, streams)
    share = float(weight.item()) / TARGET_RANGE
    return [array / max(share, 2.0**-22) for array in dequantize(arrays, CLIPPING_RANGE, TARGET_RANGE)]


def _finding(
    found: list[NDArray[np.float64]] | None, update: list[NDArray[np.float32]], detail: str, *, brief: str = ""
) -> Finding:
    """Success is the site's own update, to three steps of flwr's quantisation: one step over a weight of 0.4."""
    return judged(
        None if found is None else np.concatenate([array.reshape(-1) for array in found]),
        np.concatenate([array.reshape(-1) for array in update]),
        tolerance=3 * _QUANTUM,
        against=AGAINST,
        detail=detail,
        brief=brief,
    )


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} in the state of a site, not bytes")
    return value
