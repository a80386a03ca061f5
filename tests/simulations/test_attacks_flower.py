"""What is said about Flower's SecAgg+ holds in the installed flwr; the search is a search."""

import math

import numpy as np
import pytest
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs

from simulations.attacks import flower
from simulations.attacks.flower import clear_numbers, open_both_shares, replace_keys, search_seed, split_orders
from simulations.mersenne import first_numbers


def test_a_site_hands_over_both_shares_of_a_peer_that_is_in_both_lists() -> None:
    finding = open_both_shares()
    assert finding.outcome == "succeeds" and finding.against.startswith("flwr 1.41")


def test_forged_public_keys_are_taken() -> None:
    assert replace_keys().outcome == "succeeds"


def test_sites_that_were_given_other_weights_are_in_one_sum() -> None:
    assert split_orders().outcome == "succeeds"


def test_numbers_of_examples_and_metrics_are_in_clear() -> None:
    finding = clear_numbers()
    assert finding.outcome == "succeeds" and "101" in finding.detail and "0.125" in finding.detail


def test_the_seed_of_a_mask_is_found_in_the_space_that_is_searched() -> None:
    finding = search_seed(bits=12)
    assert finding.outcome == "succeeds" and "4096 of 2^28" in finding.detail


def test_the_search_fails_where_the_seed_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = flower._rank
    monkeypatch.setattr(flower, "_rank", lambda seed: rank(seed) ^ 1 << 20)
    assert search_seed(bits=12).outcome == "fails"


def test_the_first_numbers_are_those_of_flwrs_generator() -> None:
    seeds = np.array([0, 1, 2**28, 0x7F7F7F7F, 2**32 - 1], np.uint32)
    found = first_numbers(seeds, 5)
    for place, seed in enumerate(seeds.tolist()):
        weight, rest = pseudo_rand_gen(seed.to_bytes(4, "little"), 2**32, [(1,), (2, 2)])
        assert found[:, place].tolist() == [*weight.tolist(), *rest.reshape(-1).tolist()]


def test_a_pairs_key_folds_to_four_times_seven_bits() -> None:
    seen = 0
    for _ in range(200):
        (private, _), (_, public) = generate_key_pairs(), generate_key_pairs()
        key = generate_shared_key(private, public)
        seed = flower._folded(key)
        assert np.array_equal(
            pseudo_rand_gen(key, 2**32, [(3,)])[0], pseudo_rand_gen(seed.to_bytes(4, "little"), 2**32, [(3,)])[0]
        )
        rank = flower._rank(seed)
        assert rank < 2**28 and flower._seed(np.array([rank], np.uint32)).tolist() == [seed]
        seen |= seed
    assert seen == 0x7F7F7F7F
    assert 27.9 < flower.seed_entropy() <= 28 + 1e-9 and math.isfinite(flower.seed_entropy())
