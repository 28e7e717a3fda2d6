"""What every delta must keep, on every kind of backbone: walks the folder, so a new file is held to it at once."""

import copy
import threading
from functools import cache

import pytest
import torch
from laws._nasty import BLOCKS, IDS, MAKES, TEXT, D, backbone, bank, batch, close, frozen, loaded, real, row, run, sits
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import Delta
from anabranch.core.fold import fold
from anabranch.core.names import every, find, make
from anabranch.core.route import LONG_RUN, Route
from anabranch.core.site import capture
from anabranch.core.site import find as find_sites
from anabranch.errors import InputError

DELTAS = every("delta")
FITS = [(d, f) for d in DELTAS for f in MAKES if sits(make("delta", d), backbone(f))]
ON_TEXT = [(d, f) for d, f in FITS if f in TEXT]
SITED = [d for d in DELTAS if make("delta", d).door == "site" and d != "embedding_lowrank"]  # which sits before the blocks
everywhere = pytest.mark.parametrize(("delta", "name"), FITS)
on_text = pytest.mark.parametrize(("delta", "name"), ON_TEXT)
each = pytest.mark.parametrize("delta", DELTAS)


@cache
def plain(name: str) -> torch.Tensor:
    """f's own answer to the batch."""
    with torch.no_grad():
        return backbone(name)(**batch(name)).last_hidden_state


@pytest.fixture(autouse=True)
def _no_grad(request):
    """Laws about answers need no graph; those that train ask for it by name."""
    with torch.set_grad_enabled("gradient" in request.node.name or "trains" in request.node.name):
        yield


# ---- answers


@everywhere
def test_a_fresh_slot_is_neutral_exactly_where_promised(delta, name):
    made = bank(backbone(name), delta, spread=0)
    got = run(Adapted(backbone(name), [made]), batch(name), IDS)
    if made.delta.neutral:
        close(real(batch(name), got), real(batch(name), plain(name)), 1e-6)
    else:
        moved = (got - plain(name)).abs().amax((1, 2))
        assert all((m > 1e-3) == (i > 0) for m, i in zip(moved, IDS, strict=True))


@everywhere
def test_a_mixed_batch_equals_row_by_row_and_no_slot_is_bare_f(delta, name):
    adapted, inputs = Adapted(backbone(name), [bank(backbone(name), delta)]), batch(name)
    mixed = run(adapted, inputs, IDS)
    for i, slot in enumerate(IDS):
        close(real(row(inputs, i), run(adapted, row(inputs, i), [slot])), real(row(inputs, i), mixed[i : i + 1]))
    bare = IDS.index(0)
    close(real(row(inputs, bare), mixed[[bare]]), real(row(inputs, bare), plain(name)[[bare]]))
    assert all((mixed[i] - plain(name)[i]).abs().max() > 1e-3 for i in range(len(IDS)) if i != bare)
    assert torch.equal(run(adapted, inputs, None), plain(name))


@on_text
def test_more_padding_changes_nothing_at_real_tokens(delta, name):
    adapted, inputs = Adapted(backbone(name), [bank(backbone(name), delta)]), batch(name)
    longer = {n: nn.functional.pad(t, (0, 5), value=7 if n == "input_ids" else 0) for n, t in inputs.items()}
    got = run(adapted, longer, IDS)[:, : inputs["input_ids"].shape[1]]
    close(real(inputs, got), real(inputs, run(adapted, inputs, IDS)))


@everywhere
def test_folded_equals_running(delta, name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, delta)
    kind = type(made.delta)
    try:
        state = fold(f, [(made, 2, 1.0)])
    except InputError as error:
        bias = "has no bias" in str(error) and not all(s.biased for s in made.sites)
        assert bias or ("cannot be folded" in str(error) and kind.weight is Delta.weight)
        return
    got = loaded(f, state)(**inputs).last_hidden_state
    close(real(inputs, got), real(inputs, run(Adapted(f, [made]), inputs, [2] * len(IDS))))
    assert all(torch.equal(t, u) for t, u in zip(f.state_dict().values(), backbone(name).state_dict().values(), strict=True))
    half = loaded(f, fold(f, [(made, 2, 0.25), (made, 3, 0.5)]))(**inputs).last_hidden_state
    both = run(Adapted(f, [made]), inputs, [[2, 3]] * len(IDS), w=torch.tensor([[0.25, 0.5]] * len(IDS)))
    close(real(inputs, half), real(inputs, both))


@everywhere
def test_what_is_frozen_serves_the_same_answers(delta, name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, delta)
    close(run(Adapted(f, [frozen(made)]), inputs, IDS), run(Adapted(f, [made]), inputs, IDS), 1e-6)


@everywhere
def test_answers_keep_the_type_of_f(delta, name):
    f, inputs = loaded(backbone(name), backbone(name).state_dict()).to(torch.bfloat16), batch(name)
    inputs = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in inputs.items()}
    made = bank(f, delta)
    got = run(Adapted(f, [made]), inputs, IDS)
    assert got.dtype is torch.bfloat16 and got.isfinite().all()
    served = run(Adapted(f, [frozen(made, torch.bfloat16)]), inputs, IDS)
    assert torch.equal(served, got)  # parameters are rounded to f's type where they run, so that rounding first is the same
    assert made.tables["own"].data.dtype is torch.float32


@everywhere
def test_long_runs_of_one_slot_equal_the_gathered_path(delta, name):
    f, ids = backbone(name), torch.tensor([2] * LONG_RUN + [0, 1] + [3] * (LONG_RUN + 1))
    adapted, inputs = Adapted(f, [bank(f, delta)]), batch(name, len(ids))
    runs, gathered = Route.to(ids), Route(ids[:, None])
    assert runs.runs and not gathered.runs
    close(adapted(inputs, runs).last_hidden_state, adapted(inputs, gathered).last_hidden_state)


@everywhere
def test_a_nan_in_an_unchosen_slot_reaches_no_row(delta, name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, delta)
    adapted = Adapted(f, [made])
    want = run(adapted, inputs, IDS), run(adapted, inputs, [[2, 0]] * len(IDS))
    added = made.add([made.fresh(torch.Generator())])
    made.tables["own"].data[added] = torch.nan
    assert torch.equal(run(adapted, inputs, IDS), want[0])
    assert torch.equal(run(adapted, inputs, [[2, 0]] * len(IDS)), want[1])
    poisoned = run(adapted, inputs, [*IDS[:-1], *added])
    assert torch.equal(poisoned[:-1], want[0][:-1]) and poisoned[-1].isnan().any()


@everywhere
def test_the_tail_with_cached_features_gives_equal_bits(delta, name):
    f, inputs = backbone(name), batch(name)
    last = [s for s in find_sites(f, make("delta", delta).at) if s.depth == BLOCKS - 1]
    if not last:
        with pytest.raises(InputError, match="lies below block 1"):
            Adapted(f, [bank(f, delta)], tail_from=1)
        return
    made = bank(f, delta)
    made = type(made).make(made.delta, made.gate, last, torch.Generator().manual_seed(0))
    made.add([made.fresh(torch.Generator().manual_seed(i)) for i in range(3)])
    made.tables["own"].data[1:] += 0.05
    features: list[torch.Tensor] = []
    handle = capture(f, BLOCKS - 1, features)
    f(**inputs)
    handle.remove()
    route = Route.to(IDS)
    full = Adapted(f, [made])(inputs, route).last_hidden_state
    assert torch.equal(Adapted(f, [made], BLOCKS - 1)(inputs, route, features[0]).last_hidden_state, full)


# ---- storage


@each
@pytest.mark.parametrize("served", [None, torch.float32, torch.bfloat16])
def test_taken_and_added_again_it_is_the_same_bits(delta, served):
    f = backbone("bert")
    made = bank(f, delta)
    made = made if served is None else frozen(made, served)
    before = {n: t.data.clone() for n, t in made.tables.items()}
    new = made.add([made.take(2), made.take(1)])
    assert new == [4, 5] and len(made) == 5
    for name in made.slot_tables:
        assert torch.equal(made.tables[name].data[new], before[name][[2, 1]])
        assert torch.equal(made.tables[name].data[:4], before[name])
    inputs = batch("bert")
    f = f if served is not torch.bfloat16 else loaded(f, f.state_dict()).to(served)
    adapted = Adapted(f, [made])
    assert torch.equal(run(adapted, inputs, [4] * 5), run(adapted, inputs, [2] * 5))


# ---- one token at a time


@each
def test_what_looks_at_one_token_at_a_time_says_so(delta):
    """Then a gate that weighs by token has each slot computed on its own tokens alone."""
    f = backbone("bert")
    made = bank(f, delta)
    if made.delta.door != "site" or not made.delta.tokenwise:
        assert made.delta.door != "site" or delta == "embedding_lowrank"
        return
    inputs = batch("bert", length=8)
    adapted, tree, common = Adapted(f, [made]), made.take(2), made.tables["shared"].split(made.tables["shared"].data[1])
    adapted.seen = {}
    run(adapted, inputs, [0] * 5)
    for site in made.sites:
        at, p = adapted.seen[site.key], tree[site.key] | common.get("", {})
        for i in range(2):
            whole = at._replace(x=at.x[i], y=at.y[i], mask=at.mask[i])
            parts = [whole._replace(x=whole.x[j : j + 1], y=whole.y[j : j + 1], mask=whole.mask[j : j + 1]) for j in range(8)]
            close(made.delta.apply(p, whole), torch.cat([made.delta.apply(p, part) for part in parts]))


# ---- training


def leaves(made) -> torch.Tensor:
    return made.tables["own"].data.clone().requires_grad_()


@each
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_gradients_of_other_slots_are_exactly_zero(delta, name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, delta, slots=4)
    adapted, source = Adapted(f, [made]), leaves(made)
    adapted.sources[0]["own"] = source
    (run(adapted, inputs, IDS) ** 2).sum().backward()
    busy = source.grad.abs().amax(1)
    assert source.grad.isfinite().all()
    assert busy[0] == 0 and busy[4] == 0 and (busy[1:4] > 0).all()
    assert all(p.grad is None for p in f.parameters())
    source.grad = None
    (run(adapted, inputs, [[2, 0], [0, 0], [1, 2], [3, 1], [2, 0]])[1] ** 2).sum().backward()
    assert source.grad.abs().max() == 0  # the row without slots trains nothing


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_slot_are_the_same_bits_in_any_company(delta, dtype):
    """Which tasks share a pass with its rows is chance, and must not be seen in what a task learns.

    At a length that the engine pads to (a multiple of 8): elsewhere some machines' products in fp32 depend on how many rows
    there are.
    """
    f = copy.deepcopy(backbone("bert")).to(dtype)
    adapted = Adapted(f, [bank(f, delta, slots=4)])
    inputs = batch("bert", 30, 8)
    for mine in (2, LONG_RUN + 1):
        found = []
        for others in ([], [1, 3, 4], [1] * LONG_RUN, [1, 3] * 5 + [1] * LONG_RUN + [4]):
            ids = [*others[:5], *[2] * mine, *others[5:]]
            rows = iter(range(mine, len(ids)))
            order = [i - len(others[:5]) if slot == 2 else next(rows) for i, slot in enumerate(ids)]
            source = adapted.sources[0]["own"] = leaves(adapted.banks[0])
            y = adapted({n: t[order] for n, t in inputs.items()}, Route.to(ids)).last_hidden_state.float()
            (y**2).sum().backward()
            found.append(source.grad[2])
        assert all(torch.equal(found[0], other) for other in found)


@each
def test_it_trains(delta):
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, delta, spread=0)
    adapted, source = Adapted(f, [made]), leaves(made)
    adapted.sources[0]["own"] = source
    target = torch.randn(len(IDS), D, generator=torch.Generator().manual_seed(4)).sign()
    optimiser = torch.optim.Adam([source], lr=made.delta.lr)
    losses = []
    for _ in range(12):
        losses.append(((run(adapted, inputs, IDS)[:, 0] - target) ** 2).mean(1))
        optimiser.zero_grad()
        losses[-1].sum().backward()
        optimiser.step()
    for i, slot in enumerate(IDS):
        start, end = losses[0][i].item(), losses[-1][i].item()
        assert end < start if slot else end == start, (slot, start, end)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@everywhere
def test_gradients_are_equal_under_gradient_checkpointing(delta, name):
    f, inputs = loaded(backbone(name), backbone(name).state_dict()), batch(name)
    made = bank(f, delta)
    want, got = leaves(made), leaves(made)
    for source in (want, got):
        adapted = Adapted(f, [made])
        adapted.sources[0]["own"] = source
        adapted.train()  # transformers checkpoints in training mode only
        (real(inputs, run(adapted, inputs, IDS)) ** 2).sum().backward()
        f.gradient_checkpointing_enable({"use_reentrant": False})
    assert want.grad.abs().max() > 0
    close(got.grad, want.grad)


# ---- machines


@each
def test_it_compiles_in_one_graph_and_another_route_needs_no_other(delta):
    f, inputs = backbone("bert", blocks=1), batch("bert")
    adapted, graphs = Adapted(f, [bank(f, delta)]), []
    torch._dynamo.reset()

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(adapted, backend=count, fullgraph=True, dynamic=False)
    for ids in (IDS, (1, 1, 2, 0, 3), (3, 2, 3, 2, 0)):
        close(compiled(inputs, Route.to(ids)).last_hidden_state, run(adapted, inputs, ids))
    assert len(graphs) == 1


@each
def test_twins_in_four_threads_give_the_bits_of_one(delta):
    f, inputs = backbone("bert"), batch("bert")
    adapted = Adapted(f, [bank(f, delta)])
    routes = [IDS, IDS[::-1], (1,) * 5, (0, 3, 3, 0, 1)]
    want = [run(adapted, inputs, ids) for ids in routes]
    wrong: list[int] = []

    def serve(twin: Adapted, k: int) -> None:
        with torch.no_grad():
            wrong.extend(i % 4 for i in range(k, k + 12) if not torch.equal(run(twin, inputs, routes[i % 4]), want[i % 4]))

    threads = [threading.Thread(target=serve, args=(adapted.twin(), k)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- many banks


class Layer(nn.Module):
    """One linear layer: what a bank adds there can be read off the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("delta", SITED)
@pytest.mark.parametrize("other", ["lora", "adapter", "ia3", "offset"])
def test_banks_add_at_one_site_and_a_later_stage_sees_the_earlier(delta, other):
    f, x = Layer(), torch.randn(5, 4, D, generator=torch.Generator().manual_seed(5))
    a, b = bank(f, delta, at="layer"), bank(f, other, at="layer")
    route, y = Route.to(IDS), f(x)
    alone = [Adapted(f, [made])({"x": x}, route) - y for made in (a, b)]
    close(Adapted(f, [a, b])({"x": x}, route), y + alone[0] + alone[1])
    close(Adapted(f, [b, a])({"x": x}, [None, route]), y + alone[0])
    late = bank(f, other, at="layer", stage=1)
    after = nn.Sequential()  # f with a folded in by hand: its output is what the later stage starts from
    after.layer = lambda x: y + alone[0]
    got = Adapted(f, [late, a])({"x": x}, route)
    if other == "ia3":  # dy = y * s: the one that shows the difference
        close(got, (y + alone[0]) * (1 + alone[1] / y))
    elif other in ("lora", "offset"):
        close(got, y + alone[0] + alone[1])
    else:
        assert not torch.allclose(got, y + alone[0] + alone[1], atol=1e-5)


def test_every_delta_says_where_it_trains():
    for name in DELTAS:
        kind = find(f"delta.{name}")
        assert issubclass(kind, Delta) and 0 < kind.lr < 1
