"""One balanced training step of a shared LoRA slot against the plain step of the same rows; TorchJD and LibMTL beside it.

    python speed/balance.py [--tasks 4,8,16] [--rows 64] [--length 32] [--reps 15] [--balance pcgrad] [--libmtl FOLDER]

Two settings on all-MiniLM-L6-v2 (random head per task, LoRA of rank 8 on query and value, Adam):
  separate  every task has its own rows (rows / tasks of them): the slot is expanded to a leaf of [tasks, n], so that one
            backward pass gives every task's gradient; peers have no such path.
  shared    every task has a loss on all rows. ``exact``: the tasks' gradients at the features, then one after another
            through f (as `fit` does for terms). ``features``: balanced there, so that one goes through f (as `fit` does where
            all tasks have the same texts; what MGDA-UB and LibMTL's rep_grad do). TorchJD's mtl_backward and LibMTL send every
            task through f.
``plain`` is the step without balance of a usual LoRA, x a b behind each module, one slot for all rows, and what the peers run
on; ``slot`` is the same through a bank. All ways of a cell are timed in turn; the numbers are ratios to the plain step: of the
least times, and median and quartiles of pairs; and the plain step's share of the machine's ceiling in fp32.
--libmtl: the folder that holds the package LibMTL, whose own __init__ imports models of images and is left out.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import _bench as bench

CLASSES = 8


class Step:
    """A shared slot theta [n], a head per task, one batch."""

    def __init__(self, tasks: int, rows: int, length: int, spec: str) -> None:
        import torch
        from transformers import AutoModel

        from anabranch.backbone.minilm import minilm
        from anabranch.balance._common import inner
        from anabranch.core.adapt import Adapted
        from anabranch.core.bank import Bank
        from anabranch.core.names import make
        from anabranch.core.site import find

        self.torch, self.tasks, self.rows, self.balancer, self.state = torch, tasks, rows, inner(spec), None
        rng = torch.Generator().manual_seed(0)
        f = AutoModel.from_pretrained(minilm(), add_pooling_layer=False, attn_implementation="eager").eval()
        lora = make("delta", {"lora": {"rank": 8}})
        bank = Bank.make(lora, make("gate", "by_task"), find(f, lora.at), rng)
        self.adapted, self.bank, self.scale = Adapted(f, [bank]), bank, lora.alpha / lora.rank
        self.usual = AutoModel.from_pretrained(minilm(), add_pooling_layer=False, attn_implementation="eager").eval()
        self.usual.requires_grad_(False)
        self.work = 4 * rows * length * sum(p.numel() for p in f.encoder.parameters() if p.ndim == 2)  # forward, and back to x
        for site in bank.sites:
            self.usual.get_submodule(site.name).register_forward_hook(self.lora(site.key))
        self.theta = bank.flat(bank.fresh(rng))["own"]
        self.theta = self.theta + 0.02 * torch.randn(self.theta.shape, generator=rng)
        self.inputs = {"input_ids": torch.randint(1000, 30000, (rows, length), generator=rng)}
        self.inputs["attention_mask"] = torch.ones_like(self.inputs["input_ids"])
        self.heads = 0.05 * torch.randn(tasks, CLASSES, 384, generator=rng)
        self.y = torch.randint(CLASSES, (tasks, rows), generator=rng)
        self.owner = torch.arange(rows) * tasks // rows
        self.m = self.v = torch.zeros_like(self.theta)

    def leaf(self, copies: int) -> Any:
        leaf = self.torch.cat([self.torch.zeros(1, len(self.theta)), self.theta.expand(copies, -1)]).requires_grad_()
        self.adapted.sources[0]["own"] = leaf
        return leaf

    def lora(self, key: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            return out + args[0] @ self.parts[key]["a"] @ self.parts[key]["b"] * self.scale

        return hook

    def plain(self) -> tuple[Any, Any]:
        """The slot as a leaf [n], and features [rows, d]."""
        leaf = self.theta.clone().requires_grad_()
        self.parts = self.bank.tables["own"].split(leaf)
        return leaf, self.usual(**self.inputs).last_hidden_state.mean(1)

    def features(self, slots: Any) -> Any:
        """[rows, d], each row under its copy of the slot."""
        from anabranch.core.route import Route

        return self.adapted(self.inputs, Route.to(slots)).last_hidden_state.mean(1)

    def own(self, z: Any, heads: Any) -> Any:
        """[tasks]: the mean loss of each task's own rows."""
        out = self.torch.einsum("bd,bcd->bc", z, heads[self.owner])
        each = self.torch.nn.functional.cross_entropy(out, self.y[self.owner, self.torch.arange(self.rows)], reduction="none")
        return self.torch.zeros(self.tasks).index_add(0, self.owner, each) * self.tasks / self.rows

    def all(self, z: Any, heads: Any) -> Any:
        """[tasks]: the mean loss of each task over all rows."""
        out = self.torch.einsum("bd,tcd->tbc", z, heads)
        each = self.torch.nn.functional.cross_entropy(out.flatten(0, 1), self.y.flatten(), reduction="none")
        return each.view(self.tasks, self.rows).mean(1)

    def balanced(self, losses: Any, rows: Any) -> Any:
        from anabranch.core.balance import Point

        names = [f"task {i}" for i in range(self.tasks)]
        direction, self.state = self.balancer(self.state, Point(rows.mean(0), lambda _: losses, lambda _: rows, names))
        return direction

    def update(self, g: Any) -> None:
        """Adam, its numbers thrown away so that every repetition does the same."""
        m, v = self.m.lerp(g, 0.1), self.v.lerp(g * g, 0.001)
        self.moved = self.theta - 1e-3 * (m / 0.1) / ((v / 0.001).sqrt() + 1e-8)

    # ---- every task its own rows ---------------------------------------------------------------------------------
    def plain_separate(self) -> None:
        (leaf, z), heads = self.plain(), self.heads.clone().requires_grad_()
        self.own(z, heads).sum().backward()
        self.update(leaf.grad)

    def slot_separate(self) -> None:
        leaf, heads = self.leaf(1), self.heads.clone().requires_grad_()
        self.own(self.features(self.torch.ones(self.rows, dtype=self.torch.long)), heads).sum().backward()
        self.update(leaf.grad[1])

    def ours_separate(self) -> None:
        leaf, heads = self.leaf(self.tasks), self.heads.clone().requires_grad_()
        losses = self.own(self.features(self.owner + 1), heads)
        losses.sum().backward()
        self.update(self.balanced(losses.detach(), leaf.grad[1:]))

    # ---- all tasks on all rows -----------------------------------------------------------------------------------
    def shared(self) -> tuple[Any, Any, Any, Any]:
        leaf, heads = self.leaf(1), self.heads.clone().requires_grad_()
        z = self.features(self.torch.ones(self.rows, dtype=self.torch.long))
        return leaf, heads, z, self.all(z, heads)

    def plain_shared(self) -> None:
        (leaf, z), heads = self.plain(), self.heads.clone().requires_grad_()
        self.all(z, heads).sum().backward()
        self.update(leaf.grad)

    def slot_shared(self) -> None:
        leaf, _, _, losses = self.shared()
        losses.sum().backward()
        self.update(leaf.grad[1])

    def at_features(self) -> tuple[Any, Any, Any, Any]:
        """The tasks' gradients at the features [tasks, rows, d]: one backward pass through the heads alone."""
        leaf, _, z, _ = self.shared()
        copies, heads = z.detach().expand(self.tasks, -1, -1).requires_grad_(), self.heads.clone().requires_grad_()
        out = self.torch.einsum("tbd,tcd->tbc", copies, heads)
        each = self.torch.nn.functional.cross_entropy(out.flatten(0, 1), self.y.flatten(), reduction="none")
        losses = each.view(self.tasks, self.rows).mean(1)
        losses.sum().backward()
        return leaf, z, losses.detach(), copies.grad

    def features_shared(self) -> None:
        leaf, z, losses, rows = self.at_features()
        z.backward(self.balanced(losses, rows.flatten(1)).view_as(z))
        self.update(leaf.grad[1])

    def exact_shared(self) -> None:
        leaf, z, losses, rows = self.at_features()
        grads = [self.torch.autograd.grad(z, leaf, row, retain_graph=True)[0][1] for row in rows]
        self.update(self.balanced(losses, self.torch.stack(grads)))

    def torchjd_shared(self) -> None:
        from torchjd.aggregation import PCGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        leaf, z = self.plain()
        parts = [h.clone().requires_grad_() for h in self.heads]
        losses = [self.torch.nn.functional.cross_entropy(z @ h.mT, y) for h, y in zip(parts, self.y, strict=True)]
        mtl_backward(losses, features=z, shared_params=[leaf], tasks_params=[[h] for h in parts])
        jac_to_grad([leaf], PCGrad())
        self.update(leaf.grad)

    def libmtl_shared(self) -> None:
        from LibMTL.weighting import PCGrad

        (leaf, z), heads = self.plain(), self.heads.clone().requires_grad_()
        losses = self.all(z, heads)
        method = PCGrad()
        method.task_num, method.device, method.rep_grad = self.tasks, "cpu", False
        method.get_share_params = lambda: [leaf]
        method.zero_grad_share_params = lambda: leaf.grad.zero_()
        method.backward(losses)
        self.update(leaf.grad)


def libmtl(folder: Path | None) -> bool:
    """Whether LibMTL's balancers can be imported: from its folder, without what its __init__ asks for."""
    if folder:
        sys.modules["LibMTL"] = package = ModuleType("LibMTL")
        package.__path__ = [str(folder / "LibMTL")]
    try:
        importlib.import_module("LibMTL.weighting")
    except ImportError as error:
        bench.told(f"LibMTL is not beside it: {error}")
        return False
    return True


def cell(step: Step, ways: list[str], reps: int, ceiling: float) -> dict[str, Any]:
    runs: dict[str, Callable[[], Any]] = {way: getattr(step, way) for way in ways}
    took = bench.alternate(runs, reps)
    plain = ways[0]
    return {
        "ms": {way: round(1000 * min(s), 1) for way, s in took.items()},
        "of_ceiling": round(step.work / min(took[plain]) / 1e9 / ceiling, 3),
    } | {way: bench.ratio(took[way], took[plain]) for way in ways[1:]}


def main() -> None:
    ask = bench.arguments(__doc__)
    ask.add_argument("--tasks", type=bench.numbers, default=[4, 8, 16])
    ask.add_argument("--rows", type=int, default=64)
    ask.add_argument("--length", type=int, default=32, help="tokens of every row")
    ask.add_argument("--reps", type=int, default=15)
    ask.add_argument("--balance", default="pcgrad")
    ask.add_argument("--libmtl", type=Path, default=None, help="a folder such as site-packages, with the package LibMTL")
    a = ask.parse_args()
    peers = ["torchjd_shared", *(["libmtl_shared"] if libmtl(a.libmtl) else [])]
    facts, cells = bench.machine("torchjd", "transformers"), dict[str, Any]()
    for tasks in a.tasks:
        step = Step(tasks, a.rows, a.length, a.balance)
        for setting, ways in (
            ("separate", ["plain_separate", "slot_separate", "ours_separate"]),
            ("shared", ["plain_shared", "slot_shared", "features_shared", "exact_shared", *peers]),
        ):
            cells[f"{setting} {tasks}"] = found = cell(step, ways, a.reps, facts["gigaflops"]["float32"])
            bench.told(f"{setting}, {tasks} tasks: {found}")
    bench.table(
        ["setting, tasks", "way", "ms", "least", "median", "low", "high"],
        [[name, way, c["ms"][way], *(c[way][k] if way in c else 1.0 for k in ("least", "median", "low", "high"))]
         for name, c in cells.items() for way in c["ms"]],
    )  # fmt: skip
    bench.emit("balance", machine=facts, load_after=os.getloadavg()[0], rows=a.rows, length=a.length, reps=a.reps,
               balance=a.balance, cells=cells)  # fmt: skip


if __name__ == "__main__":
    main()
