"""Search: order, ranks, files, and faults on purpose."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from bertbook.inference import Embedder
from bertbook.search import (
    Hit,
    Index,
    largest,
    load_index,
    mean_reciprocal_rank,
    rank_of,
    recall_at,
    save_index,
    unit_rows,
)
from bertbook.training_loop import load_tensors, save_tensors

FILE = "index.safetensors"
SEEDS = st.integers(0, 10**6)
TEXTS = ["rain in the north", "a doctor", "the bank's rates", "Über — \n x"]


def embedder(seed=0, size=16):
    """Vectors that depend on the text alone, and on `seed`."""

    def embed(texts):
        rows = []
        for text in texts:
            numbers = list(text.encode()) + [seed]
            draw = np.random.default_rng(numbers)
            rows.append(draw.standard_normal(size))
        return np.array(rows, dtype=np.float32).reshape(-1, size)

    return embed


@pytest.fixture
def index():
    return Index(TEXTS, embedder())


# Order


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 50))
def test_largest_is_a_stable_sort(scores, k):
    scores = np.array(scores, dtype=float)
    expected = np.argsort(-scores, kind="stable")[:k].tolist()
    assert largest(scores, k) == expected


@given(SEEDS, st.integers(1, 20), st.integers(1, 25))
def test_hits_are_the_nearest_by_scikit_learn(seed, count, k):
    draw = np.random.default_rng(seed)
    texts = [f"{n} {draw.integers(9)}" for n in range(count)]
    index = Index(texts, embedder(size=5))
    queries = ["first", "second one"]
    cosines = cosine_similarity(index.embedder(queries), index.vectors)
    for row, hits in zip(cosines, index.search(queries, k)):
        assert len(hits) == min(k, count)
        order = np.argsort(-row, kind="stable")[:k]
        np.testing.assert_allclose(
            [hit.score for hit in hits], row[order], atol=1e-5
        )
        for hit in hits:
            assert isinstance(hit, Hit) and isinstance(hit.number, int)
            assert hit.score == pytest.approx(row[hit.number], abs=1e-5)


def test_one_query_and_a_list_of_one(index):
    assert index.search("a doctor", 2) == index.search(["a doctor"], 2)[0]
    assert index.search("a doctor", 1)[0].number == 1
    assert index.search("a doctor", 1)[0].score == pytest.approx(1)
    assert index.search([], 3) == []


def test_length_and_zeros():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [-5.0, 0.0]])
    index = Index("abc", lambda texts: np.ones((len(texts), 2)), vectors)
    expected = [1.4 / 2**0.5, 0, -1 / 2**0.5]
    np.testing.assert_allclose(index.scores(["q"])[0], expected, atol=1e-6)
    assert index.vectors.dtype == np.float32
    assert np.array_equal(unit_rows(vectors), index.vectors)


def test_an_index_of_nothing_is_refused():
    with pytest.raises(ValueError, match="give one or more"):
        Index([], embedder())


# Measures


@given(SEEDS, st.integers(1, 12), st.integers(1, 6))
def test_ranks_by_counting(seed, texts, queries):
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 4, (queries, texts)).astype(float)
    relevant = draw.integers(0, texts, queries)
    for row, wanted, rank in zip(
        scores, relevant, rank_of(scores, relevant)
    ):
        # The mean over all orders of ties is the mean of best and worst.
        best = 1 + sum(row > row[wanted])
        worst = best + sum(row == row[wanted]) - 1
        assert rank == (best + worst) / 2


@given(SEEDS)
def test_reciprocal_rank_is_scikit_learns_for_one_relevant_text(seed):
    draw = np.random.default_rng(seed)
    scores = draw.permuted(np.tile(np.arange(9.0), (7, 1)), axis=1)
    relevant = draw.integers(0, 9, 7)
    ranks = rank_of(scores, relevant)
    truth = np.eye(9)[relevant]
    expected = label_ranking_average_precision_score(truth, scores)
    assert mean_reciprocal_rank(ranks) == pytest.approx(expected)
    shares = [recall_at(ranks, k) for k in range(10)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


def test_knowing_nothing_is_chance():
    ranks = rank_of(np.zeros((6, 11)), np.arange(6))
    assert ranks.tolist() == [6.0] * 6, "not 1, and not 11"


# Files


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
def test_an_index_comes_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("index")
    saved = Index(texts, embedder())
    save_index(saved, folder)
    loaded = load_index(folder, embedder())
    assert loaded.texts == texts
    np.testing.assert_allclose(loaded.vectors, saved.vectors, atol=1e-6)
    found, expected = (each.search("x", 3) for each in (loaded, saved))
    assert [h.number for h in found] == [h.number for h in expected]


def test_loading_reads_one_text_and_saving_is_reproducible(tmp_path, index):
    read = []

    def counting(texts):
        read.extend(texts)
        return embedder()(texts)

    for name in "ab":
        save_index(index, tmp_path / name)
    load_index(tmp_path / "a", counting)
    assert read == TEXTS[:1]
    one, two = (tmp_path / name / FILE for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert list((tmp_path / "a").iterdir()) == [one]


def test_other_files_in_the_folder_stay(tmp_path, index):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    save_index(index, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def rewrite(path, **changes):
    tensors, _ = load_tensors(path)
    tensors = {name: each.clone() for name, each in tensors.items()}
    tensors |= changes
    save_tensors(
        path, {n: each for n, each in tensors.items() if each is not None}
    )


def as_bytes(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


NONE = "holds no texts with a vector each; build the index again"
FAULTS = {
    "no file": (lambda path: path.unlink(), "save_index wrote"),
    "no texts": (partial(rewrite, texts=None), NONE),
    "no vectors": (partial(rewrite, vectors=None), NONE),
    "not JSON": (partial(rewrite, texts=as_bytes(b'["a')), NONE),
    "deep": (partial(rewrite, texts=as_bytes(b"[" * 10**5)), NONE),
    "not UTF-8": (partial(rewrite, texts=as_bytes(b'["\xff"]')), NONE),
    "no list": (partial(rewrite, texts=as_bytes(b'{"texts": []}')), NONE),
    "no strings": (partial(rewrite, texts=as_bytes(b"[1, 2, 3, 4]")), NONE),
    "fewer": (partial(rewrite, vectors=torch.zeros(3, 16)), NONE),
    "no rows": (partial(rewrite, vectors=torch.zeros(4)), NONE),
    "cut short": (
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        "cut short",
    ),
    "a pickle": (
        lambda path: path.write_bytes(b"\x80\x04\x95cos\nsystem\n."),
        "pickle",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_named(tmp_path, index, fault):
    damage, match = FAULTS[fault]
    save_index(index, tmp_path)
    damage(tmp_path / FILE)
    with pytest.raises((ValueError, FileNotFoundError), match=match) as e:
        load_index(tmp_path, embedder())
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("other", [embedder(1), embedder(0, 8)])
def test_another_model_is_noticed(tmp_path, index, other):
    save_index(index, tmp_path)
    with pytest.raises(ValueError, match="built with another model"):
        load_index(tmp_path, other)


def test_a_failing_save_leaves_the_old_index(tmp_path, index, monkeypatch):
    save_index(index, tmp_path)
    before = load_index(tmp_path, embedder()).texts

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_index(Index(["new"], embedder()), tmp_path)
    assert load_index(tmp_path, embedder()).texts == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


# The real model


def test_meaning_without_a_word_in_common():
    embed = Embedder.from_pretrained("all-MiniLM-L6-v2", max_length=32)
    index = Index(
        [
            "Rain is expected in the north.",
            "The doctor examined the child.",
            "Their bank raised its rates.",
        ],
        embed,
    )
    hits = index.search("A physician looks after some young patient.", 3)
    assert hits[0].number == 1
    assert hits[0].score > hits[1].score >= hits[2].score
