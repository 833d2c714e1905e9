"""Cloze questions

Makes questions and answers from news articles: a name or a number is cut
out of the title or the first sentence of an article, and the rest of the
article is asked for it.

The page: https://bertbook.github.io/bertbook/book/cloze_questions.html
"""

# Tangled from book/cloze_questions.md (63e85796): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Article",
    "BLANK",
    "Cloze",
    "article_questions",
    "candidate_spans",
    "cloze_questions",
    "cloze_rows",
    "find_choices",
    "find_names",
    "find_places",
    "first_name",
    "most_frequent",
    "similar_article",
    "sliding_window",
    "sort_places",
    "split_article",
    "word_weights",
    "words_of",
]


# %% book/cloze_questions.md#names-and-numbers e6e67b32
import re

_WORD = r"[A-Z][\w&]*(?:['-][A-Z][\w&]*)*"
_NAME = (
    rf"(?<![\w-])(?<!\w'){_WORD}(?: (?:of |de |van |von |& )?{_WORD})*"
    r"(?: \d+(?![\w%]|[.,:-]\d))?"
)
_NUMBER = (
    r"(?<![\w.,:£$€-])[£$€]?\d+(?:[.,:]\d+)*(?:-\d+)?"
    r"(?:%|bn|m|p|th|st|nd|rd)?(?![\w%]|[.,:-]\d)"
)
_CANDIDATE = re.compile(f"{_NAME}|{_NUMBER}")


def candidate_spans(text: str) -> list[tuple[int, int]]:
    """The start and end of each run of words with capitals or number."""
    spans = (match.span() for match in _CANDIDATE.finditer(text))
    return [
        (start, end)
        for start, end in spans
        if end - start > 1 or text[start].isdigit()  # not "A" and "I"
    ]


# %% book/cloze_questions.md#names-and-numbers b284a715
def _begins_sentence(text, start):
    before = text[:start].rstrip(" ")
    return not before or before[-1] in ".!?:\n\"'-"


def find_names(text: str) -> list[tuple[int, int]]:
    """`candidate_spans` without words whose capital is a sentence's.

    A lone word at the start of a sentence stays if `text` has it with a
    capital inside a sentence, too.
    """
    spans = candidate_spans(text)
    sure = {
        text[start:end]
        for start, end in spans
        if " " in text[start:end] or not _begins_sentence(text, start)
    }
    return [
        (start, end)
        for start, end in spans
        if text[start:end] in sure or not text[start].isupper()
    ]


# %% book/cloze_questions.md#where-the-answer-stands 85c511b8
def find_places(
    answer: str, context: str, names: list[tuple[int, int]]
) -> list[int]:
    """Where `answer` starts as, or at the end of, one of the `names`."""
    named, tail = answer[0].isupper(), f" {answer}"
    return [
        end - len(answer)
        for start, end in names
        if context[start:end] == answer
        or (named and context[start:end].endswith(tail))
    ]


# %% book/cloze_questions.md#where-the-answer-stands c7582feb
BLANK = "[MASK]"  # where the answer was


def words_of(text: str) -> frozenset[str]:
    """The words of `text` in lower case, each once; `BLANK` is none."""
    return frozenset(re.findall(r"\w+", text.replace(BLANK, " ").lower()))


def sort_places(
    question: str, context: str, places: list[int]
) -> list[int]:
    """`places`, those among most words of `question` first.

    Looks as many characters to both sides as the question is long.
    """
    asked, reach = words_of(question), len(question)

    def shared(place):
        near = context[max(0, place - reach) : place + reach]
        return len(asked & words_of(near))

    # A stable sort: of equals the first in the text comes first.
    return sorted(places, key=lambda place: -shared(place))


# %% book/cloze_questions.md#the-questions-of-an-article 7021052b
from collections.abc import Iterator
from typing import NamedTuple


class Article(NamedTuple):
    """A text that asks about itself."""

    id: str
    topic: int
    summaries: tuple[str, ...]  # its title and its first sentence
    context: str  # the rest
    words: frozenset[str]  # of the rest


def split_article(row: dict) -> Article:
    """The article of a row of `bbc_news`."""
    first = row["sentences"][0][0]
    rest = row["text"].removeprefix(first).strip()
    summaries = row["title"], first
    return Article(row["id"], row["label"], summaries, rest, words_of(rest))


# %% book/cloze_questions.md#the-questions-of-an-article 4c3b4c4d
from bertbook.corpora import canonical


class Cloze(NamedTuple):
    """A sentence with a blank, and what filled it."""

    question: str
    answer: str
    places: list[int]  # where it starts in the context, likeliest first


def _mentions(answer, summary):
    word = rf"(?<!\w){re.escape(answer)}(?!\w)"
    return len(re.findall(word, summary, re.IGNORECASE))


def article_questions(article: Article) -> Iterator[Cloze]:
    """The questions of an article, those of its title first."""
    context, names = article.context, find_names(article.context)
    for summary in article.summaries:
        if canonical(summary) in canonical(context):
            continue
        for start, end in candidate_spans(summary):
            answer = summary[start:end]
            places = find_places(answer, context, names)
            if places and _mentions(answer, summary) == 1:
                question = summary[:start] + BLANK + summary[end:]
                places = sort_places(question, context, places)
                yield Cloze(question, answer, places)


# %% book/cloze_questions.md#questions-without-an-answer cce9d080
import math
from collections import Counter
from collections.abc import Sequence


def word_weights(articles: Sequence[Article]) -> dict[str, float]:
    """How rare each word is: ln(articles / articles with the word)."""
    counts = Counter(word for each in articles for word in each.words)
    return {w: math.log(len(articles) / n) for w, n in counts.items()}


def similar_article(
    cloze: Cloze,
    article: Article,
    others: Sequence[Article],
    weights: dict[str, float],
) -> Article | None:
    """The one of its topic most like the question, without the answer.

    None where each has all words of the answer.
    """
    asked, answer = words_of(cloze.question), words_of(cloze.answer)

    def likeness(other):
        shared = asked & other.words  # a set has no order; fsum needs none
        return math.fsum(weights[word] for word in shared), other.id

    fitting = (
        other
        for other in others
        if other.topic == article.topic
        and other.id != article.id
        and not answer <= other.words
    )
    return max(fitting, key=likeness, default=None)


# %% book/cloze_questions.md#questions-without-an-answer 1cf449b0
from bertbook.corpora import text_id


def _has_twin(name):
    return int(text_id(name)[8:], 16) % 2 == 0


def _row(name, cloze, context, places):
    answers = {"text": [cloze.answer] * len(places), "answer_start": places}
    return {
        "id": name,
        "context": context,
        "question": cloze.question,
        "answers": answers,
    }


def cloze_rows(
    articles: Sequence[Article], seen: set[str]
) -> Iterator[dict]:
    """The rows of some articles, without the questions in `seen`.

    Adds to `seen` the letters and digits of each question.
    """
    weights = word_weights(articles)
    for article in articles:
        for number, cloze in enumerate(article_questions(article)):
            if canonical(cloze.question) in seen:
                continue
            seen.add(canonical(cloze.question))
            name = f"{article.id}-{number}"
            yield _row(name, cloze, article.context, cloze.places)
            if _has_twin(name):
                other = similar_article(cloze, article, articles, weights)
                if other is not None:
                    yield _row(f"{name}-other", cloze, other.context, [])


# %% book/cloze_questions.md#the-set 29a6a315
from functools import cache

from bertbook.corpora import SPLITS, _import_datasets, load_corpus


@cache
def _all_rows():
    rows, seen = {}, set()
    for split in reversed(SPLITS):  # the test set chooses first
        news = load_corpus("bbc_news", split)
        articles = [split_article(row) for row in news]
        rows[split] = list(cloze_rows(articles, seen))
    return rows


def cloze_questions(split: str = "train"):
    """One split of the cloze questions, a `datasets.Dataset` as SQuAD's.

    The columns are `id`, `context`, `question` and `answers`, a dict with
    the lists `text` and `answer_start`: all places, the likeliest first,
    and empty where the context has no answer. Raises ValueError for a
    split that there is not.
    """
    if split not in SPLITS:
        raise ValueError(
            f"the cloze questions have no split {split!r}; choose one of "
            f"{', '.join(SPLITS)}"
        )
    rows, hf = _all_rows()[split], _import_datasets()
    text, starts = hf.Value("string"), hf.List(hf.Value("int32"))
    columns = {"id": text, "context": text, "question": text}
    columns["answers"] = {"text": hf.List(text), "answer_start": starts}
    features, split = hf.Features(columns), hf.NamedSplit(split)
    return hf.Dataset.from_list(rows, features=features, split=split)


# %% book/cloze_questions.md#readers-that-cannot-read c91e2f8f
def find_choices(question: str, context: str) -> list[tuple[int, int]]:
    """Names and numbers of the context that the question lacks."""
    asked = words_of(question)
    return [
        (start, end)
        for start, end in find_names(context)
        if not words_of(context[start:end]) <= asked
    ]


def first_name(question: str, context: str) -> str:
    """The first name or number that is not in the question, or ""."""
    spans = find_choices(question, context)
    return context[slice(*spans[0])] if spans else ""


def most_frequent(question: str, context: str) -> str:
    """The one that stands in the context most often (of equals the first).

    Hermann et al. (2015), section 3, "exclusive frequency".
    """
    spans = find_choices(question, context)
    names = Counter(context[start:end] for start, end in spans)
    return names.most_common(1)[0][0] if names else ""


# %% book/cloze_questions.md#readers-that-cannot-read 94588cb8
from bisect import bisect_left


def sliding_window(question: str, context: str) -> str:
    """The name or number among most words of the question, or "".

    Richardson et al. (2013), algorithm 1, at each candidate.
    """
    asked = words_of(question)
    found = list(re.finditer(r"\w+", context))
    words = [match.group().lower() for match in found]
    starts, counts = [match.start() for match in found], Counter(words)
    reach = len(re.findall(r"\w+", question))

    def likeness(span):
        first, last = (bisect_left(starts, end) for end in span)
        near = words[max(0, first - reach) : first]
        near += words[last : last + reach]
        return math.fsum(
            math.log1p(1 / counts[word]) for word in near if word in asked
        )

    spans = find_choices(question, context)
    return context[slice(*max(spans, key=likeness))] if spans else ""
