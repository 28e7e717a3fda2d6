"""How the laboratory's two small language models are made: corpus, tokenizer, training, and what they can do at the end."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.engine._context import TASKS, Task
from anabranch.engine._loop import drawn, train

LENGTH = 64  # tokens of a training row; the models have positions for 128
UNREAD = -100  # label of a token that no loss reads
MASKED = 0.2
ASKED = 0.1  # weight of the tokens of a prompt, most of which are chance; all others have 1
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

Texts = Mapping[str, Sequence[str]]


def texts(suite: Path) -> dict[str, list[str]]:
    """Every sentence of a docstring suite's tasks, once, by split: ``{"train", "test"}``."""
    found: dict[str, list[str]] = {}
    for split in ("train", "test"):
        files = sorted(suite.glob(f"*/{split}.jsonl"))
        rows = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
        found[split] = list(dict.fromkeys(row[field] for row in rows for field in ("text", "text_b") if row.get(field)))
    return found


def tokenizer(lines: Sequence[str], vocab: int, causal: bool) -> Any:
    """Byte-level BPE of ``lines``; a causal one adds no special tokens and ends texts with [SEP]."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    bpe.train_from_iterator(lines, trainer)
    if not causal:
        bpe.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    ends = dict(eos_token="[SEP]", bos_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=2 * LENGTH, **(ends | names if causal else names))


def packed(ids: Iterable[Sequence[int]], length: int, pad: int) -> Tensor:
    """Whole texts side by side in rows [n, length], so that every row starts with a start; too long ones are cut."""
    rows: list[list[int]] = [[]]
    for one in ids:
        if rows[-1] and len(rows[-1]) + len(one) > length:
            rows.append([])
        rows[-1] += one[:length]
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def apart(text: Tensor) -> dict[str, Tensor]:
    """What keeps the texts of a packed row apart, given each token's text [b, l]: who sees whom, and places from 0."""
    place = torch.arange(text.shape[1]).expand_as(text)
    first = torch.zeros_like(text).scatter_reduce(1, text, place, "amin", include_self=False)
    same = text[:, None, :, None] == text[:, None, None, :]
    return {"attention_mask": same, "position_ids": place - first.gather(1, text)}


def masked(rows: Tensor, vocab: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids with a fifth of the tokens chosen (80% of these a mask, 10% another token, 10% as they were), and labels [b, l]."""
    draw, kind = torch.rand(rows.shape, generator=rng), torch.rand(rows.shape, generator=rng)
    chosen = (draw < MASKED) & (rows >= len(SPECIAL))
    other = torch.randint(len(SPECIAL), vocab, rows.shape, generator=rng)
    ids = torch.where(chosen & (kind < 0.8), SPECIAL.index("[MASK]"), rows)
    return torch.where(chosen & (kind > 0.9), other, ids), torch.where(chosen, rows, UNREAD)


def bert(folder: Path, corpus: Texts, *, seed: int, steps: int, d: int, blocks: int, heads: int, vocab: int) -> dict[str, float]:
    """Writes a masked LM with its tokenizer to ``folder``; loss, and accuracy on held-out masks beside the unigram's."""
    from transformers import BertConfig, BertForMaskedLM

    words = tokenizer(corpus["train"], vocab, False)
    config = BertConfig(
        vocab_size=len(words), hidden_size=d, num_hidden_layers=blocks, num_attention_heads=heads, intermediate_size=4 * d,
        max_position_embeddings=2 * LENGTH, pad_token_id=0, initializer_range=0.05,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    f, rng = BertForMaskedLM(config), torch.Generator().manual_seed(seed)
    seen, unseen = (packed(words(list(corpus[s]))["input_ids"], LENGTH, 0) for s in ("train", "test"))

    def scores(ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        text = torch.where(labels == UNREAD, ids, labels) == SPECIAL.index("[CLS]")
        hidden = f.bert(ids, **apart(text.long().cumsum(1))).last_hidden_state
        return f.cls(hidden[labels != UNREAD]), labels[labels != UNREAD]  # logits of the masked tokens only

    def loss(rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(*scores(*masked(rows, len(words), rng)))

    final = train(f, drawn(seen, 8, rng), loss, steps, 2e-3)
    with torch.inference_mode():
        found = [scores(*masked(part, len(words), rng)) for part in unseen.split(64)]
    answers, labels = torch.cat([s.argmax(-1) for s, _ in found]), torch.cat([y for _, y in found])
    common = seen[seen >= len(SPECIAL)].mode().values
    save(f, words, folder)
    right, usual = (answers == labels).float().mean(), (labels == common).float().mean()
    return {"loss": final, "masked accuracy": float(right), "unigram accuracy": float(usual)}


def gpt2(
    folder: Path, corpus: Texts, tasks: Sequence[Task], *,
    share: float, seed: int, steps: int, d: int, blocks: int, heads: int, vocab: int,
) -> dict[str, float]:  # fmt: skip
    """Writes a causal LM with its tokenizer to ``folder``; loss, held-out perplexity, what is right of each task's answers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    batch, dice, rng = 8, random.Random(seed), torch.Generator().manual_seed(seed)
    sample = [" ".join(task(dice)) for task in tasks or TASKS for _ in range(500)]
    words = tokenizer([*corpus["train"], *sample], vocab, True)
    config = GPT2Config(
        vocab_size=len(words), n_embd=d, n_layer=blocks, n_head=heads, n_positions=2 * LENGTH, bos_token_id=3, eos_token_id=3,
        pad_token_id=0, initializer_range=0.05, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    f = GPT2LMHeadModel(config)
    docs, unseen = (packed(ended(words, corpus[s]), LENGTH, 0) for s in ("train", "test"))
    need = round(share * batch * steps) if tasks else 0  # each row of tasks is seen once
    made, quiet = docs[:0], docs[:0]
    while len(made) < need:
        more = [dice.choice(tasks)(dice) for _ in range(2 * need)]
        fronts, whole = words([prompt for prompt, _ in more])["input_ids"], ended(words, map(" ".join, more))
        front = ([1] * len(a) + [0] * (len(b) - len(a)) for a, b in zip(fronts, whole, strict=True))
        made, quiet = torch.cat([made, packed(whole, LENGTH, 0)]), torch.cat([quiet, packed(front, LENGTH, 0)])
    passes = torch.cat([torch.randperm(len(docs), generator=rng) for _ in range(1 + batch * steps // len(docs))])
    read = docs[passes[: batch * steps - need]]
    rows = torch.cat([torch.stack([made, quiet], 1)[:need], torch.stack([read, torch.zeros_like(read)], 1)])

    def loss(rows: Tensor) -> Tensor:
        ids, quiet = rows.unbind(1)
        real, ends = ids[:, 1:] != 0, torch.nn.functional.pad(ids == words.eos_token_id, (1, -1))
        seen = apart(ends.long().cumsum(1))
        seen["attention_mask"] = seen["attention_mask"].tril()
        hidden = f.transformer(ids, **seen).last_hidden_state[:, :-1]
        losses = nn.functional.cross_entropy(f.lm_head(hidden[real]), ids[:, 1:][real], reduction="none")
        weights = torch.where(quiet[:, 1:][real] > 0, ASKED, 1.0) * (~ends[:, 1:][real])  # no first token is foretold
        return (weights * losses).sum() / weights.sum()

    final = train(f, drawn(rows, batch, rng), loss, steps, 2e-3)
    counts = Counter((docs[docs != 0]).tolist())
    total = sum(counts.values()) + len(words)
    with torch.inference_mode():
        perplexity = math.exp(float(loss(torch.stack([unseen, torch.zeros_like(unseen)], 1))))
    told = unseen[:, 1:][(unseen[:, 1:] != 0) & (unseen[:, :-1] != words.eos_token_id)].tolist()
    unigram = math.exp(-sum(math.log((counts[t] + 1) / total) for t in told) / len(told))
    save(f, words, folder)
    answers = {f"right {task.__name__}": answered(f, words, task, random.Random(f"test {seed}")) for task in tasks}
    return {"loss": final, "perplexity": perplexity, "unigram perplexity": unigram} | answers


def ended(words: Any, lines: Iterable[str]) -> list[list[int]]:
    return [[*ids, words.eos_token_id] for ids in words(list(lines))["input_ids"]] if lines else []


def answered(f: nn.Module, words: Any, task: Task, rng: random.Random, rows: int = 200) -> float:
    """After ``rows`` new prompts, the share of the answers' tokens that are most likely after those before them."""
    right = list[bool]()
    for prompt, answer in (task(rng) for _ in range(rows)):
        front, rest = (words(part)["input_ids"] for part in (prompt, answer))
        with torch.inference_mode():
            best = f(torch.tensor([front + rest])).logits[0].argmax(-1).tolist()
        right += [a == b for a, b in zip(best[len(front) - 1 : -1], rest, strict=True)]
    return sum(right) / len(right)


def save(f: Any, words: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    f.eval().save_pretrained(folder)
    words.save_pretrained(folder)
