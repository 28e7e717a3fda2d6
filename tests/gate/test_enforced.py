import pytest
import torch
from laws._nasty import backbone, bank, batch, close, loaded, run

from anabranch.core.adapt import Adapted
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.errors import InputError
from anabranch.settings import card

DOMAINS = {"science": ["physics", "biology"], "law": ["courts"]}
TASKS = ["courts", "physics", "chat", "biology", "mail"]


def test_tasks_of_a_domain_train_together():
    gate = make("gate", {"enforced": {"domains": DOMAINS}})
    assert gate.groups(TASKS) == [["physics", "biology"], ["courts"], ["chat"], ["mail"]]
    assert make("gate", "enforced").groups(TASKS) == [[t] for t in TASKS]
    assert make("gate", "by_task").groups(TASKS) == [TASKS]


@pytest.mark.parametrize(("domains", "said"), [
    ({"a": ["physic"]}, "'physic' of domain a is no task of the plan; did you mean physics"),
    ({"a": ["chat"], "b": ["chat"]}, "'chat' of domain b is in another domain too"),
])  # fmt: skip
def test_domains_that_cannot_be(domains, said):
    with pytest.raises(InputError, match=said):
        make("gate", {"enforced": {"domains": domains}}).groups(TASKS)


@pytest.mark.parametrize("domains", [{"a": "chat"}, ["chat"], {"a": 3}, "chat"])
def test_domains_of_another_shape(domains):
    with pytest.raises(InputError, match=r"domains is \{domain: \[task"):
        make("gate", {"enforced": {"domains": domains}})


def test_experts_are_copies_of_f_s_own_mlp():
    """A mixed batch answers as separate models, each with the MLPs of one domain in the place of f's; slot by task name."""
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "dense", {"enforced": {"domains": DOMAINS}}, at=["mlp.in", "mlp.out"], slots=4, spread=0.05)
    ids = [next(k for k, group in enumerate(made.gate.groups(TASKS), 1) if task in group) for task in TASKS]
    got = run(Adapted(f, [made]), inputs, ids)
    for i, slot in enumerate(ids):
        one = loaded(f, fold(f, [(made, slot, 1.0)]))
        n = int(inputs["attention_mask"][i].sum())
        close(got[i, :n], one(**inputs).last_hidden_state[i, :n], 2e-4)
    fresh = bank(f, "dense", "enforced", at=["mlp.in", "mlp.out"], slots=2, spread=0.0)
    assert torch.equal(run(Adapted(f, [fresh]), inputs, [1, 2, 1, 2, 1]), f(**inputs).last_hidden_state)  # as the copies begin


def test_its_card_is_data():
    assert card(make("gate", {"enforced": {"domains": DOMAINS}}))["settings"] == {"domains": DOMAINS}
