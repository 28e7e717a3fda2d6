"""What every merge promises (``promises``, ``neutral`` in its file), on hard inputs. Balancers that aggregate share it.

Three forms, told apart by the first parameter's name. ``rows``: a combine, (rows [t, *shape], site, whole) -> [*shape].
``bank``: an operator, (bank, f) or (bank, f, look) -> bank with a slot per task, in the form that is served. ``trees``: a learned
merge, (trees, look) -> a tree or one per task; key "" may hold what is done to the pooled features.
A file may say ``takes = (least, most)`` where its method is only for some numbers of tasks: then others must be refused.
Promises: "identity" equal tasks merge to themselves; "order" of the tasks is free; "scale" merge(c d) = c merge(d), c > 0;
"shape" a matrix is merged as the vector of its entries is; "entries" so is any piece of it, given what ``whole`` holds of all
of it; "linear" the merge is a weighted sum of the rows, by weights that are those of the identity matrix.
"""

import inspect
from typing import Any, get_args, get_type_hints

import pytest
import torch
from laws._nasty import ROWS, WORDS, D, backbone, bank, batch, real, run
from torch import Tensor
from torch.func import functional_call

from anabranch.core import fold
from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.names import every, find, make
from anabranch.core.site import Site
from anabranch.core.site import find as sites_at
from anabranch.engine import algebra
from anabranch.errors import InputError
from anabranch.merge._look import Look
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


MERGES = {kind: [n for n in every("merge") if form("merge", n) == kind] for kind in ("rows", "bank", "trees")}
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


@pytest.mark.parametrize(("family", "name"), [*COMBINES, *[("merge", n) for n in MERGES["bank"] + MERGES["trees"]]])
def test_promises_are_known_words(family: str, name: str) -> None:
    assert promises(family, name) <= WORDS_OF_PROMISE
    assert set(getattr(module_of(family, name), "neutral", {})) <= set(settings_of(find(f"{family}.{name}")))


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
