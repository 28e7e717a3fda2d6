"""Layer swapping on a GPT of six blocks and width 64 over two made-up languages, the same words under other numbers: f learns to
copy and count on in both, the skill expert sums modulo 20 in language A alone, the language expert copies and counts in
language B alone, all of f tuned. Exact match of sums in B against either expert, mean, sum and the reverse swap."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from anabranch.core.site import find
from anabranch.merge._look import Look
from anabranch.merge.layer_swapping import layer_swapping

holds = ("swap > skill", "swap > language", "swap > soup", "swap > reverse")
WORDS, BLOCKS, BATCH = 24, 6, 128  # 20 numbers and 4 signs; language B has the same words at other ids


def claim(lab: Any, steps: tuple[int, int] = (1200, 400)) -> dict[str, dict[str, float]]:
    torch.manual_seed(lab.seed)
    rng, words = lab.rng, torch.randperm(WORDS, generator=lab.rng) + WORDS
    config = GPT2Config(vocab_size=2 * WORDS, n_positions=8, n_embd=64, n_layer=BLOCKS, n_head=4, tie_word_embeddings=False,
                        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    f = GPT2LMHeadModel(config)

    def spoken(rows: Tensor, language: str) -> Tensor:
        return words[rows] if language == "B" else rows

    def both(n: int) -> Tensor:
        return torch.cat([spoken(language_of(n // 2, rng), "A"), spoken(language_of(n // 2, rng), "B")])

    tune(f, both, steps[0], 2e-3)
    base = {n: t.clone() for n, t in f.state_dict().items()}
    found: list[dict[str, Tensor]] = []
    for draw in (lambda n: spoken(sums(n, rng), "A"), lambda n: spoken(language_of(n, rng), "B")):
        f.load_state_dict(base)
        tune(f, draw, steps[1], 1e-3)
        found.append({n: f.state_dict()[n] - t for n, t in base.items()})
    f.load_state_dict(base)
    sites = [s for s in find(f, "*") if s.kind != "module"]
    trees = [{s.key: {n: t for n, t in zip("Wb", s.weight(f, state), strict=True) if t is not None} for s in sites}
             for state in found]  # fmt: skip

    def none(*_: Any) -> Tensor:
        return torch.zeros(2)

    look = Look(none, none, none, trees.__getitem__, f, sites, rng)

    def measure(tree: Any, language: str = "B") -> dict[str, float]:
        state = dict(base)
        for site in sites:
            site.put(state, tree[site.key].get("W"), tree[site.key].get("b"))
        f.load_state_dict(state)
        test = spoken(sums(1000, torch.Generator().manual_seed(7)), language)
        with torch.no_grad():
            right = f(test[:, :-1]).logits[:, -1].argmax(-1) == test[:, -1]
        return {f"sums in {language}": float(right.float().mean())}

    def mixed(scale: float) -> Any:
        return {s: {n: scale * (t + trees[1][s][n]) for n, t in p.items()} for s, p in trees[0].items()}

    return {
        "skill_in_A": measure(trees[0], "A"),
        "swap": measure(layer_swapping(trees, look, bottom=1, top=1)),
        "skill": measure(trees[0]),
        "language": measure(trees[1]),
        "soup": measure(mixed(0.5)),
        "task_arithmetic": measure(mixed(1.0)),
        "reverse": measure(layer_swapping(trees, look, skill=2, bottom=1, top=1)),
    }


def sums(n: int, rng: torch.Generator) -> Tensor:
    """Rows [n, 5]: a + b = c, modulo 20."""
    a, b = torch.randint(20, (2, n), generator=rng)
    plus, equal = torch.full((n,), 20), torch.full((n,), 21)
    return torch.stack([a, plus, b, equal, (a + b) % 20], 1)


def language_of(n: int, rng: torch.Generator) -> Tensor:
    """Rows [n, 5] of two sentence forms: "copy a, b copy a", and three numbers counted on, closed by a sign."""
    a, b = torch.randint(20, (2, n), generator=rng)
    copy = torch.stack([torch.full_like(a, 22), a, b, torch.full_like(a, 21), a], 1)
    count = torch.stack([torch.full_like(a, 23), a, (a + 1) % 20, (a + 2) % 20, (a + 3) % 20], 1)
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
