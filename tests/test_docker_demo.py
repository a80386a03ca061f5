"""docker/demo.compose.yaml, its services as processes of this machine in the order and with the words of the file."""

import os
from pathlib import Path

import pytest
from compose_cases import here

from server.events import effective, read
from simulations.loopback import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.soak]


def test_the_demo_trains_with_four_hospitals(tmp_path: Path) -> None:
    with here("demo", tmp_path, first=free_ports(12)) as demo:
        demo.bring_up(seconds=1200)
        run = demo.volume("federation") / "runs" / "demo"
        rounds = [event for event in effective(read(run / "events.jsonl")) if event["event"] == "round"]
        assert [len(event["participants"]) for event in rounds][-1] == 4
        assert (run / "model.safetensors").stat().st_size and (run / "report.html").stat().st_size
        for number in range(1, 5):
            handed = list(demo.volume(f"handed-{number}").iterdir())
            assert len(handed) == 7 and {path.stat().st_mode & 0o777 for path in handed} == {0o440}
            assert not any("identity" in path.name or "patient" in path.name for path in handed)
            assert os.listdir(demo.volume(f"node-logs-{number}")) == ["supernode.log"]
