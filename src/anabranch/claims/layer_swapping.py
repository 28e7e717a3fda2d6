"""Layer swapping on a GPT of six blocks and width 64 over two made-up languages: the same twenty numbers under other words, the
same signs. f learns to copy and to count on in A, and in half of the rows says some numbers in B, of which it knows half the
words. The skill expert learns in A what comes after the larger of two numbers, from four fifths of the pairs; the language expert
copies and counts in B alone; all of f tuned. Exact match of the skill in B, where nobody was taught it, on all pairs: against
either expert, mean, sum and the reverse swap. Beside it f and each expert at what it was taught, the skill on pairs left out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from anabranch.core.site import find
from anabranch.merge._look import Look
from anabranch.merge.layer_swapping import layer_swapping

holds = ("swap > skill", "swap > language", "swap > soup", "swap > reverse")
NUMBERS, BLOCKS, BATCH = 20, 6, 128
COPY, IS, COUNT, NEXT = range(NUMBERS, NUMBERS + 4)  # signs of both languages; B's words for the numbers come behind them


def claim(lab: Any, steps: tuple[int, int, int] = (800, 800, 400)) -> dict[str, dict[str, float]]:
    torch.manual_seed(lab.seed)
    rng = lab.rng
    words = torch.cat([torch.randperm(NUMBERS, generator=rng) + NEXT + 1, torch.arange(NUMBERS, NEXT + 1)])
    known = torch.cat([torch.randperm(NUMBERS, generator=rng) < NUMBERS // 2, torch.zeros(4, dtype=torch.bool)])
    pairs = torch.cartesian_prod(torch.arange(NUMBERS), torch.arange(NUMBERS))
    pairs = pairs[torch.randperm(len(pairs), generator=rng)]
    taught, left = pairs[len(pairs) // 5 :], pairs[: len(pairs) // 5]
    config = GPT2Config(vocab_size=2 * NUMBERS + 4, n_positions=8, n_embd=64, n_layer=BLOCKS, n_head=4, tie_word_embeddings=False,
                        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    f = GPT2LMHeadModel(config)

    def half(n: int) -> Tensor:
        """Every other row in A alone; in the others a known number is said in B as often as not."""
        rows = sentences(n, rng)
        turns = known[rows] & (torch.rand(rows.shape, generator=rng) < 0.5) & (torch.arange(n) % 2 == 0)[:, None]
        return torch.where(turns, words[rows], rows)

    tune(f, half, steps[0], 2e-3)
    base = {n: t.clone() for n, t in f.state_dict().items()}
    found: list[dict[str, Tensor]] = []
    for draw, count in (
        (lambda n: skill(taught[torch.randint(len(taught), (n,), generator=rng)]), steps[1]),
        (lambda n: words[sentences(n, rng)], steps[2]),
    ):
        f.load_state_dict(base)
        tune(f, draw, count, 1e-3)
        found.append({n: f.state_dict()[n] - t for n, t in base.items()})
    f.load_state_dict(base)
    sites = [s for s in find(f, "*") if s.kind != "module"]
    trees = [{s.key: {n: t for n, t in zip("Wb", s.weight(f, state), strict=True) if t is not None} for s in sites}
             for state in found]  # fmt: skip

    def none(*_: Any) -> Tensor:
        return torch.zeros(2)

    look = Look(none, none, none, trees.__getitem__, f, sites, rng)
    tests = {
        "skill in A, pairs left out": skill(left), "skill in B": words[skill(pairs)],
        "sentences in B": words[sentences(1000, torch.Generator().manual_seed(7))],
    }  # fmt: skip

    def measure(tree: Any, *cases: str) -> dict[str, float]:
        state = dict(base)
        for site in sites:
            site.put(state, tree[site.key].get("W"), tree[site.key].get("b"))
        f.load_state_dict(state)
        with torch.no_grad():
            return {c: float((f(t[:, :-1]).logits[:, -1].argmax(-1) == t[:, -1]).float().mean())
                    for c, t in tests.items() if c in cases}  # fmt: skip

    def mixed(scale: float) -> Any:
        return {s: {n: scale * (t + trees[1][s][n]) for n, t in p.items()} for s, p in trees[0].items()}

    return {
        "skill_untaught": measure(mixed(0.0), "skill in A, pairs left out"),
        "language_untaught": measure(mixed(0.0), "sentences in B"),
        "skill_taught": measure(trees[0], "skill in A, pairs left out"),
        "language_taught": measure(trees[1], "sentences in B"),
        "swap": measure(layer_swapping(trees, look, bottom=1, top=1), "skill in B"),
        "skill": measure(trees[0], "skill in B"),
        "language": measure(trees[1], "skill in B"),
        "soup": measure(mixed(0.5), "skill in B"),
        "task_arithmetic": measure(mixed(1.0), "skill in B"),
        "reverse": measure(layer_swapping(trees, look, skill=2, bottom=1, top=1), "skill in B"),
    }


def skill(pairs: Tensor) -> Tensor:
    """[n, 2] -> rows [n, 5]: "next a, b is" one more than the larger; after the last number comes the first."""
    a, b = pairs.T
    return torch.stack([torch.full_like(a, NEXT), a, b, torch.full_like(a, IS), (torch.maximum(a, b) + 1) % NUMBERS], 1)


def sentences(n: int, rng: torch.Generator) -> Tensor:
    """Rows [n, 5] of two forms: "copy a, b is a", and a number counted on."""
    a, b = torch.randint(NUMBERS, (2, n), generator=rng)
    copy = torch.stack([torch.full_like(a, COPY), a, b, torch.full_like(a, IS), a], 1)
    count = torch.stack([torch.full_like(a, COUNT), *((a + i) % NUMBERS for i in range(4))], 1)
    return torch.where((torch.rand(n, generator=rng) < 0.5)[:, None], copy, count)


def tune(f: nn.Module, draw: Any, steps: int, lr: float) -> None:
    adam = torch.optim.AdamW(f.parameters(), lr, weight_decay=0.01)
    for step in range(steps):
        rows = draw(BATCH)
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, 20 * (step + 1) / steps) * (1 - step / steps)
        loss = cross_entropy(f(rows[:, :-1]).logits[:, -1], rows[:, -1])
        adam.zero_grad()
        loss.backward()
        adam.step()
