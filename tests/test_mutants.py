"""Planting faults: what is noticed, what survives, and what is no fault at all."""

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import ROOT, passes, survives
from preloaded import OUTPUT, Preloaded

LANES, TESTS = "common/lanes.py", ["tests/common/test_masking.py", "-k", "digest or sites"]


@pytest.mark.slow
def test_a_fault_is_noticed_and_a_change_without_effect_survives() -> None:
    old = "self.lanes, self.sites, self.range_)"
    assert not survives(LANES, old, "self.lanes, 0, self.range_)", TESTS)
    assert survives(LANES, old, "self.lanes, int(self.sites), self.range_)", TESTS)
    assert "int(self.sites)" not in (ROOT / LANES).read_text(encoding="utf-8")


def test_a_text_that_is_gone_or_there_twice_is_an_error() -> None:
    for old in ("nobody wrote this", "self"):
        with pytest.raises(ValueError, match="places hold"):
            survives(LANES, old, "", TESTS)


@pytest.mark.slow
def test_what_can_not_be_run_is_an_error_and_no_fault_that_was_noticed() -> None:
    with pytest.raises(RuntimeError, match="SyntaxError"):
        survives(LANES, "class Encoding:", "class Encoding(:", TESTS)
    with pytest.raises(RuntimeError, match="exit status 5"):
        passes(["tests/common/test_masking.py", "-k", "nothing_is_called_so"], {})
    with pytest.raises(RuntimeError, match="exit status 4"):
        passes(["tests/common/test_absent.py"], {})


@pytest.mark.slow
def test_each_run_loads_our_modules_anew_from_its_folder_and_nothing_else(tmp_path: Path) -> None:
    """The same process, two texts of one module; a folder that tests modules from elsewhere is an error."""
    process, found = Preloaded(), []
    for number in (1, 2):
        folder = tmp_path / str(number)
        (folder / "common").mkdir(parents=True)
        (folder / "common" / "__init__.py").write_text(f"NUMBER = {number}\n")
        text = "import common, sys\n\ndef test_it():\n    assert common.NUMBER == 2 and 'torch' in sys.modules\n"
        (folder / "test_it.py").write_text(text)
        found.append(process.run(folder, ["-q", "-p", "no:cacheprovider", "test_it.py"]))
    assert found == [1, 0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = f"import sys\nsys.path.insert(0, {str(tmp_path / '2')!r})\nimport common\n\ndef test_it():\n    pass\n"
    (elsewhere / "test_it.py").write_text(text)
    assert process.run(elsewhere, ["-q", "-p", "no:cacheprovider", "test_it.py"]) == 99
    process.end()
    assert "1 passed" in (elsewhere / OUTPUT).read_text(encoding="utf-8")


def test_the_process_ends_with_who_started_it() -> None:
    code = "from preloaded import Preloaded; print(Preloaded()._process.pid)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    for _ in range(600):
        if not Path(f"/proc/{pid}").exists():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError(f"process {pid} is still there")
