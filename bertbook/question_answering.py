"""Question answering

Finds the answer to a question in a text, letter for letter: the two
measures of SQuAD, windows over long texts, the best span, and the margin
over no answer.

The page: https://bertbook.github.io/bertbook/book/question_answering.html
"""

# Tangled from book/question_answering.md (4e7c417e): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Guess",
    "INPUTS",
    "LONGEST_QUESTION",
    "NO_SPAN",
    "Window",
    "answer_windows",
    "best_match",
    "best_spans",
    "exact_match",
    "mark_answer",
    "max_context",
    "normalise",
    "rank_guesses",
    "read_answers",
    "token_f1",
    "window_spans",
]


# %% book/question_answering.md#what-is-right 415903d4
import re
import string

_MARKS = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """`text` without case, punctuation, articles and stray blanks.

    Rajpurkar et al. (2016), section 6.1, in the order of their script.
    """
    text = text.lower().translate(_MARKS)
    return " ".join(_ARTICLES.sub(" ", text).split())


# %% book/question_answering.md#what-is-right 2702093d
from collections import Counter
from collections.abc import Callable, Sequence


def exact_match(prediction: str, answer: str) -> float:
    """1.0 where both are equal after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def token_f1(prediction: str, answer: str) -> float:
    """The harmonic mean of precision and recall of words.

    Where one is empty, 1.0 if both are, else 0.0 (Rajpurkar et al., 2018).
    """
    words = normalise(prediction).split(), normalise(answer).split()
    if not all(words):
        return float(words[0] == words[1])
    common = Counter(words[0]) & Counter(words[1])
    return 2 * common.total() / sum(map(len, words))


# %% book/question_answering.md#what-is-right 6596135d
def best_match(
    measure: Callable[[str, str], float],
    prediction: str,
    answers: Sequence[str],
) -> float:
    """The largest value over the right answers; of none, "" is right."""
    right = [text for text in answers if normalise(text)] or [""]
    return max(measure(prediction, text) for text in right)


# %% book/question_answering.md#a-text-longer-than-a-row 8cdc6823
import numpy as np


def max_context(lengths: Sequence[int], stride: int) -> list[np.ndarray]:
    """For each window, which of its pieces have most context there.

    `lengths` are the windows' pieces of context, in order; neighbours
    share `stride`. Each piece of the context is true once. run_squad.py of
    Devlin et al. (2019).
    """
    starts = [k * (lengths[0] - stride) for k in range(len(lengths))]
    table = np.full((len(lengths), starts[-1] + lengths[-1]), -1.0)
    for row, start, length in zip(table, starts, lengths):
        left = np.arange(length)
        around = np.minimum(left, left[::-1]) + 0.01 * length
        row[start : start + length] = around
    best = table.argmax(0)  # of equals the first
    return [
        best[start : start + length] == number
        for number, (start, length) in enumerate(zip(starts, lengths))
    ]


# %% book/question_answering.md#a-text-longer-than-a-row cd3a11c6
INPUTS = "input_ids", "token_type_ids", "attention_mask"
LONGEST_QUESTION = 64  # pieces; longer ones are cut, as BERT's code does


class Window(dict):
    """A row of the model, and which part of which context it shows.

    The items are `INPUTS`, and labels in training. `spans`, (seq, 2), is
    where each piece starts and ends in the context, -1 for other pieces.
    `own`, (seq,), is where an answer may start. All pieces between the two
    characters of `reach` are in the window.
    """

    def __init__(self, columns: dict, example: int, spans: np.ndarray):
        super().__init__(columns)
        self.example, self.spans = example, spans
        self.inside = spans[:, 0] >= 0
        self.own = np.zeros(len(spans), bool)
        self.reach = 0, 0


def _places(tokenizer, text):
    return tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True
    )["offset_mapping"]


def _cut_question(question, context, tokenizer, max_length, stride):
    found = _places(tokenizer, question)
    most = max(1, max_length - 4 - stride)  # [CLS], two [SEP], a new piece
    if found[most:]:  # all that stands beside a whole context may stay
        most = max(most, max_length - 3 - len(_places(tokenizer, context)))
    most = min(most, LONGEST_QUESTION)
    return question[: found[most][0]] if found[most:] else question


# %% book/question_answering.md#a-text-longer-than-a-row 91f60b82
import unicodedata


def _complete(windows, context):
    """Give the pieces of one context their marks, its windows `reach`."""
    size = len(context)
    pieces = [window.spans[window.inside] for window in windows]
    starts, ends = np.concatenate(pieces).T
    taken, after = {*starts.tolist()}, np.arange(size + 1)
    marks = [
        place
        for place, letter in enumerate(context)
        if not letter.isascii() and unicodedata.category(letter)[0] == "M"
    ]
    for place in reversed(marks):
        if place not in taken:
            after[place] = after[place + 1]
    for window, (first, last) in zip(windows, (each.T for each in pieces)):
        window.spans[window.inside, 1] = after[last]
        before = ends[ends <= first.min(initial=size)]
        behind = starts[starts >= last.max(initial=0)]
        window.reach = before.max(initial=0), behind.min(initial=size)


# %% book/question_answering.md#a-text-longer-than-a-row c5bdcb6f
def _claim(windows, stride):
    """Mark in the windows of one context which pieces are whose."""
    lengths = [int(window.inside.sum()) for window in windows]
    # Truncation on the left begins at the end: all is mirrored.
    order = 1 if windows[0].reach <= windows[-1].reach else -1
    for window, own in zip(windows, max_context(lengths, stride)):
        window.own[window.inside] = own[::order]


# %% book/question_answering.md#a-text-longer-than-a-row a4e65fca
from itertools import groupby


def answer_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer,
    max_length: int = 384,
    stride: int = 128,
) -> list[Window]:
    """The windows of each pair, in order; neighbours share `stride` pieces.

    The last comes first if the tokenizer truncates on the left. Questions
    are cut to `LONGEST_QUESTION` pieces, or fewer so that windows move.
    Raises ValueError where `max_length` has no room for windows that move.
    """
    how = tokenizer, max_length, stride
    found = tokenizer(
        [_cut_question(*pair, *how) for pair in zip(questions, contexts)],
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    windows = []
    for row, example in enumerate(found["overflow_to_sample_mapping"]):
        second = np.array(found["token_type_ids"][row]) == 1
        special = np.array(found["special_tokens_mask"][row]) == 1
        spans = np.array(found["offset_mapping"][row])
        spans[special | ~second] = -1
        columns = {name: found[name][row] for name in INPUTS}
        windows.append(Window(columns, example, spans))
    for number, group in groupby(windows, lambda window: window.example):
        group = list(group)
        _complete(group, contexts[number])
        _claim(group, stride)
    return windows


# %% book/question_answering.md#where-the-answer-is 72dfbcf4
def mark_answer(window: Window, start: int, end: int) -> tuple[int, int]:
    """The first and last position with the characters `start` to `end`.

    0 and 0, which is [CLS], unless the window has them all. The character
    at `end` is not among them.
    """
    starts, ends = window.spans.T  # -1, where nothing is covered
    covering = np.flatnonzero((starts < end) & (ends > start))
    low, high = window.reach
    if start < low or end > high or not len(covering):
        return 0, 0
    return int(covering[0]), int(covering[-1])


# %% book/question_answering.md#the-best-span 94cf7653
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def best_spans(
    start: Float[Tensor, "rows seq"],
    end: Float[Tensor, "rows seq"],
    may_start: Bool[Tensor, "rows seq"],
    may_end: Bool[Tensor, "rows seq"],
    longest: int = 30,
    count: int = 1,
) -> tuple[
    Float[Tensor, "rows best"],
    Int[Tensor, "rows best"],
    Int[Tensor, "rows best"],
]:
    """Scores, first and last positions of the best spans, best first.

    Of at most `longest` positions. Where there are fewer than `count`, the
    rest have the score -inf.
    """
    start = start.masked_fill(~may_start, -torch.inf)
    end = end.masked_fill(~may_end, -torch.inf)
    ends = F.pad(end, (0, longest - 1), value=-torch.inf)
    table = start[:, :, None] + ends.unfold(1, longest, 1)
    count = min(count, table[0].numel())
    scores, places = table.flatten(1).topk(count)
    first = places // longest
    return scores, first, first + places % longest


# %% book/question_answering.md#or-none fcdbd66b
def window_spans(
    windows: Sequence[Window],
    start: Float[Tensor, "rows seq"],
    end: Float[Tensor, "rows seq"],
    longest: int = 30,
    count: int = 1,
) -> list[tuple[float, list[tuple[float, int, int]]]]:
    """For each window the score of silence, and its best spans.

    A span is its score, and its start and end in characters of the
    context. `start` and `end` are the scores of the model's positions.
    """
    may_start, may_end = torch.zeros(2, *start.shape, dtype=torch.bool)
    for row, window in enumerate(windows):
        length = len(window.own)
        may_start[row, :length] = torch.from_numpy(window.own)
        may_end[row, :length] = torch.from_numpy(window.inside)
    found = best_spans(start, end, may_start, may_end, longest, count)
    columns = (each.tolist() for each in found)
    silence = (start[:, 0] + end[:, 0]).tolist()
    return [
        (
            none,
            [
                (score, int(window.spans[i, 0]), int(window.spans[j, 1]))
                for score, i, j in zip(*spans)
                if score > -torch.inf
            ],
        )
        for window, none, *spans in zip(windows, silence, *columns)
    ]


# %% book/question_answering.md#or-none 5df1edac
from typing import NamedTuple

NO_SPAN = -1e6  # the margin of a context without any piece


class Guess(NamedTuple):
    """An answer, cut out of its context."""

    text: str
    start: int  # characters of the context
    end: int
    margin: float  # its score, less that of no answer


def rank_guesses(
    context: str, found: Sequence, count: int = 1
) -> list[Guess]:
    """The `count` best of what `window_spans` found in all windows.

    Best first, of equals the first in the text. At least one, which is
    empty where no window has a span.
    """
    silence = min((none for none, _ in found), default=0.0)
    spans = [span for _, some in found for span in some]
    spans.sort(key=lambda span: (-span[0], *span[1:]))
    return [
        Guess(context[start:end], start, end, score - silence)
        for score, start, end in spans[:count]
    ] or [Guess("", 0, 0, NO_SPAN)]


# %% book/question_answering.md#or-none 3f13c47e
from bertbook.classification import collate
from bertbook.training_loop import evaluating


def _scores_of(model, windows):
    """The scores of a start and an end, (windows, seq) each."""
    rows = [{name: each[name] for name in INPUTS} for each in windows]
    batch = collate(rows, model.config.pad_token_id or 0)
    device = next(model.parameters()).device
    out = model(**{name: each.to(device) for name, each in batch.items()})
    return out.start_logits.float().cpu(), out.end_logits.float().cpu()


# %% book/question_answering.md#or-none ed3b208a
def read_answers(
    model: nn.Module,
    windows: Sequence[Window],
    contexts: Sequence[str],
    longest: int = 30,
    count: int = 1,
    batch_size: int = 32,
) -> list[list[Guess]]:
    """The `count` best guesses for each context, best first.

    `windows` are those of `answer_windows`. Of a context without any piece
    the guess is empty.
    """
    found = [[] for _ in contexts]
    windows = sorted(windows, key=lambda window: len(window.own))
    with evaluating(model):
        for first in range(0, len(windows), batch_size):
            some = windows[first : first + batch_size]
            scores = _scores_of(model, some)
            read = window_spans(some, *scores, longest, count)
            for window, each in zip(some, read):
                found[window.example].append(each)
    return [
        rank_guesses(context, each, count)
        for context, each in zip(contexts, found)
    ]
