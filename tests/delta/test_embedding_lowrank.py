"""DePT: by hand, and both of its halves against f fed with other embeddings."""

import pytest
import torch
from laws._nasty import D, backbone, bank, batch, close, real, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.errors import InputError

WORDS = {"bert": "embeddings.word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}


def test_by_hand():
    delta = make("delta", {"embedding_lowrank": {"length": 3, "rank": 1}})
    p = {"a": torch.tensor([[1.0], [2.0], [3.0]]), "b": torch.tensor([[10.0, 0.0]])}
    mask = torch.tensor([False, True, True, True, True, False])  # padding on both sides, four words, three places
    at = At(torch.arange(6), torch.zeros(6, 2), mask)
    assert delta.apply(p, at).tolist() == [[0, 0], [10, 0], [20, 0], [30, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("name", sorted(WORDS))
def test_it_is_f_on_other_word_embeddings(name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, {"embedding_lowrank": {"length": 6, "rank": 4}}, at=WORDS[name])
    p = made.take(2)[made.sites[0].key]
    assert made.sites[0].kind == "embedding" and made.tables["own"].n == (6 + D) * 4
    x = f.get_input_embeddings()(inputs["input_ids"]).clone()
    x[:, :6] += p["a"] @ p["b"]
    with torch.no_grad():
        want = f(inputs_embeds=x, attention_mask=inputs["attention_mask"]).last_hidden_state
        close(real(inputs, run(Adapted(f, [made]), inputs, [2] * 5)), real(inputs, want))


@pytest.mark.parametrize("name", sorted(WORDS))
def test_with_a_short_prompt_it_is_dept(name):
    """[P; E(x) + A B]: the prompt in front is not moved, the text keeps its places."""
    f, inputs = backbone(name), batch(name)
    prompt = bank(f, {"prompt": {"tokens": 3}})
    low = bank(f, {"embedding_lowrank": {"length": 20, "rank": 2}}, at=WORDS[name])
    P, p = prompt.take(1)[prompt.sites[0].key]["tokens"], low.take(1)[low.sites[0].key]
    x = f.get_input_embeddings()(inputs["input_ids"]) + (p["a"] @ p["b"])[: inputs["input_ids"].shape[1]]
    longer = torch.cat([P.expand(5, -1, -1), x], 1), torch.cat([torch.ones(5, 3, dtype=torch.long), inputs["attention_mask"]], 1)
    with torch.no_grad():
        want = f(inputs_embeds=longer[0], attention_mask=longer[1]).last_hidden_state[:, 3:]
        got = Adapted(f, [prompt, low])(inputs, Route.to([1] * 5)).last_hidden_state
        close(real(inputs, got), real(inputs, want))


def test_a_rank_beyond_the_places_is_refused():
    with pytest.raises(InputError, match="rank is at most 4 at embeddings, got 5"):
        bank(backbone("bert"), {"embedding_lowrank": {"length": 4, "rank": 5}})
