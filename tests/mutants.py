"""Planted faults: whether the tests notice when one piece of a module's text is another.

A file of faults names each one and says `test_… = noticed(FAULTS)`, and the same with `placed` and `unharmed`.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from preloaded import OUTPUT, ROOMS, Preloaded

ROOT = Path(__file__).parent.parent
Fault = tuple[str, str, str, Sequence[str]]  # file, its text, the fault, arguments of pytest (paths from the root)

OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "hypothesispytest", "--hypothesis-seed=0")


def survives(file: str, old: str, new: str, tests: Sequence[str]) -> bool:
    """Whether all `tests` (arguments of pytest, paths from the root) pass although `old` in `file` became `new`.

    Everything happens in a copy of all rooms, the tests and pyproject.toml, which comes first on the path: every module
    of ours is loaded anew from there. Slow and statistical tests are left out, and hypothesis draws the same examples
    each time.

    Raises ValueError unless `old` is in the file exactly once, RuntimeError when the tests could not be run at all (a
    fault that breaks the import is no fault to look for) or pytest ran none.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{file}: {text.count(old)} places hold {old!r}, not one")
    return passes(tests, {file: text.replace(old, new)})


def passes(tests: Sequence[str], changed: Mapping[str, str]) -> bool:
    """Whether all tests pass in a copy in which these files have another text. Raises RuntimeError as `survives`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copied(folder)
        for file, text in changed.items():
            path = folder / file
            path.write_text(text, encoding="utf-8")
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
                compiled.unlink()
        options = [*OPTIONS, f"--basetemp={folder / 'tmp'}"]
        status = preloaded().run(folder, [*options, *tests])
        said = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
    if status not in (0, 1):
        raise RuntimeError(f"{', '.join(changed)}: the tests can't run (exit status {status}):\n{said[-4000:]}")
    return status == 0


def copied(folder: Path) -> None:
    """Copy what the tests need; compiled modules too, which Python takes only for the very file that they came from."""
    for room in (*ROOMS, "tests"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns(".hypothesis", "*.tmp", "*.pyc.*"))
    shutil.copy(ROOT / "pyproject.toml", folder)


@cache
def preloaded() -> Preloaded:
    """This test process's own."""
    return Preloaded()


def noticed(faults: Mapping[str, Fault]) -> Callable[[str], None]:
    """The test that each of these faults makes a test fail."""

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", faults)
    def test(fault: str) -> None:
        assert not survives(*faults[fault])

    return test


def placed(faults: Mapping[str, Fault]) -> Callable[[], None]:
    """The test that each of these faults has its one place, so that a change of the text is seen at once."""

    def test() -> None:
        texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _, _, _ in faults.values()}
        assert [name for name, (file, old, _, _) in faults.items() if texts[file].count(old) != 1] == []

    return test


def unharmed(faults: Mapping[str, Fault]) -> Callable[[], None]:
    """The test that without a fault all these tests pass where faults are planted: else each fault would be noticed."""

    @pytest.mark.slow
    def test() -> None:
        all_tests = {tuple(tests) for _, _, _, tests in faults.values()}
        chosen = {tests for tests in all_tests if any(argument.startswith("-") for argument in tests)}
        together = tuple(sorted({argument for tests in all_tests - chosen for argument in tests}))
        for tests in [*chosen, together]:
            assert not tests or passes(tests, {})

    return test
