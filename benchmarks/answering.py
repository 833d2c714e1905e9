"""Train readers on the cloze questions, and compare them with rules.

    python benchmarks/answering.py [EPOCHS]

Three seeds from all-MiniLM-L6-v2, for EPOCHS (3) epochs at the chapter's
rate, which was not tuned. The best epoch and its threshold are chosen on
200 validation questions, and the scores are of the test questions. Writes
book/results/answering.json. The runs stand in _build/kept/answering and go
on if they were stopped: delete them when the code has changed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bertbook.answering import Answering, score_answers
from bertbook.batching import use_onednn
from bertbook.cloze_questions import (
    first_name,
    most_frequent,
    sliding_window,
)
from bertbook.corpora import split_sentences
from bertbook.finetuning import Finetuning, finetune
from bertbook.inference import saved_threshold
from bertbook.labelled_data import read_labelled
from bertbook.question_answering import (
    Guess,
    best_match,
    read_answers,
    token_f1,
)
from bertbook.reproducibility import kept, record_run
from bertbook.tokenizer import BertTokenizer

NAME = "all-MiniLM-L6-v2"
RESULT = Path(__file__).resolve().parent.parent / "book/results"
SEEDS = 3
RATE = 2e-4
HELD_OUT = 200  # questions: each evaluation reads their whole articles
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TASK = Answering(stride=64, keep=4)
RULES = {
    "silence": lambda question, context: "",
    "first sentence": lambda question, context: split_sentences(context)[0],
    "first name": first_name,
    "sliding window": sliding_window,
    "most frequent name": most_frequent,
}


def settings_of(seed, epochs):
    settings = Finetuning(
        "answer", NAME, epochs=epochs, max_length=192, seed=seed
    )
    chosen = replace(settings.optimization, learning_rate=RATE)
    return replace(settings, optimization=chosen)


def columns(labelled):
    answers = [each["text"] for each in labelled.rows["answers"][:]]
    return labelled.rows["context"][:], answers


def apply_rules(test):
    contexts, answers = columns(test)
    questions = test.rows["question"][:]
    found = {}
    for name, rule in RULES.items():
        said = map(rule, questions, contexts)
        guesses = [Guess(text, 0, 0, 1.0) for text in said]
        found[name] = rounded(score_answers(guesses, answers, 0.0))
    return found


def rounded(scores):
    return {name: round(value, 5) for name, value in scores.items()}


def guesses_of(model, labelled, tokenizer, max_length):
    features = TASK.features(labelled, tokenizer, max_length)
    if DEVICE == "cpu":
        use_onednn(model)
    read = read_answers(model, features, columns(labelled)[0], TASK.longest)
    return [best[0] for best in read]


def curve(guesses, answers):
    """F1 against the threshold, at 101 quantiles of the margins."""
    margins = np.array([guess.margin for guess in guesses])
    points = np.quantile(margins, np.linspace(0, 1, 101))
    points = [margins.min() - 1, *points, margins.max() + 1]
    said = [
        best_match(token_f1, guess.text, right)
        for guess, right in zip(guesses, answers)
    ]
    silent = [best_match(token_f1, "", right) for right in answers]
    return [
        [
            round(float(point), 4),
            round(float(np.where(margins > point, said, silent).mean()), 5),
        ]
        for point in points
    ]


def trained(settings, data, tokenizer):
    """The best model of one run, and the threshold, by the validation."""
    out = kept(f"answering/{settings.epochs}-{settings.seed}/run")
    finetune(
        settings,
        TASK,
        *data[:2],
        tokenizer,
        out,
        resume=(out / "run.json").exists(),
        device=DEVICE,
        show_progress=True,
    )
    model = TASK.head.from_pretrained(out, device=DEVICE)
    return model, saved_threshold(out)


def main():
    epochs = float(sys.argv[1]) if len(sys.argv) > 1 else 3
    tokenizer = BertTokenizer.from_pretrained(NAME)
    splits = "train", "validation", "test"
    data = [read_labelled("bbc_cloze", "answer", each) for each in splits]
    some = data[1].rows.shuffle(seed=0).select(range(HELD_OUT))
    data[1] = data[1]._replace(rows=some)
    _, validation, test = data
    metrics = {"epochs": epochs, "learning_rate": RATE, "device": DEVICE}
    metrics["rows"] = {s: len(each.rows) for s, each in zip(splits, data)}
    runs = []
    metrics |= {"rules": apply_rules(test), "runs": {"MiniLM": runs}}
    print(metrics["rules"], flush=True)
    for seed in range(SEEDS):
        settings = settings_of(seed, epochs)
        model, threshold = trained(settings, data, tokenizer)
        how = tokenizer, settings.max_length
        guesses = guesses_of(model, test, *how)
        scores = score_answers(guesses, columns(test)[1], threshold)
        found = {"seed": seed, "threshold": threshold} | scores
        runs.append(rounded(found))
        print(runs[-1], flush=True)
        if "curve" not in metrics:
            guesses = guesses_of(model, validation, *how)
            metrics["curve"] = curve(guesses, columns(validation)[1])
        record_run(RESULT / "answering.json", metrics)


if __name__ == "__main__":
    main()
