"""Pairs of sentences from BBC News: even, sealed, and in one split each."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook import article_pairs
from bertbook.article_pairs import (
    PAIRS_AN_ARTICLE,
    SHORTEST,
    same_article_pairs,
)
from bertbook.corpora import SPLITS, load_corpus, text_id


@pytest.fixture(scope="module")
def pairs():
    return {split: same_article_pairs(split) for split in SPLITS}


@pytest.fixture(scope="module")
def articles():
    return {
        row["id"]: row | {"split": split}
        for split in SPLITS
        for row in load_corpus("bbc_news", split)
    }


def sentences_of(article):
    return {s for part in article["sentences"] for s in part}


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_true_and_even(pairs, articles, split):
    rows = pairs[split]
    assert rows.features["label"].names == ["different", "same"]
    assert Counter(rows["label"]) == {0: len(rows) / 2, 1: len(rows) / 2}
    for row in rows:
        same = row["article"] == row["article_pair"]
        assert row["label"] == same
        assert row["text"] in sentences_of(articles[row["article"]])
        assert row["text_pair"] in sentences_of(
            articles[row["article_pair"]]
        )


@pytest.mark.parametrize("split", SPLITS)
def test_a_sentence_stands_once_on_each_side_of_the_question(pairs, split):
    rows = pairs[split]
    for side in ("text", "text_pair"):
        labels = {}
        for text, label in zip(rows[side], rows["label"]):
            labels.setdefault(text_id(text), []).append(label)
        assert all(sorted(each) == [0, 1] for each in labels.values())
    a, b = ({text_id(t) for t in rows[s]} for s in ("text", "text_pair"))
    assert not a & b, "a sentence keeps its role"


@settings(max_examples=20, deadline=None)
@given(
    salt=st.text(max_size=5), side=st.sampled_from(["text", "text_pair"])
)
def test_what_sees_one_side_is_right_half_of_the_time(pairs, salt, side):
    rows = pairs["test"]

    def guess(text):
        return hashlib.sha256((salt + text).encode()).digest()[0] % 2

    right = sum(
        guess(text) == label
        for text, label in zip(rows[side], rows["label"])
    )
    assert right * 2 == len(rows)


def test_both_articles_are_of_one_topic_and_one_split(pairs, articles):
    for split, rows in pairs.items():
        for one, other in zip(rows["article"], rows["article_pair"]):
            assert articles[one]["label"] == articles[other]["label"]
            assert articles[one]["split"] == split
            assert articles[other]["split"] == split


def test_no_sentence_is_in_two_splits_or_two_articles(pairs, articles):
    homes = {}
    for article in articles.values():
        for sentence in sentences_of(article):
            homes.setdefault(text_id(sentence), set()).add(article["id"])
    seen = Counter()
    for rows in pairs.values():
        texts = [*rows["text"], *rows["text_pair"]]
        assert all(len(homes[text_id(text)]) == 1 for text in texts)
        seen.update({text_id(text) for text in texts})
    assert set(seen.values()) == {1}
    assert any(len(where) > 1 for where in homes.values())


def test_sentences_are_long_enough_and_few_an_article(pairs):
    for rows in pairs.values():
        for side in ("text", "text_pair"):
            assert all(len(text.split()) >= SHORTEST for text in rows[side])
        same = Counter(row["article"] for row in rows if row["label"] == 1)
        assert set(same.values()) <= set(range(1, PAIRS_AN_ARTICLE + 1))
        assert same.most_common()[0][1] == PAIRS_AN_ARTICLE


def test_nearly_every_article_takes_part(pairs, articles):
    for split, rows in pairs.items():
        whole = sum(each["split"] == split for each in articles.values())
        # Articles of near copies fall out.
        assert len(set(rows["article"])) > 0.95 * whole


def test_a_seed_is_a_set(pairs):
    again = same_article_pairs("validation")
    assert again[:] == pairs["validation"][:]
    other = same_article_pairs("validation", seed=1)
    assert set(other["article"]) == set(again["article"])
    common = set(other["text"]) & set(again["text"])
    assert len(common) < 0.5 * len(set(again["text"]))


def test_the_order_is_a_shuffle(pairs):
    labels = pairs["train"]["label"][:]
    changes = sum(a != b for a, b in zip(labels, labels[1:]))
    assert abs(changes / len(labels) - 0.5) < 0.05
    half = labels[: len(labels) // 2]
    assert abs(sum(half) / len(half) - 0.5) < 0.05


def test_the_hash_seed_of_python_does_not_matter(pairs):
    program = (
        "from bertbook.article_pairs import same_article_pairs\n"
        "rows = same_article_pairs('test')\n"
        "print(rows['text'][:5], rows['text_pair'][-5:])\n"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    rows = pairs["test"]
    expected = f"{rows['text'][:5]} {rows['text_pair'][-5:]}\n"
    assert shown == {expected}


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="no split 'dev'"):
        same_article_pairs("dev")


@given(size=st.integers(0, 6), topics=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_small_corpora(size, topics):
    """Two articles of a topic are enough for a ring."""
    from datasets import Dataset

    def article(number):
        words = [f"a{number}", "six", "words", "make", "one", "sentence"]
        sentences = [" ".join([*words, str(n)]) for n in range(5)]
        return {
            "id": str(number),
            "label": number % topics,
            "sentences": [sentences[:2], sentences[2:], ["Too short."]],
        }

    rows = Dataset.from_list([article(n) for n in range(size + 2 * topics)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(article_pairs, "load_corpus", lambda *_: rows)
        patch.setattr(article_pairs, "_shared_sentences", set)
        found = same_article_pairs()
    assert len(found) == 2 * PAIRS_AN_ARTICLE * len(rows)
    assert all(
        (one == other) == label
        for one, other, label in zip(
            found["article"], found["article_pair"], found["label"]
        )
    )
