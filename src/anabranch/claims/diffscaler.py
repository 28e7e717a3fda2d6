"""The affiner (scale, shift and a branch of rank 1 at the attention's layers and the MLP's output) against SSF (scale and shift
at every linear layer and norm) and against LoRA of rank 2 without scale and shift, with equal trained numbers to within five per
cent; and how far its scores are from full fine-tuning's, against those of biases alone (BitFit). Last two blocks of an English
sentence encoder, six text tasks of 256 rows from other domains than its own: tweets, SMS, software, Indonesian, Pidgin. The
row's other half, the denoising loss of a diffusion model, is not measured."""

from typing import Any

from anabranch.claims._deltas import one

holds = ("affiner > ssf", "affiner > lora", "affiner_gap < bitfit_gap")
SHIFTED = ("tweet_emotion", "senti4sd", "sms_spam", "isarcasm", "afrisenti_pcm", "indonlu_smsa")  # of --data
ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.out")
NARROW = ("attention.query", "attention.value", "attention.out")
RATE = 5e-3  # that of SSF and of the biases


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(SHIFTED if lab.data else 6, rows=256)
    affiner = suite.own({"affiner": {"rank": 1}, "at": (*ATTENTION, "mlp.out"), "lr": RATE})
    ssf = suite.own("ssf")
    lora = suite.own({"lora": {"rank": 2, "alpha": 4.0}, "at": (*NARROW, "mlp.out"), "lr": RATE})
    mine, full, biases = affiner.scores(), suite.own("dense").scores(), suite.own("offset").scores()
    return {
        "affiner": mine, "ssf": ssf.scores(), "lora": lora.scores(), "full": full, "bitfit": biases, "probe": suite.probe(),
        "affiner_gap": {n: abs(mine[n] - full[n]) for n in full}, "bitfit_gap": {n: abs(biases[n] - full[n]) for n in full},
        "affiner_numbers": one(affiner.numbers), "ssf_numbers": one(ssf.numbers), "lora_numbers": one(lora.numbers),
    }  # fmt: skip
