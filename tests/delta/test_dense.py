"""A task vector runs as the other weights would: in layers, norms, embeddings, with and without biases."""

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run

from anabranch.core.adapt import Adapted
from anabranch.core.fold import fold


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_runs_as_the_other_weights(name, bias):
    f, inputs = backbone(name), batch(name)
    words = "embeddings.word_embeddings" if name == "bert" else "embedding"
    made = bank(f, {"dense": {"bias": bias}}, at=["norm", words, "attention.value", "mlp.out"], spread=0.05)
    state = dict(f.state_dict())
    for site in made.sites:
        p, W, b = made.take(3)[site.key], f"{site.name}.weight", f"{site.name}.bias"
        state[W] = state[W].clone()
        if site.kind == "transposed":
            state[W][:, site.columns] += p["W"].T
        else:
            state[W] += p["W"]
        assert ("b" in p) == (bias and b in state)
        if "b" in p:
            state[b] = state[b].clone()
            state[b][site.columns] += p["b"]
    with torch.no_grad():
        want = real(inputs, loaded(f, state)(**inputs).last_hidden_state)
        close(real(inputs, run(Adapted(f, [made]), inputs, [3] * 5)), want)
        mixed = run(Adapted(f, [made]), inputs, [3, 0, 1, 3, 2])
        close(mixed[:1], run(Adapted(f, [made]), {k: t[:1] for k, t in inputs.items()}, [3]))
        close(real(inputs, loaded(f, fold(f, [(made, 3, 1.0)]))(**inputs).last_hidden_state), want)


def test_tables_of_places_move_too():
    f, inputs = backbone("gpt2"), batch("gpt2")
    made = bank(f, "dense", at="wpe")
    with torch.no_grad():
        state = dict(f.state_dict()) | {"wpe.weight": f.wpe.weight + made.take(2)["wpe"]["W"]}
        want = loaded(f, state)(**inputs).last_hidden_state
        got = run(Adapted(f, [made]), inputs, [2, 0, 2, 2, 2])
    close(got[[0, 2, 4]], want[[0, 2, 4]])
    close(got[1], f(**inputs).last_hidden_state[1])
