"""BitFit: the same as other biases, where f has some."""

import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run

from anabranch.core.adapt import Adapted


def test_it_is_a_change_of_the_biases_alone():
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "offset")
    state = dict(f.state_dict())
    for site in made.sites:
        state[f"{site.name}.bias"] = state[f"{site.name}.bias"] + made.take(2)[site.key]["d"]
    assert len(made.sites) == 12 and made.tables["own"].n == sum(s.d_out for s in made.sites)
    with torch.no_grad():
        want = loaded(f, state)(**inputs).last_hidden_state
        close(real(inputs, run(Adapted(f, [made]), inputs, [2] * 5)), real(inputs, want))


def test_it_also_moves_layers_that_have_no_bias():
    f, inputs = backbone("llama"), batch("llama")
    made = bank(f, "offset", at="mlp.out[-1:]")
    with torch.no_grad():
        held: list[torch.Tensor] = []
        handle = f.norm.register_forward_pre_hook(lambda m, a: held.append(a[0]))
        f(**inputs)
        handle.remove()
        want = f.norm(held[0] + made.take(1)[made.sites[0].key]["d"])
        close(run(Adapted(f, [made]), inputs, [1] * 5), want)
