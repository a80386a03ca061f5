"""Faults planted into encoding, rounding, streams and sums: each must be noticed by a test of its own room."""

from mutants import noticed, placed, unharmed

MASKING, STREAM = ("tests/common/test_masking.py",), ("tests/common/test_stream.py",)

FAULTS = {
    "no bit left free": ("common/lanes.py", "self.lane_bits - 1 - (self", "self.lane_bits - (self", MASKING),
    "bits for one site too few": (
        "common/lanes.py",
        "(self.sites - 1).bit_length()",
        "(self.sites.bit_length() - 1)",
        MASKING,
    ),
    "limit one higher": ("common/lanes.py", "int(2 ** (self.bits - 1)) - 1", "int(2 ** (self.bits - 1))", MASKING),
    "digest without the sites": (
        "common/lanes.py",
        "self.lanes, self.sites, self.range_)",
        "self.lanes, 0, self.range_)",
        MASKING,
    ),
    "a range of nothing passes": ("common/lanes.py", "2.0**-40 <= self.range_", "0 <= self.range_", MASKING),
    "same value in two blocks": (
        "common/lanes.py",
        "encoding.places(lane, begin, begin + len(block))",
        "encoding.places(lane, first, first + len(block))",
        MASKING,
    ),
    "lanes from what was there": ("common/lanes.py", "        block[:] = 0\n", "", MASKING),
    "last lane without the bits above": ("common/lanes.py", "if lane < encoding.lanes - 1:", "if True:", MASKING),
    "second part forgotten": ("common/lanes.py", "(middle, words)))", "(middle, middle)))", MASKING),
    "rounded down": ("common/rounding.py", "        bits >>= self._encoding.bits\n", "        bits[:] = 0\n", MASKING),
    "rounded to the nearest": (
        "common/rounding.py",
        "        bits >>= self._encoding.bits\n",
        "        bits[:] = 1 << (self._fraction - 1)\n",
        MASKING,
    ),
    "rounded with half the bits": (
        "common/rounding.py",
        "bits >>= self._encoding.bits\n",
        "bits >>= self._encoding.bits + 1\n",
        MASKING,
    ),
    "lanes rounded alike": ("common/rounding.py", "start=lane * stretch + first // 2", "start=first // 2", MASKING),
    "parts rounded alike": ("common/rounding.py", "lane * stretch + first // 2", "lane * stretch", MASKING),
    "lanes' bits overlap": ("common/rounding.py", "// 4) * 2", "// 8) * 2", MASKING),
    "zero is not exact": (
        "common/rounding.py",
        "encoding.limit << self._fraction\n        integers",
        "(encoding.limit << self._fraction) + 1\n        integers",
        MASKING,
    ),
    "not clipped": (
        "common/rounding.py",
        "            np.clip(scaled, -self._most, self._most, out=scaled)\n",
        "",
        MASKING,
    ),
    "saturation below not counted": (
        "common/rounding.py",
        "np.abs(scaled) > self._most",
        "scaled > self._most",
        MASKING,
    ),
    "the end of the range saturates": (
        "common/rounding.py",
        "scale if scale * encoding.range_ <= self._most else math.nextafter(scale, 0)",
        "math.nextafter(scale, math.inf)",
        MASKING,
    ),
    "not a number passes": (
        "common/rounding.py",
        "not -math.inf < lowest <= highest < math.inf",
        "lowest == -math.inf or highest == math.inf",
        MASKING,
    ),
    "infinity passes": ("common/rounding.py", "<= highest < math.inf", "<= highest", MASKING),
    "saturation of one part": ("common/masking.py", "sum(in_parts(part,", "max(in_parts(part,", MASKING),
    "saturation not sent": (
        "common/masking.py",
        "    _finish(words, wide, saturated, encoding)\n    return words, saturated",
        "    _finish(words, wide, 0, encoding)\n    return words, saturated",
        MASKING,
    ),
    "pack takes any integer": ("common/masking.py", "(some > encoding.limit)).any()", "(some > 2**62)).any()", MASKING),
    "pack without the offset": ("common/masking.py", "(some + encoding.limit).view", "(some + 0).view", MASKING),
    "signs ignored": ("common/masking.py", "np.add if sign > 0 else np.subtract", "np.add", MASKING),
    "parts masked alike": ("common/masking.py", "Stream(key, start=first)", "Stream(key, start=0)", MASKING),
    "blocks masked alike": (
        "common/masking.py",
        "            for stream, combine in opened:\n",
        "            for (key, _), (_, combine) in zip(streams, opened):\n                stream = Stream(key)\n",
        MASKING,
    ),
    "exclusive or in the place of the sum": (
        "common/masking.py",
        "combine(block, random",
        "np.bitwise_xor(block, random",
        MASKING,
    ),
    "only the first mask": (
        "common/masking.py",
        "for key, sign in streams]\n        random",
        "for key, sign in streams[:1]]\n        random",
        MASKING,
    ),
    "the same key twice": ("common/masking.py", "!= len(streams)", "> len(streams)", MASKING),
    "masks added once more": ("common/masking.py", "[(key, -sign) for", "[(key, sign) for", MASKING),
    "another dtype is added": ("common/masking.py", "words.dtype != np.uint64 or words.shape", "words.shape", MASKING),
    "another length is added": ("common/masking.py", " or words.shape != self._sum.shape", "", MASKING),
    "more sites than room": ("common/masking.py", "self._added == self._encoding.sites", "False", MASKING),
    "the last vector is kept": (
        "common/masking.py",
        "        self._added += 1\n",
        "        self._added += 1\n        self._last = words\n",
        MASKING,
    ),
    "the sum is the first vector": (
        "common/masking.py",
        "self._sum += words",
        "self._sum = words if not self._added else self._sum + words",
        MASKING,
    ),
    "lanes not checked": (
        "common/masking.py",
        "(integers[:count] > sites * 2 * encoding.limit).any()",
        "False",
        MASKING,
    ),
    "lanes checked for all sites": (
        "common/masking.py",
        "> sites * 2 * encoding.limit",
        "> encoding.sites * 2 * encoding.limit",
        MASKING,
    ),
    "bits behind the values not checked": ("common/masking.py", " or integers[count:].any()", "", MASKING),
    "check words not checked": (
        "common/masking.py",
        "tail[encoding.wide :].tolist() != [sites * check for check in CHECKS]",
        "False",
        MASKING,
    ),
    "one check word": (
        "common/masking.py",
        "tail[encoding.wide :].tolist() != [sites * check for check in CHECKS]",
        "tail[encoding.wide] != sites",
        MASKING,
    ),
    "wide sums not checked": ("common/masking.py", "(wide < -most) | (wide > most)", "np.abs(wide) > most", MASKING),
    "offset of one site": ("common/masking.py", "sites * encoding.limit, out", "encoding.limit, out", MASKING),
    "wide fields cut off": (
        "common/masking.py",
        "np.rint(fields * _WIDE_ONE)",
        "np.floor(fields * _WIDE_ONE)",
        MASKING,
    ),
    "wide not a number passes": (
        "common/masking.py",
        "if not (np.abs(fields) < WIDE_LIMIT).all()",
        "if (np.abs(fields) >= WIDE_LIMIT).any()",
        MASKING,
    ),
    "zeros read once": (
        "common/crypto/stream.py",
        "range(0, len(target), len(_ZEROS))",
        "range(0, min(len(target), 1), len(_ZEROS))",
        STREAM,
    ),
    "big-endian words are read": (
        "common/crypto/stream.py",
        'out.dtype != np.dtype("<u8")',
        "out.itemsize != 8",
        STREAM,
    ),
    "plain text is not zeros": (
        "common/crypto/stream.py",
        "memoryview(bytes(2**19))",
        "memoryview(bytes([1]) * 2**19)",
        MASKING,
    ),
}

test_a_planted_fault_is_noticed = noticed(FAULTS)
test_each_fault_has_its_one_place = placed(FAULTS)
test_without_a_fault_the_tests_pass = unharmed(FAULTS)
