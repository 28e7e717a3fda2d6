"""Prompt tuning against peft, and as what it is: words that are no words in front of the text."""

import copy

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, real, run
from peft import PromptTuningConfig, TaskType, get_peft_model

from anabranch.core.adapt import Adapted


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_against_peft(name):
    f, inputs = backbone(name), batch(name)
    ours = bank(f, {"prompt": {"tokens": 3}}, slots=1)
    config = PromptTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=3)
    theirs = get_peft_model(copy.deepcopy(f), config).eval()
    theirs.prompt_encoder["default"].embedding.weight.data = ours.take(1)[ours.sites[0].key]["tokens"]
    with torch.no_grad():
        want = theirs(**inputs).last_hidden_state[:, 3:]
        close(real(inputs, run(Adapted(f, [ours]), inputs, [1] * 5)), real(inputs, want))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_soft_tokens_that_are_words_are_words(name):
    f, inputs = backbone(name), batch(name)
    ours, words = bank(f, {"prompt": {"tokens": 2}}, slots=2), torch.tensor([[5, 9], [7, 7]])
    for i in (1, 2):
        ours.tables["own"].data[i] = f.get_input_embeddings()(words[i - 1]).detach().flatten()
    ids = torch.tensor([1, 2, 1, 2, 1])
    longer = {
        "input_ids": torch.cat([words[ids - 1], inputs["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones(5, 2, dtype=torch.long), inputs["attention_mask"]], 1),
    }
    with torch.no_grad():
        want = f(**longer).last_hidden_state[:, 2:]
        close(real(inputs, run(Adapted(f, [ours]), inputs, ids)), real(inputs, want))
