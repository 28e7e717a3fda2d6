"""How deltas reach f: both doors, many banks, routes and their errors, generation. Laws over all deltas: laws/delta.py."""

import pytest
import torch
from laws._nasty import IDS, MAKES, D, backbone, bank, batch, close, loaded, real, row, run
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from anabranch.core.adapt import Adapted
from anabranch.core.fold import fold
from anabranch.core.route import LONG_RUN, Route
from anabranch.core.site import find
from anabranch.errors import InputError

PLAIN = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def causal(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "gpt2":
        f = GPT2LMHeadModel(GPT2Config(n_embd=D, n_layer=2, n_head=4, vocab_size=50, bos_token_id=0, eos_token_id=0))
    else:
        f = LlamaForCausalLM(LlamaConfig(**PLAIN, bos_token_id=0, eos_token_id=0))
    for p in f.parameters():
        p.data += 0.1 * torch.randn_like(p)
    f.generation_config.pad_token_id = 0
    f.generation_config.eos_token_id = None
    return f.eval()


# ---- f is never touched


@pytest.mark.parametrize("name", MAKES)
def test_f_keeps_its_names_its_bits_and_has_no_hooks(name):
    f = loaded(backbone(name), backbone(name).state_dict())
    names, before = [n for n, _ in f.named_parameters()], {n: t.clone() for n, t in f.state_dict().items()}
    adapted = Adapted(f, [bank(f, "lora"), bank(f, "deep_prompt"), bank(f, "adapter", stage=1)])
    run(adapted, batch(name), IDS).sum()
    assert [n for n, _ in f.named_parameters()] == names == [n for n, _ in adapted.f.named_parameters()]
    assert all(torch.equal(t, before[n]) for n, t in f.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in f.modules())
    assert torch.equal(f(**batch(name)).last_hidden_state, run(adapted, batch(name), None))


def test_a_twin_shares_every_tensor_and_nothing_else():
    f = backbone("bert")
    one = Adapted(f, [bank(f, "lora")])
    two = one.twin()
    assert all(a is b for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.banks[0] is two.banks[0] and one.f is not two.f
    want = run(one, batch("bert"), IDS)
    run(two, batch("bert"), [1] * 5)
    assert torch.equal(one.routes[0].ids[:, 0], torch.tensor(IDS))
    assert torch.equal(run(two, batch("bert"), IDS), want)


def test_an_error_in_the_middle_leaves_the_next_call_right():
    f = backbone("bert")
    adapted = Adapted(f, [bank(f, "lora"), bank(f, "deep_prompt")])
    want = run(adapted, batch("bert"), IDS)
    with pytest.raises(InputError):
        run(adapted, batch("bert"), [1, 2])
    assert torch.equal(run(adapted, batch("bert"), IDS), want)
    assert torch.equal(run(adapted, batch("bert"), None), f(**batch("bert")).last_hidden_state)


# ---- routes


def test_a_route_knows_its_runs():
    cuts = lambda route: [(run.start, run.stop, run.full) for run in route.runs]  # noqa: E731
    assert cuts(Route.to([1, 1, 0, 2, 2, 2])) == [(0, 2, True), (2, 3, False), (3, 6, True)]
    assert cuts(Route.to([[1, 2], [1, 2], [2, 0]])) == [(0, 2, True), (2, 3, False)]
    two = Route.to([1, 1, 1], who=torch.tensor([1, 1, 2]))
    assert [(run.start, run.stop, run.alone) for run in two.runs] == [(0, 3, False)]
    assert [(run.start, run.stop, run.alone) for run in two.turns] == [(0, 2, True), (2, 3, True)]
    assert Route.to([5]).ends == (5, 5) and Route.to(torch.tensor([3, 3])).ids.shape == (2, 1)


def test_long_runs_stand_alone_and_short_ones_are_gathered_together():
    ids = [1, 2, 0, *[3] * LONG_RUN, 1, 2, *[0] * LONG_RUN]
    parts = [(p.start, p.stop, p.same, p.full) for p in Route.to(ids).stretches(matrix=False)]
    n = LONG_RUN
    assert parts == [(0, 3, False, False), (3, 3 + n, True, True), (3 + n, 5 + n, False, True), (5 + n, 5 + 2 * n, True, False)]
    many = Route.to([1, *[2] * n] * 3)  # so many parts that all rows are gathered instead
    assert many.stretches(matrix=False) == [(0, 3 * n + 3, False, True, False)] and len(many.stretches(matrix=True)) == 6
    assert all(p.same for p in Route.to(ids).stretches(matrix=True)) and len(Route.to(ids).stretches(matrix=True)) == 7
    assert [p.same for p in Route(torch.tensor(ids)[:, None]).stretches(matrix=True)] == [False]


@pytest.mark.parametrize("ids", [[1, 2], [1] * 6])
def test_a_route_of_another_length_is_refused(ids):
    f = backbone("bert")
    with pytest.raises(InputError, match=f"the route has {len(ids)} rows.*saw 5.*repeat the ids"):
        run(Adapted(f, [bank(f, "lora")]), batch("bert"), ids)
    with pytest.raises(InputError, match=f"the route has {len(ids)} rows.*saw 5"):
        run(Adapted(f, [bank(f, "deep_prompt")]), batch("bert"), ids)


@pytest.mark.parametrize("slot", [4, -1])
def test_slots_that_are_not_there_are_refused(slot):
    f = backbone("bert")
    with pytest.raises(InputError, match=f"the bank has slots 1 to 3, got {slot}"):
        run(Adapted(f, [bank(f, "lora")]), batch("bert"), [1, 2, slot, 0, 1])


def test_as_many_routes_as_banks():
    f = backbone("bert")
    adapted = Adapted(f, [bank(f, "lora"), bank(f, "offset")])
    with pytest.raises(InputError, match="2 banks.*3 routes"):
        adapted(batch("bert"), [Route.to(IDS)] * 3)


@pytest.mark.parametrize("gate", ["fixed", "learned"])
def test_a_gate_with_tensors_of_tasks_needs_to_know_whose(gate):
    f = backbone("bert")
    made = bank(f, "lora", gate, routes=1)
    made.add_gate(made.gates(torch.Generator()))
    with pytest.raises(InputError, match="who"):
        run(Adapted(f, [made]), batch("bert"), IDS)
    run(Adapted(f, [made]), batch("bert"), IDS, who=torch.ones(5, dtype=torch.long))


@pytest.mark.parametrize("delta", ["lora", "ia3", "adapter", "offset", "dense", "mask"])
def test_slots_of_a_row_add_up_with_their_weights(delta):
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 5, 4)
    made = bank(f, {"lora": {"rank": 2}} if delta == "lora" else delta, at="0")
    adapted = Adapted(f, [made])
    alone = [adapted({"input": x}, Route.to([i] * 3)) - f(x) for i in range(4)]
    ids, w = torch.tensor([[1, 2, 0], [3, 0, 0], [2, 3, 1]]), torch.tensor([[0.5, -2.0, 9.0], [1.0, 9.0, 9.0], [1.0, 0.0, 3.0]])
    got = adapted({"input": x}, Route.to(ids, w=w))
    for i in range(3):
        close(got[i], f(x)[i] + sum(w[i, k] * alone[ids[i, k]][i] for k in range(3)))
    close(adapted({"input": x}, Route.to(ids)), f(x) + torch.stack([sum(alone[k][i] for k in ids[i]) for i in range(3)]))
    one = adapted({"input": x}, Route.to([1, 2, 3], w=torch.tensor([[2.0], [0.0], [-1.0]])))
    close(one, f(x) + torch.stack([2 * alone[1][0], 0 * alone[2][1], -alone[3][2]]))


def test_compiled_it_is_switched_by_the_route_and_trains():
    f, inputs = Mlp(), {"x": torch.randn(5, 6)}
    banks = [bank(f, {"lora": {"rank": 2}}, at="body.2"), bank(f, "offset", at="head")]
    adapted = Adapted(f, banks)  # its hooks are in place before compiling: later ones are ignored
    source = adapted.sources[0]["own"] = banks[0].tables["own"].data.clone().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True, dynamic=False)
    for routes in (None, Route.to(IDS), [None, Route.to(IDS)], Route.to([[1, 2]] * 5), None):
        want, got = adapted(inputs, routes), compiled(inputs, routes)
        close(got, want)
        if isinstance(routes, Route):
            grads = [torch.autograd.grad((y**2).sum(), source)[0] for y in (want, got)]
            close(*grads)
    torch._dynamo.reset()


# ---- sites that are not layers of a transformer


@pytest.mark.parametrize("delta", ["lora", "adapter", "dense", "mask", "offset", "ia3"])
@pytest.mark.parametrize("at", ["body.0", ["body.2", "head"], "*"])
def test_any_module_by_pattern(delta, at):
    f, x = Mlp(), torch.randn(5, 6)
    linear = [s for s in find(f, at) if s.kind == "linear"]
    made = bank(f, {delta: {"rank": 3}} if delta == "lora" else delta, at=[s.key for s in linear])
    adapted = Adapted(f, [made])
    got = adapted({"x": x}, Route.to(IDS))
    for i, slot in enumerate(IDS):
        close(adapted({"x": x[i : i + 1]}, Route.to([slot]))[0], got[i])
    assert torch.equal(got[1], f(x)[1]) and not torch.allclose(got[0], f(x)[0], atol=1e-4)
    if delta != "adapter":
        close(loaded(f, fold(f, [(made, 2, 1.0)]))(x)[[0, 4]], got[[0, 4]])


def test_sites_that_never_run_are_named():
    f = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train()
    adapted = Adapted(f, [bank(f, {"lora": {"rank": 2}}, at="self_attn.out_proj")])
    x = torch.randn(3, 4, 8)
    with pytest.raises(InputError, match=r"self_attn.out_proj.*did not run.*nn.MultiheadAttention"):
        adapted({"src": x}, Route.to([1, 2, 3]))
    assert adapted({"src": x}).shape == x.shape  # without a route nothing would be lost


@pytest.mark.parametrize("at", ["block", "output", "norm"])
def test_deltas_at_what_is_not_a_layer(at):
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "offset", at=at)
    got = Adapted(f, [made])(inputs, Route.to(IDS))
    base = f(**inputs)
    assert type(got) is type(base) and torch.equal(got.last_hidden_state[1], base.last_hidden_state[1])
    if at == "output":
        d = torch.stack([made.take(i)[""]["d"] if i else torch.zeros(D) for i in IDS])
        close(got.last_hidden_state, base.last_hidden_state + d[:, None])


@pytest.mark.parametrize("at", ["embedding", "output"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_where_a_module_takes_no_hidden_states_its_output_is_read(name, at):
    f, inputs = backbone(name), batch(name)
    made = bank(f, "lora", at=at)
    adapted = Adapted(f, [made])
    adapted.seen = {}
    got = run(adapted, inputs, IDS)
    seen = adapted.seen[made.sites[0].key]
    assert torch.equal(seen.x, seen.y) and torch.equal(got[1], f(**inputs).last_hidden_state[1])
    if at == "output":
        p = made.take(2)[""]
        close(got[0], seen.y[0] + seen.y[0] @ p["a"] @ p["b"] * 2)


def test_a_region_that_reads_behind_where_it_writes_says_so():
    f = Mlp()
    with pytest.raises(InputError, match="body.2->body.0 reads behind where it writes: turn it round"):
        Adapted(f, [bank(f, {"lora": {"rank": 3}}, at="body.2->body.0")])({"x": torch.randn(5, 6)}, Route.to(IDS))


def test_regions_take_their_input_elsewhere():
    f, x = Mlp(), torch.randn(5, 6)
    made = bank(f, {"lora": {"rank": 3}}, at="body.0->body.2")
    key = "body.0->body.2"
    held: list[Tensor] = []
    f.head.register_forward_pre_hook(lambda m, args: held.append(args[0]))
    got = Adapted(f, [made])({"x": x}, Route.to(IDS))
    y = f.body[2](f.body[1](f.body[0](x)))
    for i, slot in enumerate(IDS):
        if slot:
            p = made.take(slot)[key]
            y[i] += x[i] @ p["a"] @ p["b"] * 16 / 3
    close(got, f.head(f.body[3](y)))


def test_two_banks_at_one_region():
    f, x = Mlp(), torch.randn(5, 6)
    a, b = bank(f, {"lora": {"rank": 3}}, at="body.0->head"), bank(f, {"lora": {"rank": 1}}, at="body.0->head")
    route, y = Route.to(IDS), f(x)
    alone = [Adapted(f, [made])({"x": x}, route) - y for made in (a, b)]
    close(Adapted(f, [a, b])({"x": x}, route), y + alone[0] + alone[1])
    late = bank(f, {"lora": {"rank": 1}}, at="body.0->head", stage=1)
    close(Adapted(f, [a, late])({"x": x}, route), y + alone[0] + alone[1])


def test_what_a_site_sees_is_recorded_on_request():
    f, inputs = backbone("bert"), batch("bert")
    adapted = Adapted(f, [bank(f, "lora")])
    run(adapted, inputs, IDS)
    assert adapted.seen is None
    adapted.seen = {}
    run(adapted, inputs, IDS)
    at = adapted.seen["encoder.layer.0.attention.self.query"]
    assert set(adapted.seen) == {s.key for s in adapted.banks[0].sites}
    assert torch.equal(at.mask, inputs["attention_mask"].bool()) and at.x.shape == at.y.shape == (5, 9, D)
    close(at.y, at.x @ at.W.mT + at.b)  # f's own, before any delta


# ---- training


def test_gradients_reach_every_bank_at_once_and_no_route_keeps_its_past():
    f, inputs = backbone("bert"), batch("bert")
    adapted = Adapted(f, [bank(f, "lora"), bank(f, "adapter"), bank(f, "deep_prompt")])

    def grads(*routes) -> list[Tensor]:
        leaves = [b.tables["own"].data.clone().requires_grad_() for b in adapted.banks]
        for table, leaf in zip(adapted.sources, leaves, strict=True):
            table["own"] = leaf
        sum((run(adapted, inputs, ids) ** 2).sum() for ids in routes).backward()  # all forward passes before one backward
        return [leaf.grad for leaf in leaves]

    other = (1, 2, 0, 0, 1)
    for both, one, two in zip(grads(IDS, other), grads(IDS), grads(other), strict=True):
        assert one.abs().max() > 0
        close(both, one + two, 1e-4)


def test_a_shared_slot_expanded_to_a_leaf_gives_the_gradient_of_every_task_in_one_backward():
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "lora", slots=1)
    adapted = Adapted(f, [made])
    one = made.tables["own"].data[1]
    tasks = torch.tensor([1, 2, 1, 3, 2])
    leaf = torch.cat([torch.zeros_like(one)[None], one.expand(3, -1)]).requires_grad_()
    adapted.sources[0]["own"] = leaf
    (run(adapted, inputs, tasks) ** 2).sum().backward()
    for task in (1, 2, 3):
        alone = made.tables["own"].data.clone().requires_grad_()
        adapted.sources[0]["own"] = alone
        (run(adapted, inputs, [1] * 5)[tasks == task] ** 2).sum().backward()
        close(leaf.grad[task], alone.grad[1], 1e-4)


def test_it_trains_under_autocast():
    f, inputs = backbone("bert"), batch("bert")
    adapted = Adapted(f, [bank(f, d) for d in ("lora", "adapter", "ia3", "mask", "prompt")])
    leaf = adapted.banks[0].tables["own"].data.clone().requires_grad_()
    adapted.sources[0]["own"] = leaf
    with torch.autocast("cpu", torch.bfloat16):
        y = run(adapted, inputs, IDS)
    y.float().square().sum().backward()
    close(y.float(), run(adapted, inputs, IDS).detach(), 0.2)
    assert leaf.grad.dtype is torch.float32 and leaf.grad.isfinite().all() and leaf.grad[1].any()


def test_it_runs_in_inference_mode():
    f = backbone("bert")
    adapted = Adapted(f, [bank(f, "lora")])
    with torch.inference_mode():
        got = run(adapted, batch("bert"), IDS)
    assert torch.equal(got, run(adapted, batch("bert"), IDS))


# ---- the door "sequence"


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_soft_tokens_of_two_banks_stand_side_by_side(name):
    f, inputs = backbone(name), batch(name)
    a, b = bank(f, {"prompt": {"tokens": 2}}), bank(f, {"prompt": {"tokens": 3}})
    one = bank(f, {"prompt": {"tokens": 5}})
    for i in (1, 2, 3):  # in the order of the banks
        parts = [made.take(i)[made.sites[0].key]["tokens"] for made in (a, b)]
        one.tables["own"].data[i] = torch.cat(parts).flatten()
    close(real(inputs, run(Adapted(f, [a, b]), inputs, IDS)), real(inputs, run(Adapted(f, [one]), inputs, IDS)))
    some = Adapted(f, [a, b])(inputs, [None, Route.to(IDS)]).last_hidden_state
    close(some, run(Adapted(f, [b]), inputs, IDS))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_deep_prompts_at_some_blocks_and_another_kind_beside_them(name):
    f, inputs = backbone(name), batch(name)
    low, high = bank(f, "deep_prompt", at="block[0]"), bank(f, "deep_prompt", at="block[1]")
    both = bank(f, "deep_prompt", at="block")
    for made in (low, high):
        for i in (1, 2, 3):
            site = made.sites[0].key
            start = both.tables["own"].n // 2 * made.sites[0].depth
            both.tables["own"].data[i, start : start + made.tables["own"].n] = made.take(i)[site]["tokens"].flatten()
    lora = bank(f, "lora")
    want = run(Adapted(f, [both, lora]), inputs, IDS)
    close(run(Adapted(f, [low, high, lora]), inputs, IDS), want)
    close(real(row(inputs, 1), want[1:2]), real(row(inputs, 1), f(**row(inputs, 1)).last_hidden_state))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("delta", ["prompt", "deep_prompt", "lora"])
def test_padding_on_the_left_is_unseen_where_positions_say_so(name, delta):
    f, inputs = backbone(name), batch(name)
    adapted = Adapted(f, [bank(f, delta)])
    want = run(adapted, inputs, IDS)
    n = inputs["attention_mask"].sum(1)
    roll = lambda t, k: torch.stack([r.roll(int(s)) for r, s in zip(t, k, strict=True)])  # noqa: E731
    left = {k: roll(t, t.shape[1] - n) for k, t in inputs.items()}
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    got = run(adapted, left, IDS)
    close(got[left["attention_mask"].bool()], real(inputs, want))


def test_positions_of_the_text_follow_f_where_padding_has_its_own():
    torch.manual_seed(0)
    f = RobertaModel(RobertaConfig(**PLAIN, max_position_embeddings=64), add_pooling_layer=False).eval()
    inputs = batch("bert")
    inputs["input_ids"] = torch.where(inputs["attention_mask"] > 0, inputs["input_ids"].clamp(min=2), 1)
    got = run(Adapted(f, [bank(f, "prompt")]), inputs, IDS)
    close(real(row(inputs, 1), got[1:2]), real(row(inputs, 1), f(**row(inputs, 1)).last_hidden_state))


def test_a_prompt_does_not_take_the_place_that_f_pools():
    torch.manual_seed(0)
    f = BertModel(BertConfig(**PLAIN)).eval()
    base = f(**batch("bert")).pooler_output
    close(Adapted(f, [bank(f, "deep_prompt")])(batch("bert"), Route.to(IDS)).pooler_output[1], base[1])
    with pytest.raises(InputError, match="pool"):
        Adapted(f, [bank(f, "prompt")])(batch("bert"), Route.to(IDS))
    assert torch.equal(Adapted(f, [bank(f, "prompt")])(batch("bert")).pooler_output, base)


def test_a_prompt_longer_than_fs_positions_is_refused():
    torch.manual_seed(0)
    f = BertModel(BertConfig(**PLAIN, max_position_embeddings=12), add_pooling_layer=False).eval()
    run(Adapted(f, [bank(f, {"prompt": {"tokens": 3}})]), batch("bert"), IDS)
    with pytest.raises(InputError, match="9 tokens.*4 soft tokens.*12 positions"):
        run(Adapted(f, [bank(f, {"prompt": {"tokens": 4}})]), batch("bert"), IDS)


def test_images_have_no_words_to_put_a_prompt_before():
    f = backbone("vit")
    with pytest.raises(InputError, match="embeds no tokens.*deep_prompt"):
        run(Adapted(f, [bank(f, "prompt")]), batch("vit"), IDS)


def test_bits_of_the_front_are_cut_from_every_output():
    f, inputs = backbone("bert"), batch("bert")
    adapted = Adapted(f, [bank(f, {"prompt": {"tokens": 4}})])
    out = adapted(inputs | {"output_hidden_states": True}, Route.to(IDS))
    assert out.last_hidden_state.shape == (5, 9, D)
    assert [h.shape for h in out.hidden_states] == [(5, 9, D)] * 3


# ---- generation


def greedy(adapted: Adapted, inputs: dict[str, Tensor], route: Route | None, steps: int) -> Tensor:
    """Word by word with a full forward pass each, padding on the left."""
    adapted.routes = [route]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = adapted({"input_ids": ids, "attention_mask": mask, "position_ids": positions}, [route]).logits
        ids = torch.cat([ids, logits[:, -1].argmax(1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("delta", ["lora", "prompt", "ia3"])
@pytest.mark.parametrize("cached", [True, False])
def test_generation_with_and_without_a_cache_is_word_by_word_the_same(name, delta, cached):
    f, inputs = causal(name), batch("gpt2", 4, 6)
    inputs = {k: t.flip(1) for k, t in inputs.items()}
    adapted, route = Adapted(f, [bank(f, delta, spread=0.5)]), Route.to([2, 0, 1, 3])
    adapted.routes = [route]
    got = adapted.f.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=cached)
    want = greedy(adapted, inputs, route, 5)
    assert torch.equal(got, want)
    assert torch.equal(want[1:2], greedy(adapted, row(inputs, 1), None, 5))
    assert not torch.equal(want, greedy(adapted, inputs, None, 5))


def test_deep_prompts_generate_without_a_cache_only():
    f, inputs = causal("gpt2"), {k: t.flip(1) for k, t in batch("gpt2", 4, 6).items()}
    adapted, route = Adapted(f, [bank(f, "deep_prompt")]), Route.to([2, 0, 1, 3])
    adapted.routes = [route]
    got = adapted.f.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(got, greedy(adapted, inputs, route, 4))
    adapted.routes = [route]
    with pytest.raises(InputError, match="use_cache=False"):
        adapted.f.generate(**inputs, max_new_tokens=4, do_sample=False)


def test_beam_search_asks_for_as_many_rows_of_the_route():
    f, inputs = causal("gpt2"), {k: t.flip(1) for k, t in batch("gpt2", 4, 6).items()}
    adapted, ids = Adapted(f, [bank(f, "lora", spread=0.5)]), torch.tensor([2, 0, 1, 3])
    adapted.routes = [Route.to(ids)]
    with pytest.raises(InputError, match="the route has 4 rows.*saw 8: beam search.*repeat the ids"):
        adapted.f.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)
    adapted.routes = [Route.to(ids.repeat_interleave(2))]
    got = adapted.f.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)
    for i in range(4):
        adapted.routes = [Route.to(ids[[i, i]])]
        alone = adapted.f.generate(**row(inputs, i), max_new_tokens=4, num_beams=2, do_sample=False)
        assert torch.equal(alone[0], got[i])
