"""What every merge promises (``promises``, ``neutral`` in its file), on hard inputs. Balancers that aggregate share it.

Four forms, told apart by the first parameter's name. ``rows``: a combine, (rows [t, *shape], site, whole) -> [*shape].
``bank``: an operator, (bank, f) or (bank, f, look) -> bank with a slot per task, in the form that is served. ``trees``: a learned
merge, (trees, look) -> a tree or one per task; key "" may hold what is done to the pooled features. ``train``: a recipe,
(train, adapted, tasks) -> bank with one slot for all tasks, or one per task in their order.
A file may say ``takes = (least, most)`` where its method is only for some numbers of tasks: then others must be refused.
Promises: "identity" equal tasks merge to themselves; "order" of the tasks is free; "scale" merge(c d) = c merge(d), c > 0;
"shape" a matrix is merged as the vector of its entries is; "entries" so is any piece of it, given what ``whole`` holds of all
of it; "linear" the merge is a weighted sum of the rows, by weights that are those of the identity matrix.
"""

import inspect
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import pytest
import torch
from laws._nasty import ROWS, WORDS, D, backbone, bank, batch, real, run
from merge._toy import body
from merge._toy import sites as layers_of
from torch import Tensor
from torch.func import functional_call

from anabranch.core import fold
from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.names import every, find, make
from anabranch.core.route import Route
from anabranch.core.site import Site
from anabranch.core.site import find as sites_at
from anabranch.engine import algebra
from anabranch.errors import InputError
from anabranch.merge._look import Look
from anabranch.merge.tangent import Linearised
from anabranch.settings import settings_of
from anabranch.types import edges

WORDS_OF_PROMISE = {"entries", "identity", "linear", "order", "scale", "shape"}


def form(family: str, name: str) -> str:
    """The first parameter's name: rows, bank, trees; a balancer's is state."""
    return next(iter(inspect.signature(find(f"{family}.{name}")).parameters))


def module_of(family: str, name: str) -> Any:
    return inspect.getmodule(find(f"{family}.{name}"))


def promises(family: str, name: str) -> frozenset[str]:
    return getattr(module_of(family, name), "promises", frozenset())


def takes(family: str, name: str, t: int) -> bool:
    """Whether the method is for t tasks."""
    least, most = getattr(module_of(family, name), "takes", (1, None))
    return least <= t and (most is None or t <= most)


MERGES = {kind: [n for n in every("merge") if form("merge", n) == kind] for kind in ("rows", "bank", "trees", "train")}
COMBINES = [("merge", n) for n in MERGES["rows"]] + [("balance", n) for n in every("balance") if form("balance", n) == "rows"]


def hard() -> dict[str, Tensor]:
    """[t, n] task vectors: ordinary, zero rows, rank 1, tiny, huge, one task; and the same as matrices."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 60, generator=g)
    flat = {
        "ordinary": base,
        "zero rows": base * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None],
        "all zero": torch.zeros(3, 60),
        "rank 1": torch.randn(4, 1, generator=g) * torch.randn(1, 60, generator=g),
        "tiny": base * 1e-10,
        "huge": base * 1e10,
        "one": base[:1],
        "two": base[:2],
    }
    return flat | {f"{n}, matrices": rows.view(len(rows), 6, 10) for n, rows in flat.items()}


HARD = {**hard(), **{f"{name} of {rows.ndim - 1} dimensions": rows for name, rows in ROWS.items()}}


def cases(promise: str = "") -> list[tuple[str, str, str]]:
    """(family, method, case) of all that promise it; balancers see flat rows."""
    return [
        (f, n, case)
        for f, n in COMBINES
        for case, rows in HARD.items()
        if (f == "merge" or rows.ndim == 2) and takes(f, n, len(rows)) and (not promise or promise in promises(f, n))
    ]


def site_of(rows: Tensor) -> Site:
    return Site("here", "", 0, "linear", rows.shape[-1], rows.shape[1])


def whole_of(rows: Tensor) -> dict[str, Any]:
    """What a first pass over tasks and data gives: norms, Grams of few rows with a dead input, Fishers with dead entries."""
    g = torch.Generator().manual_seed(4)
    t, shape = len(rows), rows.shape[1:]
    x = torch.randn(t, 5, shape[-1], generator=g)
    x[..., 0] = 0
    fisher = torch.rand(t, *(shape if len(shape) > 1 else (*shape, 3)), generator=g)
    fisher[..., 0] = 0
    return {"norm": rows.flatten(1).norm(dim=1), "gram": {"here": x.mT @ x / 5}, "fisher": {"here": fisher}}


def call(family: str, spec: Any, rows: Tensor, whole: dict[str, Any] | None = None) -> Tensor:
    if family == "balance":
        return make(family, spec)(rows)
    return make(family, spec)(rows, site_of(rows), whole_of(rows) if whole is None else whole)


def similar(a: Tensor, b: Tensor, rows: Tensor, size: float = 1e-5) -> None:
    """Equal up to rounding of numbers as large as the rows'."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=size * float(rows.abs().max()))


# ---- combines and aggregators


@pytest.mark.parametrize(("family", "name", "case"), cases())
def test_it_is_finite_shaped_and_pure(family: str, name: str, case: str) -> None:
    rows = HARD[case]
    before = rows.clone()
    first, again = call(family, name, rows), call(family, name, rows)
    assert first.shape == rows.shape[1:] and torch.isfinite(first).all() and first.dtype == torch.float32
    assert torch.equal(rows, before) and torch.equal(first, again)
    first.add_(1)  # what it gives is its own
    assert torch.equal(rows, before)


@pytest.mark.parametrize(("family", "name", "case"), [c for c in cases("shape") if HARD[c[2]].ndim == 2])
def test_shape_is_free(family: str, name: str, case: str) -> None:
    """[t, 1, n, 1] merges to what the flat rows do."""
    rows = HARD[case]
    folded = rows.view(len(rows), 1, -1, 1)
    torch.testing.assert_close(call(family, name, folded).flatten(), call(family, name, rows))


@pytest.mark.parametrize(("family", "name", "case"), [c for c in cases("entries") if HARD[c[2]].ndim == 2])
def test_pieces_of_a_tensor_are_merged_as_the_whole(family: str, name: str, case: str) -> None:
    rows, whole = HARD[case], whole_of(HARD[case])
    pieces = torch.cat([call(family, name, piece, whole) for piece in rows.split(7, 1)])
    similar(pieces, call(family, name, rows, whole), rows, 1e-6)


@pytest.mark.parametrize(("family", "name", "case"), [c for c in cases("linear") if HARD[c[2]].ndim == 2])
def test_a_weighted_sum_has_the_weights_of_the_identity(family: str, name: str, case: str) -> None:
    rows = HARD[case]
    similar(call(family, name, torch.eye(len(rows))) @ rows, call(family, name, rows), rows)


@pytest.mark.parametrize(("family", "name", "case"), cases("scale"))
def test_scale(family: str, name: str, case: str) -> None:
    """Positive homogeneity: merging 8 d is 8 times merging d (a power of two, so that the bits agree)."""
    rows = HARD[case]
    similar(call(family, name, rows * 8), call(family, name, rows) * 8, rows)


@pytest.mark.parametrize(("family", "name", "case"), cases("order"))
def test_order(family: str, name: str, case: str) -> None:
    rows = HARD[case]
    back, whole = torch.arange(len(rows)).flip(0), whole_of(rows)
    turned = {k: {s: v[back] for s, v in w.items()} if isinstance(w, dict) else w[back] for k, w in whole.items()}
    similar(call(family, name, rows[back], turned), call(family, name, rows, whole), rows)


@pytest.mark.parametrize(("family", "name", "case"), cases("identity"))
def test_identity(family: str, name: str, case: str) -> None:
    """Equal rows merge to themselves, and so does one."""
    row = HARD[case][:1]
    for t in (t for t in (1, 2, 3) if takes(family, name, t)):
        similar(call(family, name, row.repeat(t, *[1] * (row.ndim - 1))), row[0], row)


@pytest.mark.parametrize(("family", "name"), [m for m in COMBINES if hasattr(module_of(*m), "neutral") and takes(*m, 1)])
def test_neutral_settings_keep_one_task_as_it_is(family: str, name: str) -> None:
    for row in (HARD["one"], HARD["one, matrices"]):
        if family == "merge" or row.ndim == 2:
            similar(call(family, {name: module_of(family, name).neutral}, row), row[0], row, 1e-6)


@pytest.mark.parametrize("name", MERGES["rows"])
def test_other_numbers_of_tasks_are_refused(name: str) -> None:
    for t in (t for t in (1, 2, 3, 5) if not takes("merge", name, t)):
        with pytest.raises(InputError, match=f"got {t}"):
            call("merge", name, torch.ones(t, 4, 3))


@pytest.mark.parametrize("name", [n for n in MERGES["rows"] if getattr(module_of("merge", n), "needs", None)])
def test_what_it_needs_is_asked_for_by_name(name: str) -> None:
    needs = module_of("merge", name).needs
    assert needs <= {"gram", "fisher"}
    with pytest.raises(InputError, match="|".join(needs)):
        make("merge", name)(HARD["ordinary, matrices"], site_of(HARD["ordinary, matrices"]), {"norm": torch.ones(4)})


@pytest.mark.parametrize(("family", "name"), [*COMBINES, *[("merge", n) for n in every("merge") if n not in MERGES["rows"]]])
def test_promises_are_known_words(family: str, name: str) -> None:
    assert promises(family, name) <= WORDS_OF_PROMISE
    assert set(getattr(module_of(family, name), "neutral", {})) <= set(settings_of(find(f"{family}.{name}")))


def test_every_merge_is_of_a_known_form() -> None:
    assert sorted(n for names in MERGES.values() for n in names) == every("merge")


@pytest.mark.parametrize("name", every("merge"))
def test_settings_out_of_range_are_refused(name: str) -> None:
    hints = get_type_hints(find(f"merge.{name}"), include_extras=True)
    for setting in settings_of(find(f"merge.{name}")):
        hint = hints[setting]
        for part in (hint, *get_args(hint)):
            for edge, limit in edges(part):
                beyond = limit - 1 if type(edge).__name__ in ("Gt", "Ge") else limit + 1
                with pytest.raises(InputError, match=f"{setting} is .*got"):
                    make("merge", {name: {setting: beyond}})


@pytest.mark.parametrize("name", MERGES["rows"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_the_slot_and_site(name: str, bad: float) -> None:
    f = backbone("bert")
    made = bank(f, "lora", at="attention.value")
    made.tables["own"].data[2, -1] = bad
    with pytest.raises(InputError, match="slot 2 is not finite at encoder.layer.1.attention.self.value"):
        merged(f, made, (1, 2), name)
    assert merged(f, made, (1, 3), name).tables["own"].data.isfinite().all()


def merged(f: torch.nn.Module, made: Bank, slots: tuple[int, ...], name: str) -> Bank:
    """Through ``engine.algebra.merge``, with the statistics of data that the method needs."""
    g, t, method = torch.Generator().manual_seed(5), len(slots), make("merge", name)
    x = {s.key: torch.randn(t, 99, s.d_in, generator=g) for s in made.sites}
    seen = {"gram": {k: v.mT @ v / 99 for k, v in x.items()}, "fisher": {k: v.mT[..., :1].square() for k, v in x.items()}}
    return algebra.merge(f, [(made, i) for i in slots], lambda rows, site, whole: method(rows, site, whole | seen))


# ---- operators on banks

KINDS = ("lora", "dense", "ia3")


def operated(name: str, made: Bank, f: torch.nn.Module) -> Bank | None:
    """None where the operator refuses this kind of delta."""
    try:
        return operator(name, made, f)
    except InputError:
        return None


def operator(name: str, made: Bank, f: torch.nn.Module) -> Bank:
    """With a look at small tasks where the operator asks for one."""
    if "look" not in inspect.signature(find(f"merge.{name}")).parameters:
        return make("merge", name)(made, f)
    with torch.no_grad():
        changes = [fold.changes(f, made, slot) for slot in range(1, len(made) + 1)]
        trees = [{s: {n: t for n, t in zip("Wb", c, strict=True) if t is not None} for s, c in slot.items()} for slot in changes]
    return make("merge", {name: few(name)})(made, f, look_at(f, made.sites, trees))


def few(name: str) -> dict[str, int]:
    """Settings under which a search is short."""
    return {
        n: 8 if n == "evaluations" else 2
        for n in ("steps", "rounds", "epochs", "evaluations")
        if n in settings_of(find(f"merge.{name}"))
    }


@pytest.mark.parametrize("name", MERGES["bank"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_gives_every_task_a_slot(name: str, kind: str) -> None:
    f = backbone("bert")
    made = bank(f, kind)
    before = {n: t.data.clone() for n, t in made.tables.items()}
    weights = {n: t.clone() for n, t in f.state_dict().items()}
    out, again = operated(name, made, f), operated(name, made, f)
    if out is None or again is None:
        return
    assert isinstance(out, Bank) and 1 <= len(out) <= len(made)  # slots that are no task's own may be used up
    for n, table in out.tables.items():
        assert not table.data.is_floating_point() or table.data.isfinite().all()
        assert torch.equal(table.data, again.tables[n].data)
    assert all(torch.equal(before[n], t.data) for n, t in made.tables.items())
    assert all(torch.equal(weights[n], t) for n, t in f.state_dict().items())


@pytest.mark.parametrize("name", MERGES["bank"])
def test_an_operator_is_for_low_rank_or_dense_deltas(name: str) -> None:
    f = backbone("bert")
    assert any(operated(name, bank(f, kind), f) for kind in KINDS)


@pytest.mark.parametrize("name", MERGES["bank"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_an_operator_gives_runs_and_leaves_rows_without_a_slot_alone(name: str, kind: str) -> None:
    f, inputs = backbone("bert"), batch("bert")
    out = operated(name, bank(f, kind), f)
    if out is None:
        return
    with torch.no_grad():
        answers, plain = run(Adapted(f, [out]), inputs, [min(2, len(out)), 0, 1, len(out), 1]), f(**inputs).last_hidden_state
    assert real(inputs, answers).isfinite().all()
    torch.testing.assert_close(answers[1], plain[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MERGES["bank"])
def test_an_operator_bears_slots_of_zeros(name: str) -> None:
    f = backbone("bert")
    for kind in KINDS:
        made = bank(f, kind)
        made.tables["own"].data[1:] = 0
        out = operated(name, made, f)
        assert out is None or all(t.data.isfinite().all() for t in out.tables.values() if t.data.is_floating_point())


@pytest.mark.parametrize("name", MERGES["bank"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_operator_lets_nothing_that_is_not_finite_reach_others(name: str, bad: float) -> None:
    """It is refused by the slot's number, or stays in its slot."""
    f = backbone("bert")
    for kind in (k for k in KINDS if operated(name, bank(f, k), f)):
        made = bank(f, kind)
        made.tables["own"].data[2, -1] = bad
        try:
            out = operator(name, made, f)
        except InputError as error:
            assert "slot 2" in str(error)
            continue
        for n, table in out.tables.items():
            kept = [i for i in range(len(table)) if i != 2 or n not in out.slot_tables]
            assert not table.data.is_floating_point() or table.data[kept].isfinite().all()


# ---- learned merges


def task_trees(f: torch.nn.Module, t: int) -> tuple[list[Site], list[dict[str, dict[str, Tensor]]]]:
    """Dense trees of t tasks at four matrices with biases of a two-block BERT."""
    g, sites = torch.Generator().manual_seed(6), sites_at(f, ["attention.value", "mlp.in"])
    trees = [
        {
            s.key: {"W": 0.2 * torch.randn(s.d_out, s.d_in, generator=g), "b": 0.2 * torch.randn(s.d_out, generator=g)}
            for s in sites
        }
        for _ in range(t)
    ]
    return sites, trees


def look_at(f: torch.nn.Module, sites: list[Site], trees: list[dict[str, dict[str, Tensor]]]) -> Any:
    """Small tasks that the trees themselves answer well: the label of a row is what its own tree's head says."""
    g = torch.Generator().manual_seed(7)
    rows = [{"input_ids": torch.randint(1, WORDS, (6, 7), generator=g)} for _ in trees]
    heads = [torch.randn(D, 3, generator=g) for _ in trees]

    def features(tree: Any, j: int) -> Tensor:
        moved = {n: p.detach() for n, p in f.named_parameters()}
        moved |= {f"{s.name}.{n}": moved[f"{s.name}.{n}"] + tree[s.key][k]
                  for s in sites for n, k in (("weight", "W"), ("bias", "b")) if k in tree[s.key]}  # fmt: skip
        return functional_call(f, moved, kwargs=rows[j]).last_hidden_state.mean(1)

    labels = [(features(tree, j) @ heads[j]).argmax(1).detach() for j, tree in enumerate(trees)]

    def said(tree: Any) -> list[Tensor]:
        return [(features(tree, j) @ head).log_softmax(1) for j, head in enumerate(heads)]

    def losses(tree: Any, j: int | None = None) -> Tensor:
        found = torch.stack([torch.nn.functional.nll_loss(p, y) for p, y in zip(said(tree), labels, strict=True)])
        return found if j is None else found[j : j + 1]

    def entropies(tree: Any) -> Tensor:
        return torch.stack([-(p.exp() * p).sum(1).mean() for p in said(tree)])

    return Look(losses=losses, entropies=entropies, features=features, own=lambda j: trees[j], f=f, sites=sites,
                     rng=torch.Generator().manual_seed(8))  # fmt: skip


def learned(name: str, t: int) -> tuple[Any, list[dict[str, dict[str, Tensor]]]]:
    """What a learned merge gives after few steps, and the trees that it was given."""
    f = backbone("bert")
    sites, trees = task_trees(f, t)
    return make("merge", {name: few(name)})(trees, look_at(f, sites, trees)), trees


def three_or_two(name: str) -> tuple[Any, list[dict[str, dict[str, Tensor]]]]:
    """Of three tasks, or two where the method is for two."""
    try:
        return learned(name, 3)
    except InputError:
        return learned(name, 2)


def layout(tree: Any) -> dict[str, dict[str, torch.Size]]:
    return {s: {n: t.shape for n, t in p.items()} for s, p in tree.items()}


@pytest.mark.parametrize("name", MERGES["trees"])
def test_a_learned_merge_gives_a_tree_or_one_per_task(name: str) -> None:
    weights = {n: t.clone() for n, t in backbone("bert").state_dict().items()}
    found, trees = three_or_two(name)
    out = found if isinstance(found, list) else [found]
    assert len(out) in (1, len(trees)) and (isinstance(found, list) == (len(out) == len(trees)))
    for tree in out:
        assert {s: p for s, p in layout(tree).items() if s} == layout(trees[0])
        assert all(t.isfinite().all() and not t.requires_grad for p in tree.values() for t in p.values())
    assert all(torch.equal(weights[n], t) for n, t in backbone("bert").state_dict().items())
    assert all(p.grad is None for p in backbone("bert").parameters())
    _, fresh = task_trees(backbone("bert"), len(trees))
    assert all(torch.equal(t, u[s][n]) for o, u in zip(trees, fresh, strict=True) for s, p in o.items() for n, t in p.items())


@pytest.mark.parametrize("name", MERGES["trees"])
def test_a_learned_merge_is_the_same_under_the_same_seed(name: str) -> None:
    (first, _), (again, _) = three_or_two(name), three_or_two(name)
    for a, b in zip(first if isinstance(first, list) else [first], again if isinstance(again, list) else [again], strict=True):
        assert all(torch.equal(t, b[s][n]) for s, p in a.items() for n, t in p.items())


@pytest.mark.parametrize("name", [n for n in MERGES["trees"] if not takes("merge", n, 1)])
def test_a_learned_merge_refuses_other_numbers_of_tasks(name: str) -> None:
    with pytest.raises(InputError, match="got 1"):
        learned(name, 1)


# ---- recipes

STEPS = 12  # of a whole training
NET = body(4, 6, 3)
LAYERS = layers_of(NET)
X = torch.randn(8, 1, 4, generator=torch.Generator().manual_seed(9))


def wanted(tasks: Sequence[str]) -> dict[str, Tensor]:
    """What each task wants for X, [8, 1, 3]: f's answers and something of its own, by its name."""
    own = {n: torch.randn(3, generator=torch.Generator().manual_seed(ord(n))) for n in tasks}
    with torch.no_grad():
        return {n: NET(X) + v * torch.sin(X.sum(-1, keepdim=True) + ord(n)) for n, v in own.items()}


class Stages:
    """``train`` as the engine's (``engine/stages.py``), by gradient descent on NET; keeps the shares it was asked for.

    In call ``spoiled`` slot 2 comes back with numbers that are not finite.
    """

    def __init__(self, targets: dict[str, Tensor], steps: int = STEPS, spoiled: int = -1, bad: float = torch.nan) -> None:
        self.targets, self.steps, self.spoiled, self.bad = targets, steps, spoiled, bad
        self.shares = list[float]()

    def __call__(self, delta: Any, base: Any, share: float, starts: Sequence[Any] | None = None, tangent: bool = False) -> Bank:
        if delta != "dense" and (base or not starts):
            raise InputError(f"slots of delta {delta!r} begin at starts and on f itself")
        t, kind, rng = len(self.targets), make("delta", delta), torch.Generator().manual_seed(0)
        begin = list(starts or [{s.key: kind.init(s, rng) for s in LAYERS}] * t)
        assert len(begin) == t and (not base or base.keys() == {s.key for s in LAYERS})
        out = Bank(kind, make("gate", "by_task"), LAYERS)
        out.adopt(begin[0], {}, {"": {}})
        out.add(begin)
        zero = out.tree({n: torch.zeros(out.tables[n].n) for n in out.slot_tables})
        low, own = out.tables["own"].row(base or zero), out.tables["own"].data.clone()
        own[1:] += low
        self.descend(out, own, round(share * self.steps), tangent)
        out.tables["own"].data[1:] = own[1:] - low
        if len(self.shares) == self.spoiled:
            out.tables["own"].data[2] = self.bad
        self.shares.append(share)
        return out

    def descend(self, out: Bank, own: Tensor, steps: int, tangent: bool) -> None:
        adapted, y = Adapted(NET, [out]), torch.cat(list(self.targets.values()))
        ids = torch.arange(1, len(self.targets) + 1).repeat_interleave(len(X))
        run: Any = Linearised(adapted) if tangent else adapted
        adapted.sources[0]["own"] = own.requires_grad_()
        for _ in range(steps):
            loss = (run({"input": X.repeat(len(self.targets), 1, 1)}, Route.to(ids[:, None])) - y).square().mean(-1).sum() / len(
                X
            )
            (grad,) = torch.autograd.grad(loss, own)
            own.data -= 0.4 * grad
        own.requires_grad_(False)


def recipe(spec: Any, train: Stages) -> Bank:
    found = make("merge", spec)(train, Adapted(NET, []), list(train.targets))
    assert isinstance(found, Bank)
    return found


def enough(name: str) -> Sequence[str]:
    """As many tasks as the recipe takes, three if it may."""
    return "abc"[: next(t for t in (3, 2, 1) if takes("merge", name, t))]


def moves(out: Bank) -> list[Tensor]:
    """What each slot changes in f, [numbers]."""
    found = [fold.changes(NET, out, slot) for slot in range(1, len(out) + 1)]
    return [torch.cat([t.flatten() for s in LAYERS for t in change[s.key] if t is not None]) for change in found]


def recipes() -> list[tuple[str, Any]]:
    """Each as it is, and in three rounds where it has them."""
    plain = [(n, n) for n in MERGES["train"]]
    return plain + [(n, {n: {"rounds": 3}}) for n in MERGES["train"] if "rounds" in settings_of(find(f"merge.{n}"))]


@pytest.mark.parametrize(("name", "spec"), recipes())
def test_a_recipe_gives_one_slot_or_one_per_task_at_the_same_sites(name: str, spec: Any) -> None:
    tasks, weights = enough(name), {n: t.clone() for n, t in NET.state_dict().items()}
    out, again = recipe(spec, Stages(wanted(tasks))), recipe(spec, Stages(wanted(tasks)))
    assert out.sites == LAYERS and len(out) in (1, len(tasks))
    for n, table in out.tables.items():
        assert torch.equal(table.data, again.tables[n].data) and not table.data.requires_grad
        assert not table.data.is_floating_point() or table.data.isfinite().all()
    assert all(move.abs().max() > 0 for move in moves(out))
    assert all(torch.equal(weights[n], t) for n, t in NET.state_dict().items())
    assert all(p.grad is None for p in NET.parameters())


@pytest.mark.parametrize(("name", "spec"), recipes())
def test_a_recipe_trains_no_longer_than_its_tasks_alone(name: str, spec: Any) -> None:
    """The shares of all trainings are those of one."""
    train = Stages(wanted(enough(name)))
    recipe(spec, train)
    assert train.shares and min(train.shares) > 0 and sum(train.shares) <= 1 + 1e-9


@pytest.mark.parametrize(("name", "spec"), recipes())
def test_a_recipe_leaves_alone_what_training_does(name: str, spec: Any) -> None:
    assert all(move.abs().max() == 0 for move in moves(recipe(spec, Stages(wanted(enough(name)), steps=0))))


@pytest.mark.parametrize(("name", "spec"), recipes())
def test_the_order_of_a_recipes_tasks_is_free(name: str, spec: Any) -> None:
    tasks = enough(name)
    there, back = (moves(recipe(spec, Stages(wanted(order)))) for order in (tasks, tasks[::-1]))
    for a, b in zip(there, back[::-1], strict=True):
        similar(a, b, a[None])


@pytest.mark.parametrize(("name", "spec"), [(n, s) for n, s in recipes() if takes("merge", n, 2)])
def test_a_recipe_hears_every_task_and_a_slot_of_one_task_no_other(name: str, spec: Any) -> None:
    tasks = enough(name)
    out = moves(recipe(spec, Stages(wanted(tasks))))
    for j, task in enumerate(tasks):
        other = moves(recipe(spec, Stages(wanted(tasks) | {task: wanted("z")["z"]})))
        for slot, (a, b) in enumerate(zip(out, other, strict=True)):
            far = (a - b).norm() > 0.01 * a.norm()
            assert far if len(out) == 1 or slot == j else torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "spec"), recipes())
def test_a_recipe_for_equal_tasks_serves_them(name: str, spec: Any) -> None:
    """Answers nearer to what all of them want than f's, by the model that the file says the slots are run with."""
    target = wanted("a")["a"]
    out = recipe(spec, Stages(dict.fromkeys(enough(name), target)))
    adapted: Any = Adapted(NET, [out])
    run = Linearised(adapted) if getattr(module_of("merge", name), "space", "") == "tangent" else adapted
    with torch.no_grad():
        for slot in range(1, len(out) + 1):
            got = run({"input": X}, Route.to(torch.full((len(X), 1), slot)))
            assert (got - target).square().sum() < 0.9 * (NET(X) - target).square().sum()


@pytest.mark.parametrize("name", MERGES["train"])
def test_a_recipe_refuses_other_numbers_of_tasks_before_it_trains(name: str) -> None:
    for t in (1, 2, 3, 5):
        train = Stages(wanted("abcde"[:t]))
        if takes("merge", name, t):
            assert len(recipe(name, train)) in (1, t)
            continue
        with pytest.raises(InputError, match=f"got {t}"):
            recipe(name, train)
        assert not train.shares


@pytest.mark.parametrize(("name", "spec"), [(n, s) for n, s in recipes() if takes("merge", n, 2)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_recipe_refuses_what_is_not_finite_whichever_training_gave_it(name: str, spec: Any, bad: float) -> None:
    train = Stages(wanted(enough(name)))
    recipe(spec, train)
    for call in range(len(train.shares)):
        spoiled = Stages(wanted(enough(name)), spoiled=call, bad=bad)
        with pytest.raises(InputError, match=f"slot 2 is not finite at ({'|'.join(s.key for s in LAYERS)})"):
            recipe(spec, spoiled)
        assert len(spoiled.shares) == call + 1
