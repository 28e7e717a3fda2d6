"""Small pictures for the laboratory, and the two small networks that see them: drawn shapes, scikit-learn's digits, CNN, ViT."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anabranch.engine._loop import drawn, train

SIDE = 16  # pixels of a picture's side, grey, about 0 to 1
KINDS = {  # corners, how far out the middle of an edge lies (the corner is at 1), radius of a hole
    "circle": (36, math.cos(math.pi / 36), 0.0),
    "triangle": (3, 0.5, 0.0),
    "square": (4, math.cos(math.pi / 4), 0.0),
    "star": (5, 0.4, 0.0),
    "cross": (4, 0.3, 0.0),
    "ring": (36, math.cos(math.pi / 36), 0.6),
}


class Split(NamedTuple):
    """Rows to learn from and rows to be tested on; y are classes (long), or numbers (float) for a regression."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def divided(x: np.ndarray, y: np.ndarray, seed: int) -> Split:
    """A fifth for the test, drawn by ``seed``, with every class in its share."""
    from sklearn.model_selection import train_test_split

    classes = y.dtype.kind in "iu"
    x0, x1, y0, y1 = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y if classes else None)
    kind = torch.long if classes else torch.float32
    return Split(*(torch.tensor(a, dtype=t) for a, t in ((x0, torch.float32), (y0, kind), (x1, torch.float32), (y1, kind))))


def digits(seed: int = 0) -> Split:
    """scikit-learn's 1,797 handwritten digits, each pixel twice as wide and high: x [n, 1, 16, 16] in [0, 1], ten classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return divided(np.kron(x.reshape(-1, 1, 8, 8) / 16, np.ones((2, 2))), y, seed)


def shapes(seed: int = 0, rows: int = 3000, noise: float = 0.15) -> Split:
    """The ``KINDS`` at random places, sizes, angles and greys, with noise: x [n, 1, 16, 16], six classes in that order."""
    rng = np.random.default_rng(seed)
    y = rng.integers(len(KINDS), size=rows)
    radius = rng.uniform(4.0, 7.0, rows)
    centre = SIDE / 2 + rng.uniform(-1, 1, (rows, 2)) * (SIDE / 2 - radius)[:, None]
    grey = rng.uniform(0.5, 1.0, (rows, 1, 1))
    x = grey * draw([list(KINDS)[k] for k in y], centre, radius, rng.uniform(0, 2 * math.pi, rows))
    return divided((x + noise * rng.standard_normal(x.shape))[:, None], y, seed)


def draw(kinds: Sequence[str], centre: np.ndarray, radius: np.ndarray, angle: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Pictures [n, side, side] in [0, 1], one shape each: names in ``KINDS``, centre [n, 2] and radius [n] in pixels.

    In polar coordinates an edge from a corner (1, 0) to its middle (q, beta) is
    r(phi) = q sin(beta) / (q sin(beta - phi) + sin(phi)); a pixel is as bright as it lies inside, soft over one pixel.
    """
    corners, waist, hole = np.array([KINDS[k] for k in kinds]).T[:, :, None, None]
    at = np.arange(side) + 0.5
    dy, dx = at[:, None] - centre[:, 1, None, None], at[None, :] - centre[:, 0, None, None]
    beta = np.pi / corners
    phi = np.abs((np.arctan2(dy, dx) - angle[:, None, None] + beta) % (2 * beta) - beta)
    edge = waist * np.sin(beta) / (waist * np.sin(beta - phi) + np.sin(phi))
    size, distance = radius[:, None, None], np.hypot(dx, dy)
    outer = np.clip(edge * size - distance + 0.5, 0, 1)
    return outer * np.where(hole > 0, np.clip(distance - hole * size + 0.5, 0, 1), 1.0)


class Cnn(nn.Module):
    """Three convolutions and a linear head: pixel_values [n, 1, 16, 16] -> an output with ``logits`` [n, classes], as a ViT's.

    ``body`` gives the vectors [n, d] that ``head`` reads.
    """

    def __init__(self, classes: int, d: int) -> None:
        super().__init__()
        self.shape = {"classes": classes, "d": d}
        widths = [1, d // 4, d // 2, d]
        stages = [part for a, b in zip(widths, widths[1:], strict=False) for part in _stage(a, b)]
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(d, classes)

    def forward(self, pixel_values: Tensor) -> Any:
        from transformers.modeling_outputs import ImageClassifierOutput

        return ImageClassifierOutput(logits=self.head(self.body(pixel_values)))


def _stage(a: int, b: int) -> list[nn.Module]:
    """Groups are normalised, not batches: a row's answer then does not depend on its companions."""
    return [nn.Conv2d(a, b, 3, 2 if a > 1 else 1, 1), nn.GroupNorm(4, b), nn.ReLU()]


def vit(classes: int, d: int, blocks: int, heads: int) -> Any:
    """Patches of 4 x 4 pixels: 16 and a class token."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=d, num_hidden_layers=blocks, num_attention_heads=heads, intermediate_size=4 * d, image_size=SIDE,
        patch_size=4, num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = classes
    return ViTForImageClassification(config)


def fit(net: nn.Module, data: Split, seed: int, steps: int) -> dict[str, float]:
    """Trains a classifier on pictures moved by up to a pixel; loss and test accuracy beside the commonest class's."""
    rng = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        dy, dx = torch.randint(-1, 2, (2,), generator=rng).tolist()
        x = torch.roll(data.x_train[rows], (dy, dx), (2, 3))
        return nn.functional.cross_entropy(net(pixel_values=x).logits, data.y_train[rows])

    final = train(net, drawn(torch.arange(len(data.x_train)), 64, rng), loss, steps, 2e-3)
    net.eval()
    with torch.inference_mode():
        answers = torch.cat([net(pixel_values=x).logits.argmax(-1) for x in data.x_test.split(256)])
    usual = data.y_train.mode().values
    right = {"test accuracy": answers == data.y_test, "commonest class": data.y_test == usual}
    return {"loss": final} | {n: float(r.float().mean()) for n, r in right.items()}
