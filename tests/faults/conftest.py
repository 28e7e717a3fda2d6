import time
from pathlib import Path

import pytest
import yaml
from engine import _tiny as tiny
from faults import _soak
from faults._runs import NAMES, STEPS, said, typed


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> tuple[Path, Path, float]:
    """A plan, the run of it that nothing disturbed, and its seconds."""
    place = tmp_path_factory.mktemp("whole")
    for kind in NAMES:
        tiny.folder(place / "data" / kind, kind, {"train": 40, "valid": 12, "test": 12})
    plan = place / "plan.yaml"
    plan.write_text(yaml.safe_dump(tiny.plan(tiny.home() / "bert", place / "data", NAMES)))
    tiny.fit(plan, place / "warm", steps=STEPS)  # loads what every forked fit then has
    begun = time.perf_counter()
    assert _soak.forked(typed("fit", plan, "--out", place / "run"), place / "said") == 0, said(place)
    return plan, place / "run", time.perf_counter() - begun
