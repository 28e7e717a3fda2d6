"""What every test runs under: no network, one thread, the same examples each time."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it, and so would the tests

# set before torch, tokenizers and huggingface_hub are first imported, and inherited by the commands that tests start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of task folders, $ANABRANCH_DATA or ../shared/data/text beside the repository; skips where absent."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "text"
    root = Path(os.environ.get("ANABRANCH_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no task folders at {root}: set ANABRANCH_DATA")
    return root
