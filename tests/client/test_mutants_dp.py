"""Faults planted into clip, noise, sampler and gradients: each must be noticed by a test of its own room."""

from mutants import noticed, placed, unharmed

CLIP, NOISE = ("tests/common/test_clip.py",), ("tests/common/test_noise.py",)
SAMPLER, STEP = ("tests/client/test_dp_sampler.py",), ("tests/client/test_dp_step.py",)
TRAPS = ("tests/client/test_private_traps.py",)
GRADIENTS, SELFTEST = ("tests/client/test_dp_gradients.py",), ("tests/client/test_dp_selftest.py",)
STREAM = ("tests/common/test_stream.py",)

FAULTS = {
    "no clip": ("common/clip.py", "np.minimum(1.0, np.divide(", "np.maximum(1.0, 0 * np.divide(", CLIP),
    "no slack": (
        "common/clip.py",
        "np.asarray(bounds.clip_norms) * (1 - SLACK)",
        "np.asarray(bounds.clip_norms)",
        CLIP,
    ),
    "weight before the clip": ("common/clip.py", "scale * weights[:, None]", "np.minimum(1, scale)", CLIP),
    "not a number passes": ("common/clip.py", "np.isfinite(norms)", "np.ones_like(norms, bool)", CLIP),
    "sensitivity of one group": ("common/clip.py", "math.hypot(*self.clip_norms)", "max(self.clip_norms)", CLIP),
    "rounded down": ("common/clip.py", "np.rint(total / bounds.grid)", "np.floor(total / bounds.grid)", CLIP),
    "no noise added": ("common/clip.py", "(exact.steps + noise)", "(exact.steps + 0 * noise)", CLIP),
    "noise added as floats": (
        "common/clip.py",
        "((exact.steps + noise) * (exact.bounds.grid / divisor)).astype(np.float32)",
        "(exact.steps * (exact.bounds.grid / divisor)).astype(np.float32)"
        " + (noise * (exact.bounds.grid / divisor)).astype(np.float32)",
        CLIP,
    ),
    "noise of half the size": ("common/noise.py", ".mul_(standard_deviation)", ".mul_(standard_deviation / 2)", NOISE),
    "noise one percent short": (
        "common/noise.py",
        ".mul_(standard_deviation)",
        ".mul_(standard_deviation * 0.99)",
        NOISE,
    ),
    "half a turn": ("common/noise.py", "mul_(2 * math.pi)", "mul_(math.pi)", NOISE),
    "logarithm of zero": ("common/noise.py", "(1 - numbers[:pairs])", "(numbers[:pairs] * 1)", NOISE),
    "each chunk the same": ("common/noise.py", "start=start))", "start=0))", NOISE),
    "32 bits of uniform": ("common/noise.py", "(of >> np.uint64(11))", "(of >> np.uint64(32) << np.uint64(21))", NOISE),
    "key from a seed": ("common/noise.py", "os.urandom(KEY_BYTES)", "bytes(KEY_BYTES)", NOISE),
    "big-endian words": ("common/crypto/stream.py", ', dtype="<u8").astype', ', dtype=">u8").astype', STREAM),
    "sampled without chance": (
        "client/dp/sampler.py",
        "uniform(bits[:count]) < sample_rate * shares",
        "np.arange(count) < round(count * sample_rate)",
        SAMPLER,
    ),
    "truths of another form pass": (
        "client/dp/microbatch.py",
        "_form(batch, count) == _form(patients.blank, 1)",
        "_form(batch, count)[:1] == _form(patients.blank, 1)[:1]",
        SAMPLER,
    ),
    "shares forgotten": ("client/dp/sampler.py", "< sample_rate * shares", "< sample_rate", SAMPLER),
    "keys by order of drawing": (
        "client/dp/sampler.py",
        "keys[position].tobytes()) for position in chosen)",
        "keys[place].tobytes()) for place, position in enumerate(chosen))",
        SAMPLER,
    ),
    "always the first images": (
        "client/dp/sampler.py",
        ".permutation(images)[:most]",
        ".permutation(most)[:images]",
        SAMPLER,
    ),
    "all images of a patient": ("client/dp/sampler.py", "permutation(images)[:most]", "permutation(images)", STEP),
    "sum in the place of the mean": (
        "client/dp/microbatch.py",
        "view_weights[segment] = 1 / count",
        "view_weights[segment] = 1",
        SAMPLER,
    ),
    "no blank for an empty draw": ("client/dp/microbatch.py", "if waiting or not packed:", "if waiting:", SAMPLER),
    "last micro-batch not filled": ("client/dp/microbatch.py", "[blank] * (slots - ends[-1])", "[blank] * 0", SAMPLER),
    "one key for patients and noise": (
        "client/dp/step.py",
        "patients_key, noise_key = keys(), keys()",
        "patients_key = noise_key = keys()",
        STEP,
    ),
    "noise once per order": (
        "client/dp/step.py",
        "noised_gradient(exact, plan, key=noise_key), before",
        "noised_gradient(exact, plan, key=bytes(32)), before",
        STEP,
    ),
    "divided by those drawn": (
        "client/dp/step.py",
        "return self.sample_rate * self.nominal_patients",
        "return self.nominal_patients",
        STEP,
    ),
    "noise of the clip norm squared": (
        "client/dp/step.py",
        "return self.noise_multiplier * clip.GRID_STEPS",
        "return self.noise_multiplier * clip.GRID_STEPS * self.bounds.sensitivity",
        STEP,
    ),
    "an error stops the step": (
        "client/dp/step.py",
        "    except Exception:\n",
        "    except KeyboardInterrupt:\n",
        STEP,
    ),
    "clipped per image": (
        "client/dp/layers.py",
        "tape = micro.batch.images.device, Tape(micro.segments, micro.slots, micro.most)",
        "tape = micro.batch.images.device, Tape(\n"
        "        [slice(i, i + 1) for i in range(len(micro.segments))], micro.slots, 1)",
        GRADIENTS,
    ),
    "the kernel follows from who is there": (
        "client/dp/layers.py",
        "if tape.most > 2:",
        "if tape.most > 2 or len(tape.segments) < 3:",
        GRADIENTS,
    ),
    "rows that cancel stay in the product": (
        "client/dp/layers.py",
        "cancels = math.prod(lengths) > _CANCELLATION**2",
        "cancels = 0 > 1 + 0",
        GRADIENTS,
    ),
    "rows that cancel are added twice": (
        "client/dp/layers.py",
        "0 if position in apart else scale[position]",
        "scale[position]",
        GRADIENTS,
    ),
    "a factor that vanishes": (
        "client/dp/layers.py",
        "squared_norms(rows[:, 0].double())",
        "squared_norms(rows[:, 0])",
        GRADIENTS,
    ),
    "an error changes the others' way": (
        "client/dp/step.py",
        "        if not culprits and way is not one_by_one:",
        "        if way is not one_by_one:",
        STEP,
    ),
    "pools are set aside one by one": (
        "client/ledger.py",
        "            state = apply(state, self._chain.anchor.sequence + len(records), records[-1])\n",
        "            pass\n",
        TRAPS,
    ),
    "studies from before the ledger are forgotten": (
        "client/private.py",
        "            own.unprotected(study)\n        yield own",
        "            pass\n        yield own",
        TRAPS,
    ),
    "a lost file ends the promise": (
        "client/private.py",
        "sorted(_unprotected(site) - own.state.studies)",
        "sorted(_unprotected(site))",
        TRAPS,
    ),
    "the audit log's memory is not asked": (
        "client/private.py",
        "remembered = [audit.ledger_anchor(site)]",
        "remembered = [None]",
        TRAPS,
    ),
    "a study in the clear goes on beside a new ledger": (
        "client/app.py",
        "if known.privacy is None:",
        "if False:",
        TRAPS,
    ),
    "one patient's missing image is everybody's": (
        "client/dataset.py",
        "cache.ensure(rows, each_alone=alone)",
        "cache.ensure(rows)",
        TRAPS,
    ),
    "boxes without end": ("client/dp/patients.py", "len(one.boxes) > MOST_BOXES", "len(one.boxes) < 0", TRAPS),
    "norm without the bias": (
        "client/dp/layers.py",
        "squares[:, group] += _squares(tape, parameter)",
        "squares[:, group] += _squares(tape, parameter) * (parameter.dim() > 1)",
        GRADIENTS,
    ),
    "second call of a layer forgotten": (
        "client/dp/layers.py",
        "self.each[parameter] + flat if parameter in self.each else flat",
        "flat",
        GRADIENTS,
    ),
    "zero times infinity": ("client/dp/layers.py", "each, scale = each[used], scale[used]", "pass", GRADIENTS),
    "long rows scaled by what float32 has no digits for": (
        "client/dp/layers.py",
        "_LONGEST = 2.0**40",
        "_LONGEST = 2.0**200",
        GRADIENTS,
    ),
    "long rows without their gradient": (
        "client/dp/layers.py",
        "if cancels or not max(lengths) <= _LONGEST**2:",
        "if cancels:",
        GRADIENTS,
    ),
    "infinite rows kept": ("client/dp/layers.py", "torch.where(shown, inputs, 0)", "inputs", GRADIENTS),
    "norm of images in the place of patients": (
        "client/dp/layers.py",
        "((a @ a.t()) * (b @ b.t())).sum()",
        "((a @ a.t()) * (b @ b.t())).diagonal().sum()",
        GRADIENTS,
    ),
    "reduced precision": ("client/dp/gradients.py", 'torch.set_float32_matmul_precision("highest")', "pass", GRADIENTS),
    "padding modes pass": ("client/dp/step.py", '!= "zeros"', '== "none"', GRADIENTS),
    "self-test passes all": (
        "client/dp/selftest.py",
        "                if not _close(own, contributions[i]):",
        "                if False:",
        SELFTEST,
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
