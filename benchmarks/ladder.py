"""Record the speed ladder: what each rung of a training step is worth.

    python benchmarks/ladder.py
    python benchmarks/ladder.py --seconds 60 --compile

All rungs train BERT-mini on IMDb for the same seconds each, in turn, slice
by slice; only a rung's own steps count on its clock. The times of a rung
are those after its first two steps. At the end each is examined on the same
held-out rows. Writes book/results/ladder.json.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from bertbook.benchmark import matmul_rate, operations_needed
from bertbook.config import PRESETS
from bertbook.corpora import load_corpus
from bertbook.losses import IGNORED
from bertbook.objectives import evaluate_masked
from bertbook.performance import (
    Climber,
    Ground,
    asides,
    ladder,
    rung_rows,
)
from bertbook.pretraining import make_exam
from bertbook.reproducibility import kept, record_run
from bertbook.textbook_step import take_text, tokenizers

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "ladder.json"
EXAM_BATCHES = 4
WARM_UP = 2  # steps whose times do not count


def climb(climbers, seconds, slices, threads):
    """Train each for `seconds` of its own; the steps of each, by name."""
    steps = {name: [] for name in climbers}
    clocks = dict.fromkeys(climbers, 0.0)
    for turn in range(1, slices + 1):
        for name, climber in climbers.items():
            torch.set_num_threads(climber.rung.threads or threads)
            torch.manual_seed(turn)
            while clocks[name] < seconds * turn / slices:
                step = climber.step(clocks[name] / seconds)
                if len(steps[name]) >= WARM_UP:
                    clocks[name] += step["seconds"]
                steps[name].append(step)
        print(f"slice {turn} of {slices}", flush=True)
    torch.set_num_threads(threads)
    return steps


def characters_a_piece(text, documents):
    """Of the held-out documents; a document's last piece is no text."""
    texts = list(load_corpus("imdb", "validation")["text"])[:documents]
    return sum(map(len, texts)) / (text.held_out.tokens - len(texts))


def operations_a_token(climber, ground):
    """What a real token needs, over the rows that the climber reads."""
    _, examples = next(climber.batches)
    rows = climber.rows.rows(0, examples)
    ids = torch.from_numpy(rows["input_ids"])
    mask = torch.ones_like(ids)
    if "attention_mask" in rows:
        mask = torch.from_numpy(rows["attention_mask"])
    labels = torch.full_like(ids, IGNORED)
    real = int(mask.sum())
    labels.view(-1)[: round(0.15 * real)] = 1
    batch = {"attention_mask": mask, "labels": labels}
    config = climber.objective.model.config
    return operations_needed(config, batch, training=True) / real


def describe(climber, steps, ground, characters, peak):
    """One row of the table."""
    counted = steps[WARM_UP:]
    made = climber.rung
    tokens = sum(step["tokens"] for step in counted)
    seconds = sum(step["seconds"] for step in counted)
    data = statistics.median(step["data_seconds"] for step in counted)
    whole = statistics.median(step["seconds"] for step in counted)
    rows = rung_rows(made, ground, "held_out")
    exam = make_exam(rows, climber.pieces, "cpu")[:EXAM_BATCHES]
    found = evaluate_masked(climber.objective, exam, climber.cast)
    rate = tokens / seconds
    return {
        "steps": len(steps),
        "tokens": sum(step["tokens"] for step in steps),
        "tokens_per_second": rate,
        "share": rate * operations_a_token(climber, ground) / peak,
        "data_ms": 1000 * data,
        "data_share": data / whole,
        "loss": found["loss"],
        "nats_per_character": found["loss"] / characters,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=20, help="for each rung")
    add("--slices", type=int, default=5, help="turns in which they train")
    add("--documents", type=int, default=3000, help="of IMDb")
    add("--preset", default="mini")
    add("--compile", action="store_true", help="try torch.compile too")
    add("--record", default=RECORD)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    texts = {
        name: take_text(
            tokenizer, kept(f"ladder/{name}"), options.documents
        )
        for name, tokenizer in tokenizers().items()
    }
    texts_read = load_corpus("imdb", "train")["text"]
    documents = list(texts_read)[: options.documents]
    ground = Ground(PRESETS[options.preset], documents, texts)
    rungs = ladder()
    last = rungs.popitem()
    rungs |= asides() | dict([last])
    if not options.compile:
        del rungs["compiled"]
    climbers = {n: Climber(rung, ground) for n, rung in rungs.items()}
    kinds = torch.float32, torch.bfloat16
    peak = max(matmul_rate(kind) for kind in kinds)
    steps = climb(climbers, options.seconds, options.slices, threads)
    held = max(1, options.documents // 10)
    length = {s: characters_a_piece(t, held) for s, t in texts.items()}
    table = []
    for name, climber in climbers.items():
        characters = length[climber.rung.small_vocabulary]
        row = describe(climber, steps[name], ground, characters, peak)
        table.append({"name": name} | row)
        print(name, {k: round(v, 4) for k, v in row.items()}, flush=True)
    shape = replace(ground.base, vocab_size=1).to_dict()
    del shape["vocab_size"]
    facts = {
        "seconds": options.seconds,
        "documents": options.documents,
        "threads": threads,
        "peak": peak,
        "batch": ground.batch_size,
        "length": ground.seq_length,
        "model": shape,
        "rungs": table,
    }
    record_run(options.record, facts)


if __name__ == "__main__":
    main()
