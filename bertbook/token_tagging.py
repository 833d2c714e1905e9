"""Tagging words

Finds named entities: gives each word of a sentence a tag, turns tags into
entities with their places in the text, and scores them as whole entities.

The page: https://bertbook.github.io/bertbook/book/token_tagging.html
"""

# Tangled from book/token_tagging.md (731b1730): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Entity",
    "Score",
    "Tagged",
    "Tagging",
    "check_tags",
    "decode_entities",
    "find_entities",
    "first_pieces",
    "predict_tags",
    "repair_bio",
    "score_tags",
    "split_words",
    "window_rows",
]


# %% book/token_tagging.md#from-tags-to-entities d571a1d9
from collections.abc import Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """A named thing: its type, its first word, and the word after it."""

    kind: str
    start: int
    end: int


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence's BIO tags, strictly read.

    An `I-` that continues no entity of its type belongs to none.
    """
    found = []
    for place, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark == "B":
            found.append(Entity(kind, place, place + 1))
        elif mark == "I" and found and found[-1][::2] == (kind, place):
            found[-1] = Entity(kind, found[-1].start, place + 1)
    return found


# %% book/token_tagging.md#from-tags-to-entities db81a9b5
def repair_bio(tags: Sequence[str]) -> list[str]:
    """The tags with `B-` for each `I-` that continues nothing.

    That is an `I-` at the start, after `O`, or after another type. Raises
    ValueError where a tag is empty.
    """
    if "" in tags:
        raise ValueError(
            "a tag is the empty text; name each label of the model 'O', or "
            "'B-' or 'I-' and a type"
        )
    repaired, before = [], "O"
    for tag in tags:
        if tag[0] == "I" and before[1:] != tag[1:]:
            tag = "B" + tag[1:]
        repaired.append(tag)
        before = tag
    return repaired


# %% book/token_tagging.md#the-score 62014fe6
from functools import partial


class Score(NamedTuple):
    """How well entities were found, and how many there truly are."""

    precision: float
    recall: float
    f1: float
    count: int


def score_tags(
    truth: list[list[str]], guesses: list[list[str]]
) -> tuple[Score, dict[str, Score]]:
    """The `Score` of all entities together, and of each type.

    One list of tags a sentence. Strict: see `find_entities`. What cannot
    be divided is 0. Needs seqeval. Raises ValueError where the lengths
    differ.
    """
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    score = partial(
        precision_recall_fscore_support,
        truth,
        guesses,
        scheme=IOB2,
        zero_division=0,
    )
    every = [find_entities(tags) for tags in [*truth, *guesses]]
    # seqeval gives the types in sorted order, without their names.
    kinds = sorted({entity.kind for found in every for entity in found})
    each = zip(kinds, zip(*score(average=None)))
    by_kind = {kind: _plain(values) for kind, values in each}
    return _plain(score(average="micro")), by_kind


def _plain(values):
    *shares, count = values
    return Score(*map(float, shares), int(count))


# %% book/token_tagging.md#from-words-to-pieces 15806d17
def first_pieces(word_ids: Sequence[int | None]) -> list[int | None]:
    """For each piece its word, where it is the first of the word."""
    before = [None, *word_ids]
    return [
        word if word != last else None
        for last, word in zip(before, word_ids)
    ]


# %% book/token_tagging.md#sentences-that-are-too-long 187bde1d
from bertbook.input_rows import windows
from bertbook.losses import IGNORED


def _best_windows(length, spans):
    """For each place of a sentence the window with most context."""
    return [
        max(
            range(len(spans)),
            key=lambda k: min(p - spans[k][0], spans[k][1] - 1 - p),
        )
        for p in range(length)
    ]


# %% book/token_tagging.md#sentences-that-are-too-long 0a405e9d
def window_rows(
    tokenizer,
    sentences: list[list[str]],
    max_length: int,
    stride: int | None,
) -> list[dict]:
    """The rows of sentences, given as words; a long one has several.

    A row is `input_ids`, `attention_mask`, the number of its sentence as
    `example`, and `words`: at the first piece of a word its number, -100
    elsewhere. No word is in two rows. With `stride` None a long sentence
    is cut. Raises ValueError where a row has no room.
    """
    if max_length < 3 or (stride or 0) >= max_length - 2:
        raise ValueError(
            f"max_length={max_length} has no room for two special tokens "
            f"and a stride of {stride or 0}; raise it"
        )
    if not sentences:
        return []
    encoded = tokenizer(
        sentences, is_split_into_words=True, add_special_tokens=False
    )
    rows = []
    for number, ids in enumerate(encoded["input_ids"]):
        firsts = first_pieces(encoded.word_ids(number))
        spans = windows(len(ids), max_length - 2, stride or 0)
        spans = spans[:1] if stride is None else spans
        best = _best_windows(len(ids), spans)
        for k, (start, end) in enumerate(spans):
            own = range(start, end)
            kept = [firsts[p] if best[p] == k else None for p in own]
            rows.append(_row(tokenizer, number, ids[start:end], kept))
    return rows


# %% book/token_tagging.md#sentences-that-are-too-long f39279f3
def _row(tokenizer, number, ids, words):
    edges = tokenizer.cls_token_id, tokenizer.sep_token_id
    words = [IGNORED if word is None else word for word in words]
    return {
        "example": number,
        "input_ids": [edges[0], *ids, edges[1]],
        "attention_mask": [1] * (len(ids) + 2),
        "words": [IGNORED, *words, IGNORED],
    }


# %% book/token_tagging.md#from-the-model-back-to-words c68b0ab0
from jaxtyping import Float
from torch import Tensor, nn

from bertbook.classification import collate
from bertbook.training_loop import evaluating


class Tagged(NamedTuple):
    """What a model says of the words of a sentence."""

    tags: list[str]  # as the model chose them, one by one
    scores: list[float]  # the probability of each; 0 for a lost word
    lost: int  # words that no row had


def _probabilities(
    model: nn.Module, rows: list[dict]
) -> Float[Tensor, "rows seq tags"]:
    """Of every tag, at every position."""
    names = "input_ids", "attention_mask"
    inputs = [{name: row[name] for name in names} for row in rows]
    batch = collate(inputs, model.config.pad_token_id or 0)
    device = next(model.parameters()).device
    batch = {name: each.to(device) for name, each in batch.items()}
    return model(**batch).logits.float().softmax(-1)


# %% book/token_tagging.md#from-the-model-back-to-words 8529c8f1
def predict_tags(
    model: nn.Module,
    rows: list[dict],
    counts: Sequence[int],
    labels: Sequence[str],
    batch_size: int = 64,
) -> list[Tagged]:
    """Tag sentences by the rows that `window_rows` made of them.

    `counts` are the numbers of their words, `labels` the names of the
    model's outputs. Rows of similar length go through the model together.
    """
    tags = [["O"] * count for count in counts]
    scores = [[0.0] * count for count in counts]
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            sure, best = _probabilities(model, some).max(-1)
            for row, *found in zip(some, sure.tolist(), best.tolist()):
                for word, score, tag in zip(row["words"], *found):
                    if word != IGNORED:
                        tags[row["example"]][word] = labels[tag]
                        scores[row["example"]][word] = score
    # A largest probability is never 0.
    return [Tagged(t, s, s.count(0.0)) for t, s in zip(tags, scores)]


# %% book/token_tagging.md#the-task 4b16fc19
def check_tags(labels: Sequence[str]) -> None:
    """Refuse names that are not `O` and, for each type, `B-` and `I-`.

    Raises ValueError with the first one that is missing or wrong.
    """
    kinds = {label[2:] for label in labels if label[:2] in ("B-", "I-")}
    wanted = {"O"} | {f"{mark}-{kind}" for kind in kinds for mark in "BI"}
    odd = sorted(wanted ^ set(labels))
    if odd:
        state = "missing" if odd[0] in wanted else "no tag of BIO"
        raise ValueError(
            f"{odd[0]!r} is {state}; give 'O', and 'B-' and 'I-' of every "
            "type"
        )


# %% book/token_tagging.md#the-task cdde5bb7
from dataclasses import dataclass

from bertbook.heads import BertForTokenClassification


@dataclass(frozen=True)
class Tagging:
    """Which entities does a sentence name? A task for `finetune`.

    `labels` are the BIO tags, `stride` is what windows of long sentences
    share, None to cut them. Raises what `check_tags` raises.
    """

    labels: tuple[str, ...]
    stride: int | None = 16
    name, metric, head = "tag", "f1", BertForTokenClassification

    def __post_init__(self):
        check_tags(self.labels)

    @property
    def config(self) -> dict:
        """What the configuration of the model must hold."""
        return {"num_labels": len(self.labels), "labels": self.labels}

    def features(
        self, labelled, tokenizer, max_length: int, training: bool = False
    ) -> list[dict]:
        """The rows of `window_rows` with `labels` at the first pieces."""
        return _label_rows(self, labelled, tokenizer, max_length)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean over the labelled words of the batch."""
        names = "input_ids", "attention_mask", "labels"
        return model(**{name: batch[name] for name in names}).loss

    def evaluate(self, model: nn.Module, features, labelled) -> dict:
        """The fields of a `Score`, and how many words were `lost`."""
        return _evaluate(self, model, features, labelled)


# %% book/token_tagging.md#the-task 6b72a157
def _label_rows(task, labelled, tokenizer, max_length):
    if tuple(labelled.labels) != task.labels:
        raise ValueError(
            f"the data has the tags {', '.join(labelled.labels)}, and the "
            f"task {', '.join(task.labels)}; read the data with "
            "labels=task.labels"
        )
    tokens, tags = (labelled.rows[name][:] for name in ("tokens", "tags"))
    rows = window_rows(tokenizer, tokens, max_length, task.stride)
    for row in rows:
        own = tags[row["example"]]
        row["labels"] = [
            IGNORED if word == IGNORED else own[word]
            for word in row["words"]
        ]
    return rows


def _evaluate(task, model, features, labelled):
    numbers = labelled.rows["tags"][:]
    counts = [len(tags) for tags in numbers]
    answers = predict_tags(model, features, counts, task.labels)
    truth = [[task.labels[tag] for tag in tags] for tags in numbers]
    score, _ = score_tags(truth, [repair_bio(a.tags) for a in answers])
    found = score._asdict() | {"lost": sum(a.lost for a in answers)}
    return {name: float(value) for name, value in found.items()}


# %% book/token_tagging.md#your-own-text 32a2c496
import re
import unicodedata

_WORD = re.compile(
    r"""
    (?:https?://|www\.)\S*[\w/]    # an address
    | [@\#]\w+                     # a user, a topic
    | [:;=]-?[DPpo]\b              # a face; those of signs match below
    | (?:[A-Za-z]\.){2,}           # U.K.
    | ['’]s\b                      # Anna's: the name ends before it
    | \w+(?:(?:[&-]|['’](?!s\b)|(?<=\d)[.,:](?=\d))\w+)*
    | [^\w\s@\#]+
    | [@\#]
    """,
    re.VERBOSE,
)


def split_words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word of a text; between them only blanks."""
    letters = []
    for letter in text:
        kind = "" if letter.isascii() else unicodedata.category(letter)
        if kind[:1] == "M" or letter in "\u200c\u200d":  # joined or not
            before = letters[-1] if letters else ""
            letter = before if before.isalnum() else letter
        letters.append(letter)
    return [match.span() for match in _WORD.finditer("".join(letters))]


# %% book/token_tagging.md#your-own-text d7fa69b3
def decode_entities(
    text: str,
    spans: Sequence[tuple[int, int]],
    tags: Sequence[str],
    scores: Sequence[float],
) -> list[dict]:
    """The entities of a text by the places, tags and scores of its words.

    Each is a dict: `entity` (its type), `text`, `start` and `end` in
    characters, and `score`. The tags are repaired first.
    """
    found = []
    for kind, first, after in find_entities(repair_bio(tags)):
        start, end = spans[first][0], spans[after - 1][1]
        found.append(
            {
                "entity": kind,
                "text": text[start:end],
                "start": start,
                "end": end,
                "score": min(scores[first:after]),
            }
        )
    return found
