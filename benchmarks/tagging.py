"""Entities in tweets: MiniLM and its controls, over several seeds.

    python benchmarks/tagging.py [SEEDS] [FOLDER]

The learning rate is chosen on the validation tweets with seed 0; then SEEDS
(3) models are trained with it, from all-MiniLM-L6-v2, from random weights
of its shape, and from the checkpoint in FOLDER if one is given. All scores
are of the test tweets. The controls are the functions of
book/token_tagging.md. Writes book/results/tagging.json.
"""

import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from bertbook.chapters import parse_chapter, parser_config, read_source
from bertbook.finetuning import Finetuning, finetune
from bertbook.labelled_data import read_labelled
from bertbook.reproducibility import record_run
from bertbook.token_tagging import (
    Tagging,
    find_entities,
    predict_tags,
    repair_bio,
    score_tags,
)
from bertbook.tokenizer import BertTokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGE = "book/token_tagging.md"
NAME = "all-MiniLM-L6-v2"
RATES = (1e-4, 2e-4, 3e-4)
SETTINGS = {"epochs": 3, "batch_size": 16, "max_length": 64}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def page_functions(*names):
    """Functions that the page defines in a cell of their own."""
    source = read_source(ROOT, PAGE)
    chapter = parse_chapter(PAGE, source, parser_config(ROOT))
    space = {
        "Counter": Counter,
        "find_entities": find_entities,
        "repair_bio": repair_bio,
    }
    for cell in chapter.cells:
        if cell.text.startswith(tuple(f"def {name}(" for name in names)):
            exec(cell.text, space)
    return [space[name] for name in names]


def words_and_tags(labelled):
    rows, names = labelled.rows, labelled.labels
    tags = [[names[tag] for tag in each] for each in rows["tags"][:]]
    return rows["tokens"][:], tags


def phrases(sentences, tags):
    return {
        tuple(word.lower() for word in words[start:end])
        for words, names in zip(sentences, tags)
        for _, start, end in find_entities(names)
    }


def measures(data, guesses, recall_where):
    """What is recorded of one tagger, from its tags of the test tweets."""
    known = phrases(*words_and_tags(data["train"]))
    sentences, truth = words_and_tags(data["test"])
    total, by_type = score_tags(truth, guesses)
    found = total._asdict()
    found["by_type"] = {kind: s._asdict() for kind, s in by_type.items()}
    for name, wanted in (("seen", True), ("unseen", False)):
        found[name] = recall_where(
            sentences,
            truth,
            guesses,
            lambda phrase, wanted=wanted: (
                (tuple(word.lower() for word in phrase) in known) == wanted
            ),
        )
    return found


def control_tags(data):
    capital_runs, learn_lookup, look_up = page_functions(
        "capital_runs", "learn_lookup", "look_up"
    )
    table = learn_lookup(*words_and_tags(data["train"]))
    sentences = words_and_tags(data["test"])[0]
    return {
        "all O": [["O"] * len(words) for words in sentences],
        "capitals": [capital_runs(words) for words in sentences],
        "lookup": [look_up(table, words) for words in sentences],
    }


def settings_for(rate, seed, **start):
    settings = Finetuning("tag", **start, **SETTINGS, seed=seed)
    chosen = replace(settings.optimization, learning_rate=rate)
    return replace(settings, optimization=chosen)


def trained(settings, task, data, tokenizer):
    """The best model of one run, by the validation tweets."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        read = data["train"], data["validation"], tokenizer
        finetune(settings, task, *read, out, device=DEVICE)
        return task.head.from_pretrained(out, device=DEVICE)


def validation_f1(settings, task, data, tokenizer):
    model = trained(settings, task, data, tokenizer)
    held_out = data["validation"]
    features = task.features(held_out, tokenizer, settings.max_length)
    return task.evaluate(model, features, held_out)["f1"]


def test_tags(model, settings, task, data, tokenizer):
    features = task.features(data["test"], tokenizer, settings.max_length)
    counts = [len(tags) for tags in data["test"].rows["tags"][:]]
    answers = predict_tags(model, features, counts, task.labels)
    return [repair_bio(answer.tags) for answer in answers]


def main():
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    splits = "train", "validation", "test"
    data = {split: read_labelled("wnut", "tag", split) for split in splits}
    task = Tagging(data["train"].labels)
    (recall_where,) = page_functions("recall_where")
    metrics = {"settings": SETTINGS, "seeds": list(seeds), "rates": {}}
    metrics["device"] = DEVICE
    metrics["controls"] = {
        name: measures(data, tags, recall_where)
        for name, tags in control_tags(data).items()
    }
    metrics["systems"] = {}
    starts = {
        "MiniLM": {"initial": NAME},
        "random weights": {"initial": NAME, "fresh": True},
    }
    if len(sys.argv) > 2:
        starts["own checkpoint"] = {"initial": sys.argv[2]}
    for name, start in starts.items():
        tokenizer = BertTokenizer.from_pretrained(start["initial"])
        tried = {}
        for rate in RATES:
            settings = settings_for(rate, 0, **start)
            f1 = validation_f1(settings, task, data, tokenizer)
            tried[rate] = round(f1, 4)
            print(name, rate, tried[rate], flush=True)
        best = max(tried, key=tried.get)
        metrics["rates"][name] = {"chosen": best, "validation f1": tried}
        runs = metrics["systems"][name] = []
        for seed in seeds:
            settings = settings_for(best, seed, **start)
            model = trained(settings, task, data, tokenizer)
            tags = test_tags(model, settings, task, data, tokenizer)
            runs.append(measures(data, tags, recall_where))
            print(name, seed, round(runs[-1]["f1"], 4), flush=True)
    record_run(ROOT / "book/results/tagging.json", metrics)


if __name__ == "__main__":
    main()
