"""Fits 18 real tasks of every kind (but generate) in one run; writes the table to docs/results/ (JSON, and the page made of it).

    python speed/results.py --data ../shared/data/text [--limit 400] [--seed 0] [--tasks a,b] [--out RUN]

Prints the table, and the file's JSON summary as its last line.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from anabranch.engine.fit import fit
from anabranch.report.page import page

ROOT = Path(__file__).resolve().parent.parent
TASKS = (
    "banking77 sst2 subj trec6 snips_intent cr tweet_emotion nlupp_banking_intents med_nli covid_question_similarity"
    " complex_lcp sts_open emobank_vad btc_ner crossner_politics bbh_snarks bbh_ruin_names xquad_retrieval_en"
)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--data", default=os.environ.get("ANABRANCH_DATA", str(ROOT.parent / "shared" / "data" / "text")))
    ask.add_argument("--limit", type=int, default=400, help="training rows per task, validation included")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--tasks", default=",".join(TASKS.split()))
    ask.add_argument("--out", default="")
    a = ask.parse_args()
    if not Path(a.data).is_dir():
        print(f"skipped: no data at {a.data}; give --data or ANABRANCH_DATA")
        return
    plan = {"seed": a.seed, "tasks": {n: {"data": str(Path(a.data) / n), "limit": a.limit} for n in a.tasks.split(",")}}
    out = Path(a.out or tempfile.mkdtemp())
    results = fit(plan, out, resume=True, told=lambda stage, done, of, text: print(f"{stage} {done}/{of} {text}", flush=True))
    folder = ROOT / "docs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    kept = results | {"limit": a.limit}
    for task in kept["tasks"].values():
        task.pop("wrong", None)  # texts of the data
    (folder / "tasks.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (folder / "tasks.md").write_text(page(kept), encoding="utf-8")
    rungs = {n: sum(t[n] or 0 for t in results["tasks"].values()) / len(results["tasks"]) for n in ("probe", "test")}
    print(json.dumps({"what": "results", "tasks": len(results["tasks"]), "seconds": results["seconds"], "mean": rungs}))


if __name__ == "__main__":
    main()
