"""Train readers on the cloze questions, and compare them with rules.

    python benchmarks/answering.py [EPOCHS]

Three seeds each, from all-MiniLM-L6-v2 and, with the same recipe, from
random weights of its shape, for EPOCHS (2) epochs. The rate, by seed 0 of
MiniLM, and the thresholds are chosen on the validation questions, and the
scores are of the test questions. Writes book/results/answering.json. The
runs stand in _build/kept/answering and go on if they were stopped: delete
them when the code has changed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bertbook.answering import Answering, score_answers, tune_threshold
from bertbook.cloze_questions import (
    first_name,
    most_frequent,
    sliding_window,
)
from bertbook.corpora import split_sentences
from bertbook.finetuning import Finetuning, finetune
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
RATES = (1e-4, 2e-4, 3e-4)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SYSTEMS = {"MiniLM": {}, "random weights": {"fresh": True}}
TASK = Answering(stride=64, keep=4)
RULES = {
    "silence": lambda question, context: "",
    "first sentence": lambda question, context: split_sentences(context)[0],
    "first name": first_name,
    "sliding window": sliding_window,
    "most frequent name": most_frequent,
}


def settings_of(name, rate, seed, epochs):
    settings = Finetuning(
        "answer",
        NAME,
        epochs=epochs,
        max_length=192,
        seed=seed,
        **SYSTEMS[name],
    )
    chosen = replace(settings.optimization, learning_rate=rate)
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


def trained(settings, name, data, tokenizer):
    """The best model of one run, by the validation questions."""
    rate = settings.optimization.learning_rate
    run = f"{name}-{rate}-{settings.epochs}-{settings.seed}"
    out = kept(f"answering/{run.replace(' ', '-')}/run")
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
    return TASK.head.from_pretrained(out, device=DEVICE)


def validate(settings, name, data, tokenizer):
    """F1 and threshold on the validation questions, and the curve."""
    model, validation = trained(settings, name, data, tokenizer), data[1]
    guesses = guesses_of(model, validation, tokenizer, settings.max_length)
    right = columns(validation)[1]
    threshold = tune_threshold(guesses, right)
    f1 = score_answers(guesses, right, threshold)["f1"]
    return f1, threshold, curve(guesses, right)


def test_scores(settings, name, data, tokenizer, threshold):
    model, test = trained(settings, name, data, tokenizer), data[2]
    guesses = guesses_of(model, test, tokenizer, settings.max_length)
    scores = rounded(score_answers(guesses, columns(test)[1], threshold))
    found = {"seed": settings.seed, "threshold": round(threshold, 5)}
    print(name, scores | found, flush=True)
    return scores | found


def main():
    epochs = float(sys.argv[1]) if len(sys.argv) > 1 else 2
    tokenizer = BertTokenizer.from_pretrained(NAME)
    splits = "train", "validation", "test"
    data = [read_labelled("bbc_cloze", "answer", each) for each in splits]
    metrics = {"epochs": epochs, "device": DEVICE, "runs": {}}
    metrics["rules"] = apply_rules(data[2])
    metrics["rows"] = {
        split: len(each.rows) for split, each in zip(splits, data)
    }
    print(metrics["rules"], flush=True)
    tried = {}
    for rate in RATES:
        settings = settings_of("MiniLM", rate, 0, epochs)
        f1, *_ = validate(settings, "MiniLM", data, tokenizer)
        tried[rate] = round(f1, 5)
        print(rate, tried[rate], flush=True)
    best = max(tried, key=tried.get)
    metrics["rate"] = {"chosen": best, "validation f1": tried}
    for name in SYSTEMS:
        runs = metrics["runs"][name] = []
        for seed in range(SEEDS):
            settings = settings_of(name, best, seed, epochs)
            told = settings, name, data, tokenizer
            _, threshold, points = validate(*told)
            runs.append(test_scores(*told, threshold))
            if name == "MiniLM" and seed == 0:
                metrics["curve"] = points
    record_run(RESULT / "answering.json", metrics)


if __name__ == "__main__":
    main()
