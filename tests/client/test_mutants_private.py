"""Planted faults where the study meets the private step: each is noticed."""

from mutants import noticed, placed, unharmed

PRIVATE = ["tests/client/test_private.py"]
CLEAR = ["tests/simulations/test_secure_run.py::test_a_site_of_a_secure_study_answers_nothing_in_the_clear"]

FAULTS = {
    "the same keys each time": ("client/private.py", "keys=fresh_key,", "keys=lambda: bytes(32),", PRIVATE),
    "the same key for metrics": ("client/private.py", "key=fresh_key())", "key=bytes(32))", PRIVATE),
    "the pool as large as the site": (
        "client/private.py",
        "nominal_patients(site) * shares[event.pool]",
        "nominal_patients(site)",
        PRIVATE,
    ),
    "no self-test": ("client/private.py", "    check_separable(study)\n", "", PRIVATE),
    "declared number unchecked": (
        "client/private.py",
        "    guarantee.check_nominal(study, {site.name: nominal_patients(site)})\n",
        "",
        PRIVATE,
    ),
    "an error about images leaves": (
        "client/private.py",
        "        return Nobody(study=study)",
        "        raise",
        PRIVATE,
    ),
    "masked again without proof": ("client/private.py", "not invitation.proves_closed(", "not (", PRIVATE),
    "session not marked": (
        "client/private.py",
        "        own.mark(query, invitation.masked_in.to_json())\n",
        "",
        PRIVATE,
    ),
    "opened and kept": ("client/private.py", "        own.forget(_query(study, order))\n", "        pass\n", PRIVATE),
    "an order in the clear": ("client/app.py", "    if not order.session:\n", "    if False:\n", CLEAR),
    "charged for one step": (
        "common/guarantee.py",
        "steps=study.training.local_steps or 0)",
        "steps=1)",
        ["tests/common/test_guarantee.py"],
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
