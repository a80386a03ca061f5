"""Faults in the accounting, each of which the tests must notice."""

from mutants import noticed, placed, unharmed

ACCOUNTING, BUDGET, EVENT, RENYI = "common/accounting.py", "common/budget.py", "common/event.py", "common/renyi.py"

# The tests of each module, by words of their names: the others need not run for its faults.
WORDS = {
    ACCOUNTING: "not divergence and not conversion and not json",
    BUDGET: "order or limit or filter or cost or fits or lifetime or spent or pools",
    EVENT: "out_of_range or delta or steps or histogram",
    RENYI: "divergence or conversion or renyi or whole_orders or sample_rate_1 or cost",
}

FAULTS = {
    "replace-one instead of add or remove": (
        ACCOUNTING,
        "log_ndtr(mu / 2 - epsilon / mu))",
        "log_ndtr(mu - epsilon / mu))",
    ),
    "noise doubled in the account": (
        ACCOUNTING,
        "pair = (event.sample_rate, event.noise_multiplier)",
        "pair = (event.sample_rate, 2 * event.noise_multiplier)",
    ),
    "sample rate halved in the account": (ACCOUNTING, "pair = (event.sample_rate, ", "pair = (event.sample_rate / 2, "),
    "equal events counted once": (ACCOUNTING, "steps.get(pair, 0) + event.steps", "event.steps"),
    "only the last event counted": (
        ACCOUNTING,
        "for (rate, sigma), n in sorted(steps.items()))",
        "for (rate, sigma), n in sorted(steps.items())[:1])",
    ),
    "two pools in one account": (ACCOUNTING, "if len(pools) > 1:", "if len(pools) > 3:"),
    "estimate instead of upper bound": (ACCOUNTING, "delta_error, eps_error)[2])", "delta_error, eps_error)[1])"),
    "lower bound instead of upper": (ACCOUNTING, "delta_error, eps_error)[2])", "delta_error, eps_error)[0])"),
    "delta taken a hundred times too large": (
        ACCOUNTING,
        "compute_epsilon(delta - _ROUNDING * steps",
        "compute_epsilon(100 * delta - _ROUNDING * steps",
    ),
    "domain cut short": (ACCOUNTING, "math.ceil((length + 3 + eps_error) / mesh)", "math.ceil(length / 4 / mesh)"),
    "loss under the wrong distribution": (ACCOUNTING, "(np.exp(loss) if self.sign > 0 else 1.0)", "1.0"),
    "patient added: wrong side": (
        ACCOUNTING,
        "np.asarray(ndtr(-x / self.sigma))",
        "np.asarray(ndtr((1 - x) / self.sigma))",
    ),
    "no guard": (ACCOUNTING, "    if not epsilon <= EPSILON_LIMIT:\n", "    if not epsilon <= 1e9:\n"),
    "calibration rounded down": (ACCOUNTING, "    return event(high)\n", "    return event(low)\n"),
    "calibration by Renyi alone": (ACCOUNTING, "    while high - low > 1:\n", "    while high - low > 200:\n"),
    "events beside forgotten": (
        ACCOUNTING,
        "max(_epsilon(_merged([event(place), *beside]), delta), 1e-9)",
        "max(_epsilon(_merged([event(place)]), delta), 1e-9)",
    ),
    "release rounded down": (ACCOUNTING, "_multiplier(_place(sigma))", "_multiplier(_place(sigma) - 1)"),
    "releases not multiplied": (ACCOUNTING, "sigma = math.sqrt(releases) /", "sigma = 1 /"),
    "sites forgotten in noise over signal": (
        ACCOUNTING,
        "1 if shared_noise else sites",
        "sites if shared_noise else 1",
    ),
    "mu without its rate": (
        ACCOUNTING,
        "return event.sample_rate * math.sqrt(event.steps)",
        "return math.sqrt(event.steps)",
    ),
    "spare rounds forgotten": (EVENT, "steps = (rounds + spare_rounds) * local_steps", "steps = rounds * local_steps"),
    "NaN let through": (
        EVENT,
        'or not least <= value <= most:\n        raise AccountingError(f"{name} = {value!r}: a number',
        'or value < least or value > most:\n        raise AccountingError(f"{name} = {value!r}: a number',
    ),
    "delta of a whole patient": (EVENT, "most = 1 / (10 * nominal_patients)", "most = 1 / nominal_patients"),
    "another histogram than agreed": (EVENT, "HISTOGRAM_NOISE_MULTIPLIER = 10.0", "HISTOGRAM_NOISE_MULTIPLIER = 9.0"),
    "limit unchecked": (BUDGET, "if not 0 < self.limit <= most * (1 + 1e-12):", "if not 0 < self.limit:"),
    "largest instead of sum": (
        BUDGET,
        "sum((event.steps * self._step(event) for event in events), Fraction(0))",
        "max((event.steps * self._step(event) for event in events), default=Fraction(0))",
    ),
    "steps not multiplied": (BUDGET, "sum((event.steps * self._step(event) for", "sum((self._step(event) for"),
    "spent forgotten": (BUDGET, "return Fraction(self.limit) - self.cost(spent)", "return Fraction(self.limit)"),
    "cost rounded": (
        BUDGET,
        "return Fraction(_rdp(event.sample_rate, event.noise_multiplier, self.order))",
        "return Fraction(round(_rdp(event.sample_rate, event.noise_multiplier, self.order), 4))",
    ),
    "wrong order": (
        BUDGET,
        "order = best_order(epsilon=epsilon, delta=delta)",
        "order = 2 * best_order(epsilon=epsilon, delta=delta)",
    ),
    "one more than fits": (BUDGET, "return self.cost(events) <= self.left(spent)", "return self.left(spent) > 0"),
    "sample rate squared": (
        RENYI,
        "growth = order * np.logaddexp(",
        "sample_rate *= sample_rate\n    growth = order * np.logaddexp(",
    ),
    "moment of the wrong order": (
        RENYI,
        "return moment / (order - 1) * (1 + _ALLOWANCE)",
        "return moment / order * (1 + _ALLOWANCE)",
    ),
    "allowance dropped": (RENYI, "(order - 1) * (1 + _ALLOWANCE)", "(order - 1)"),
    "replace-one divergence": (
        RENYI,
        "return order / (2 * noise_multiplier**2)",
        "return 2 * order / noise_multiplier**2",
    ),
    "conversion without its last term": (
        RENYI,
        "/ (order - 1) - math.log1p(-1 / order)",
        "/ (order - 1) - 2 * math.log1p(-1 / order)",
    ),
    "delta squared in the conversion": (
        RENYI,
        "epsilon + (math.log(delta) + math.log(order))",
        "epsilon + (0.5 * math.log(delta) + math.log(order))",
    ),
}
PLANTED = {
    name: (file, old, new, ["tests/common/test_accounting.py", "-k", WORDS[file]])
    for name, (file, old, new) in FAULTS.items()
}

test_a_planted_fault_is_noticed = noticed(PLANTED)
test_each_fault_has_its_one_place = placed(PLANTED)
test_without_a_fault_the_tests_pass = unharmed(PLANTED)
