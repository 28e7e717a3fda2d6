"""What every test runs under: no network, one thread, the same examples each time."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it, and so would the tests

# set before torch, tokenizers and huggingface_hub are first imported, and inherited by the commands that tests start
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch stays at one thread: threads that it has started hang the processes that other tests fork."""
    yield
    torch = sys.modules.get("torch")
    assert torch is None or torch.get_num_threads() == 1, "the test left torch with several threads; put set_num_threads back"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of task folders, $ANABRANCH_DATA or ../shared/data/text beside the repository; skips where absent."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "text"
    root = Path(os.environ.get("ANABRANCH_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no task folders at {root}: set ANABRANCH_DATA")
    return root
