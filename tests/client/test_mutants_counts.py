"""Planted faults in the class histogram and what rests on it: each is noticed."""

from mutants import noticed, placed, unharmed

SITE = "tests/client/test_counts.py::test_"
PROMISE = ["tests/common/test_guarantee.py"]
PARTS = ["tests/common/test_tasks_counts.py"]
LEDGER = ["tests/client/test_ledger.py::test_a_plan_of_two_kinds_of_orders_lends_none_of_the_one_to_the_other"]
LIES = [f"{SITE}shares_that_can_not_be_any_are_refused_and_nothing_is_charged"]
ANOTHER = [f"{SITE}another_prior_is_another_order_computed_and_charged_anew"]
ASKED = [f"{SITE}another_prior_counts_as_another_question_where_the_policy_counts_them"]
WEIGHTS = [f"{SITE}whatever_shares_a_server_sends_no_patient_weighs_more_than_one"]
PLANNED = [f"{SITE}the_whole_budget_of_steps_and_histograms_is_set_aside_in_one_record"]
RUN = "tests/simulations/test_counted_run.py::test_"

FAULTS = {
    "histograms for nothing": (
        "common/guarantee.py",
        "beside=[replace(histogram_event(), steps=HISTOGRAM_ORDERS)] if counts(study) else (),",
        "beside=(),",
        PROMISE,
    ),
    "one histogram is paid for and two may be taken": (
        "common/guarantee.py",
        "beside=[replace(histogram_event(), steps=HISTOGRAM_ORDERS)]",
        "beside=[histogram_event()]",
        PROMISE,
    ),
    "three histograms": ("common/event.py", "HISTOGRAM_ORDERS = 2", "HISTOGRAM_ORDERS = 3", PLANNED),
    "histograms are not in what was charged": (
        "common/guarantee.py",
        "if counts_charged else []",
        "if False else []",
        PROMISE,
    ),
    "less noise than was paid for": (
        "common/guarantee.py",
        "            return histogram_event()\n",
        "            return replace(histogram_event(), noise_multiplier=5.0)\n",
        [f"{SITE}a_histogram_leaves_as_one_noised_release_and_nothing_else"],
    ),
    "another kind of order's budget": (
        "client/ledger_state.py",
        " or taken >= allocation.orders.get(name, math.inf):",
        ":",
        LEDGER,
    ),
    "a study that comes back has a new plan": (
        "client/ledger_state.py",
        "(*key, name): taken + 1}",
        "(*key, name): 1}",
        LEDGER,
    ),
    "a site's budget for the last kind alone": (
        "client/allowance.py",
        "for event, orders in parts)",
        "for event, orders in parts[-1:])",
        [f"{SITE}the_approver_sees_what_the_ledger_will_set_aside"],
    ),
    "a share of 0": ("common/guarantee.py", "0 < share < 1 for share", "0 <= share < 1 for share", LIES),
    "a share of 1": ("common/guarantee.py", "0 < share < 1 for share", "0 < share <= 1 for share", LIES),
    "no share is looked at": ("common/guarantee.py", "not all(0 < share < 1 for share in sent)", "False", LIES),
    "any number of classes": ("common/guarantee.py", "len(sent) != expected or", "False or", LIES),
    "shares with any order": (
        "client/app.py",
        "    guarantee.class_prior(study, order.kind, order.prior)\n",
        "",
        [f"{SITE}shares_where_none_belong_are_refused"],
    ),
    "the commonest class in place of the rarest": (
        "client/private.py",
        "min(prior) / share",
        "max(prior) / share",
        WEIGHTS,
    ),
    "another prior, the same answer": ("common/wire.py", "        if not self.prior:\n", "        if True:\n", ANOTHER),
    "shares outside of the digest": (
        "common/wire.py",
        '        "prior": list(order.prior),\n',
        '        "prior": [],\n',
        [f"{SITE}the_digest_of_an_order_covers_the_shares"],
    ),
    "the audit log knows weights alone": (
        "client/audit.py",
        "_digest(order.asks)",
        "_digest(order.weights_hash)",
        ASKED,
    ),
    "asked before, and not recognised": ("client/permit.py", "order.asks)", "order.weights_hash)", ASKED),
    "a histogram about weights": (
        "client/app.py",
        "        if order.weights_hash:\n",
        "        if False:\n",
        [f"{SITE}a_histogram_is_asked_without_weights_so_that_there_is_one_to_ask"],
    ),
    "training as round 0": (
        "client/policy.py",
        'first = 0 if counts and vector in ("count", None) else 1',
        "first = 0",
        [f"{SITE}the_histogram_is_round_0_and_nothing_else_is"],
    ),
    "a histogram as any round": (
        "client/policy.py",
        'last = 0 if kind == "count" else study',
        "last = study",
        [f"{SITE}the_histogram_is_round_0_and_nothing_else_is"],
    ),
    "an error stops the histogram": (
        "client/dp/metrics.py",
        "for row in rows])\n        except Exception:",
        "for row in rows])\n        except KeyboardInterrupt:",
        [f"{SITE}a_patient_whose_annotations_can_not_be_read_counts_as_nothing"],
    ),
    "a class counts as one however many there are": (
        "common/tasks/counts.py",
        "math.sqrt(len(classes)) * ",
        "",
        PARTS,
    ),
    "the sum over a patient's images": ("common/tasks/counts.py", " * len(shown))", ")", PARTS),
    "clamped at nothing": ("common/tasks/counts.py", "np.maximum(total, noise)", "np.maximum(total, 1e-9)", PARTS),
    "noise of one site": (
        "server/class_counts.py",
        "[event.noise_multiplier] * sites",
        "[event.noise_multiplier]",
        ["tests/server/test_class_counts.py"],
    ),
    "counted again when a run goes on": (
        "server/federation.py",
        "if guarantee.counts(self._study) and not self._saved.prior:",
        "if guarantee.counts(self._study):",
        [f"{RUN}a_resumed_run_balances_by_the_same_release"],
    ),
    "shares not kept": (
        "server/checkpoint.py",
        '"prior": json.dumps(checkpoint.prior)',
        '"prior": "[]"',
        ["tests/server/test_checkpoint.py"],
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
