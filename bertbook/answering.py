"""Training a reader

Trains a model to answer questions, lets it be silent where there is no
answer, and scores it as SQuAD does, beside rules that cannot read.

The page: https://bertbook.github.io/bertbook/book/answering.html
"""

# Tangled from book/answering.md (b80fae09): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Answering",
    "choose_threshold",
    "score_answers",
    "tune_threshold",
]


# %% book/answering.md#the-threshold a558a42a
from collections.abc import Sequence

import numpy as np


def choose_threshold(
    margins: Sequence[float],
    answered: Sequence[float],
    silent: Sequence[float],
) -> float:
    """Above which margin to answer, for the largest sum.

    `answered` and `silent` are what each question earns by its guess and
    by no answer. Equal margins are on one side. 0 for no questions.
    """
    margins, gain = np.array(margins, float), np.subtract(answered, silent)
    if not len(margins):
        return 0.0
    order = np.argsort(-margins, kind="stable")
    margins = margins[order]
    gains = np.concatenate([[0.0], gain[order].cumsum()])
    gains[1:-1][margins[:-1] == margins[1:]] = -np.inf
    best = int(gains.argmax())
    edges = [margins[0] + 2, *margins, margins[-1] - 2]
    return float(edges[best] + edges[best + 1]) / 2


# %% book/answering.md#the-threshold 80ddd837
from bertbook.question_answering import (
    Guess,
    best_match,
    exact_match,
    token_f1,
)


def score_answers(
    guesses: Sequence[Guess],
    answers: Sequence[Sequence[str]],
    threshold: float,
) -> dict[str, float]:
    """EM and F1 of all questions, and of those with and without an answer.

    `exact` and `f1` are means over all, `f1_with` over those that have an
    answer, `silent` is the share of the others that got none. A mean over
    nothing is 0.
    """
    said = [g.text if g.margin > threshold else "" for g in guesses]
    pairs = list(zip(said, answers))
    exact = [best_match(exact_match, *pair) for pair in pairs]
    f1 = [best_match(token_f1, *pair) for pair in pairs]
    having = [value for value, right in zip(f1, answers) if right]
    lacking = [value for value, right in zip(f1, answers) if not right]
    columns = {"exact": exact, "f1": f1, "f1_with": having}
    columns["silent"] = lacking
    return {
        name: sum(values) / max(len(values), 1)
        for name, values in columns.items()
    }


# %% book/answering.md#the-threshold f7c2723a
def tune_threshold(
    guesses: Sequence[Guess], answers: Sequence[Sequence[str]]
) -> float:
    """The threshold with the best F1 here; never give test questions."""
    return choose_threshold(
        [guess.margin for guess in guesses],
        [best_match(token_f1, g.text, a) for g, a in zip(guesses, answers)],
        [best_match(token_f1, "", a) for a in answers],
    )


# %% book/answering.md#the-task 80674bf5
from itertools import count

from bertbook.question_answering import answer_windows, mark_answer


def _first_place(answers):
    """Where the first answer starts and ends; nowhere without one."""
    for text, start in zip(answers["text"], answers["answer_start"]):
        return start, start + len(text)
    return -1, -1


# %% book/answering.md#the-task acb8fca9
def _labelled_windows(task, rows, tokenizer, max_length, training):
    windows = answer_windows(
        rows["question"][:],
        rows["context"][:],
        tokenizer,
        max_length,
        task.stride,
    )
    places = [_first_place(answers) for answers in rows["answers"][:]]
    for window in windows:
        start, end = places[window.example]
        marked = mark_answer(window, start, end) if start >= 0 else (0, 0)
        window["start_positions"], window["end_positions"] = marked
    if not training:
        return windows
    lacking = count()
    return [
        window
        for window in windows
        if window["end_positions"] or next(lacking) % task.keep == 0
    ]


# %% book/answering.md#the-task dae4a67e
from dataclasses import dataclass

from torch import Tensor, nn

from bertbook.heads import BertForQuestionAnswering
from bertbook.question_answering import Window, read_answers


@dataclass(frozen=True)
class Answering:
    """Where in its context is the answer? A task for `finetune`.

    Training keeps every `keep`-th of the windows without the answer.
    """

    stride: int = 128  # pieces that neighbouring windows share
    longest: int = 30  # pieces of an answer
    keep: int = 1
    threshold: float | None = None  # None: the best for what is evaluated
    name, metric, head = "answer", "f1", BertForQuestionAnswering

    @property
    def config(self) -> dict:
        """Nothing: a start and an end are what the head always has."""
        return {}

    def features(
        self, labelled, tokenizer, max_length: int, training: bool = False
    ) -> list[Window]:
        """The windows, with `start_positions` and `end_positions`."""
        return _labelled_windows(
            self, labelled.rows, tokenizer, max_length, training
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean over the windows and both ends."""
        return model(**batch).loss

    def evaluate(self, model: nn.Module, features, labelled) -> dict:
        """What `score_answers` finds, and the `threshold` that it used."""
        contexts = labelled.rows["context"][:]
        read = read_answers(model, features, contexts, self.longest)
        guesses = [best[0] for best in read]
        right = [each["text"] for each in labelled.rows["answers"][:]]
        threshold = self.threshold
        if threshold is None:
            threshold = tune_threshold(guesses, right)
        scores = score_answers(guesses, right, threshold)
        return scores | {"threshold": threshold}
