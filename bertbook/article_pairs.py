"""Pairs from articles

Makes a task of two sentences from BBC News, are they from the same article
or not, in which neither sentence alone, nor the topic, gives the answer
away.

The page: https://bertbook.github.io/bertbook/book/article_pairs.html
"""

# Tangled from book/article_pairs.md (29104a30): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "PAIRS_AN_ARTICLE",
    "SHORTEST",
    "same_article_pairs",
]


# %% book/article_pairs.md#the-ring 591d3f2f
from collections import Counter
from functools import cache

from bertbook.corpora import (
    SPLITS,
    _import_datasets,
    canonical,
    load_corpus,
    text_id,
)

SHORTEST = 6  # words


@cache
def _shared_sentences():
    """The sentences of BBC News that more than one article has."""
    homes = Counter()
    for split in SPLITS:
        for parts in load_corpus("bbc_news", split)["sentences"]:
            homes.update({canonical(s) for part in parts for s in part})
    return {sentence for sentence, count in homes.items() if count > 1}


def _own_sentences(paragraphs, seed):
    """Sentences that no other article has, in an order by their hash."""
    own = {
        canonical(sentence): sentence
        for paragraph in paragraphs
        for sentence in paragraph
        if len(sentence.split()) >= SHORTEST
    }
    own = [own[key] for key in own.keys() - _shared_sentences()]
    return sorted(own, key=lambda sentence: text_id(f"{seed} {sentence}"))


# %% book/article_pairs.md#the-ring 0d5234bd
from collections import defaultdict

PAIRS_AN_ARTICLE = 2  # of each kind


def _rings(split, seed):
    """Lists of (article, A, B): one topic each, and no article twice."""
    rings = defaultdict(list)
    for article in load_corpus("bbc_news", split):
        own = _own_sentences(article["sentences"], seed)
        pairs = list(zip(own[::2], own[1::2]))[:PAIRS_AN_ARTICLE]
        for number, pair in enumerate(pairs):
            rings[article["label"], number].append((article["id"], *pair))
    for ring in rings.values():
        if len(ring) > 1:
            yield sorted(ring, key=lambda one: text_id(f"{seed} {one[1]}"))


# %% book/article_pairs.md#the-ring c81160a0
def same_article_pairs(split: str = "train", seed: int = 0):
    """Pairs of sentences, half of them from one article of BBC News.

    A `datasets.Dataset` with `text`, `text_pair`, `label` ("different" or
    "same"), and `article` and `article_pair`, the ids in BBC News. Each
    sentence stands in one pair of either kind, and both articles of a pair
    have one topic. No article, and no sentence, is in two splits. The same
    for the same seed. Raises as `load_corpus` does.
    """
    hf = _import_datasets()
    columns = "text", "text_pair", "label", "article", "article_pair"
    rows = []
    for ring in _rings(split, seed):
        for one, another in zip(ring, ring[1:] + ring[:1]):
            here, a, b = one
            rows.append((a, b, "same", here, here))
            rows.append((a, another[2], "different", here, another[0]))
    rows.sort(key=lambda row: text_id(f"{seed} {row[0]} {row[1]}"))
    kinds = {column: hf.Value("string") for column in columns}
    kinds["label"] = hf.ClassLabel(names=["different", "same"])
    return hf.Dataset.from_dict(
        dict(zip(columns, map(list, zip(*rows)))),
        features=hf.Features(kinds),
    )
