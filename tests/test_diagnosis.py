"""Diagnosis: levels against another computation, and a sentence for each
fault, none for what is healthy."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.diagnosis import (
    ExpectedLosses,
    count_pieces,
    diagnose_run,
    diagnose_text,
    expected_losses,
    fingerprints,
    read_curves,
)
from bertbook.token_files import write_token_files
from bertbook.tokenizer import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
WORDS = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
TOKENIZER = BertTokenizer({p: n for n, p in enumerate(SPECIAL + WORDS)})
LETTERS = [
    f"{mark}{c}" for c in "abcdefghijklmnopqrst" for mark in ("", "##")
]
SPELLING = BertTokenizer({p: n for n, p in enumerate(SPECIAL + LETTERS)})


def documents(count, words=120, seed=0):
    """Documents of sentences of twelve words, frequent ones first."""
    draw = np.random.default_rng(seed)
    shares = 1 / np.arange(1, 101)
    out = []
    for _ in range(count):
        text = draw.choice(WORDS, words, p=shares / shares.sum())
        rows = text.reshape(-1, 12)
        out.append(
            " ".join(" ".join(row).capitalize() + "." for row in rows)
        )
    return out


def write(texts, folder, tokenizer=TOKENIZER, **options):
    return write_token_files(texts, tokenizer, folder, **options)


# What to expect


def test_levels_equal_a_count_of_words(tmp_path):
    texts = [text.replace(".", "") for text in documents(30)]
    texts[0] += " unknown"
    files = write(texts, tmp_path, shard_size=7)
    counts = Counter(" ".join(texts).lower().split())
    del counts["unknown"]
    shares = np.array(list(counts.values())) / sum(counts.values())
    found = expected_losses(files, TOKENIZER)
    assert found.uniform == math.log(106)
    assert found.unigram == pytest.approx(-(shares * np.log(shares)).sum())


def test_unigram_is_the_least_loss_without_context(tmp_path):
    """A bias trained alone comes to the level, and not below."""
    files = write(documents(20), tmp_path)
    counts = torch.from_numpy(count_pieces(files, 106)).double()
    counts[:5] = 0
    bias = torch.zeros(106, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200)

    def loss():
        optimizer.zero_grad()
        value = -(counts * bias.log_softmax(0)).sum() / counts.sum()
        value.backward()
        return value

    optimizer.step(loss)
    level = expected_losses(files, TOKENIZER).unigram
    assert level <= loss().item() < level + 1e-3


def test_no_ordinary_piece_is_refused(tmp_path):
    files = write(["zzz zzz"], tmp_path)
    with pytest.raises(ValueError, match="no ordinary piece; give text"):
        expected_losses(files, TOKENIZER)


# Fingerprints


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=4),
        min_size=1,
        max_size=30,
    )
)
def test_fingerprints_are_equal_where_parts_are(parts):
    ids = np.array(sum(parts, []), np.uint16)
    bounds = np.cumsum([0, *map(len, parts)])
    marks = fingerprints(ids, bounds).tolist()
    for one, part in zip(marks, parts):
        for other, second in zip(marks, parts):
            assert (one == other) == (part == second)


def test_fingerprints_do_not_depend_on_the_neighbours():
    short = fingerprints(np.array([1, 2]), np.array([0, 2]))
    beside = fingerprints(
        np.array([9] * 50 + [1, 2]), np.array([0, 50, 52])
    )
    assert short[0] == beside[1]
    assert len(fingerprints(np.zeros(0, np.uint16), np.array([0]))) == 0


# Texts


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    train = write(documents(4500), folder / "train")
    held_out = write(documents(400, seed=1), folder / "held-out")
    return train, held_out


def test_a_good_text_is_passed_in_silence(good):
    assert good[0].pieces > 500_000
    assert diagnose_text(*good, TOKENIZER, 64) == []


@pytest.mark.parametrize(
    "change, words",
    [
        ("unknown", ["[UNK]", "learn_tokenizer"]),
        ("spelled", ["pieces", "does not fit", "learn_tokenizer"]),
        ("copies", ["10.0% of the training documents", "remove"]),
        ("header", ["longer training sentences", "headers"]),
        ("leak", ["5.0% of the held-out documents", "hash"]),
        ("little", ["training part has", "more text"]),
        ("little held out", ["held-out part has", "uncertain"]),
    ],
)
def test_each_fault_has_its_sentence(tmp_path, good, change, words):
    train, held_out = good
    tokenizer, base = TOKENIZER, documents(100)
    if change == "unknown":
        texts = [text.replace("ak", "Zürich").title() for text in base]
    elif change == "spelled":
        texts, tokenizer = base, SPELLING
    elif change == "copies":
        texts = documents(90) + documents(10)
    elif change == "header":
        header = " ".join(WORDS[:12]).capitalize() + ". "
        texts = [header + text for text in base]
    else:
        texts = base
    if change not in ("leak", "little held out"):
        train = write(texts, tmp_path / "train", tokenizer)
    if change == "leak":
        others = documents(190, seed=1) + documents(10)
        held_out = write(others, tmp_path / "held-out")
    if change == "little held out":
        held_out = write(documents(3, seed=1), tmp_path / "held-out")
    if change == "spelled":
        held_out = write(documents(400, seed=1), tmp_path / "x", SPELLING)
    found = diagnose_text(train, held_out, tokenizer, 64)
    fitting = [
        text for text in found if all(word in text for word in words)
    ]
    assert len(fitting) == 1, found
    assert all("\n" not in text and ";" in text for text in found)


# Runs

LEVELS = ExpectedLosses(9.0, 6.5)


def a_log(losses, held_out, noise=0.0, norm=1.0, steps=400):
    """Curves through the given values, with noise, as a log has them."""
    draw = np.random.default_rng(0)

    def at(values, step):
        return float(
            np.interp(step, np.linspace(0, steps, len(values)), values)
        )

    log = [{"step": 0, "held_out_loss": at(held_out, 0)}]
    for step in range(1, steps + 1):
        loss = at(losses, step) + noise * float(draw.standard_normal())
        record = {"step": step, "loss": loss, "gradient_norm": norm}
        if step % 40 == 0:
            record["held_out_loss"] = at(held_out, step)
        log.append(record)
    return log


TAKE_OFF = [9, 6.6, 6.4, 5.5, 4.9, 4.6, 4.4, 4.3]


@pytest.mark.parametrize(
    "losses, held_out",
    [
        (TAKE_OFF, TAKE_OFF),
        ([9, 7, 6.8, 6, 5.6, 5.2, 5, 4.8], TAKE_OFF),  # more was masked
        (TAKE_OFF, [loss + 0.2 for loss in TAKE_OFF]),
        ([9, 6.5, 4, 3.4, 3.2, 3.1, 3.1], [9, 6.5, 4, 3.5, 3.3, 3.2, 3.2]),
    ],
)
def test_a_healthy_run_is_passed_in_silence(losses, held_out):
    assert diagnose_run(a_log(losses, held_out, 0.15), LEVELS) == []


@pytest.mark.parametrize(
    "losses, held_out, words",
    [
        ([9, 8.99], [9, 8.99], ["8.99", "9.00", "raise the learning rate"]),
        (
            [9, 6.6, 6.6, 6.5, 6.5],
            [9, 6.6, 6.6, 6.5, 6.5],
            ["6.50", "frequencies", "Muon"],
        ),
        (
            [9, 7, 6, 5.5, 9, 9, 9],
            [9, 7, 6, 5.5, 9, 9, 9],
            ["diverges", "by three"],
        ),
        (
            [9, 7, 6, 12, 18],
            [9, 7, 6, 15, 26],
            ["17.", "diverges"],
        ),
        (
            [9, 6, 4, 2, 1, 0.5],
            [9, 6, 5, 5.5, 6, 6.5],
            ["since step 160", "5.00 to 6.50", "remembers"],
        ),
        (
            [9, 6, 4, 3, 2.5, 2.5],
            [9, 6, 5, 4.6, 4.5, 4.5],
            ["loss at 4.50", "remembers"],
        ),
        ([30, 9, 5, 4], [30, 9, 5, 4], ["30.00", "too large"]),
        ([2, 1.9, 1.8], [2, 1.9, 1.8], ["2.00", "can be seen"]),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_each_fault_of_a_run(losses, held_out, words, noise):
    said = diagnose_run(a_log(losses, held_out, noise), LEVELS)
    assert len(said) == 1, said
    assert all(word in said[0] for word in words), said
    assert ";" in said[0] and "\n" not in said[0]


def test_a_loss_that_is_no_number():
    log = a_log(TAKE_OFF, TAKE_OFF)
    log[57]["loss"] = math.nan
    assert "in step 57;" in diagnose_run(log, LEVELS)[0]
    log = a_log(TAKE_OFF, TAKE_OFF)
    log[12]["gradient_norm"] = math.inf
    assert "in step 12;" in diagnose_run(log, LEVELS)[0]


def test_the_loss_of_masked_pieces_counts_not_the_sum():
    log = a_log(TAKE_OFF, TAKE_OFF)
    for record in log[1:]:
        record["mlm_loss"] = record["loss"]
        record["loss"] += 3 * record["step"] / 400
    assert diagnose_run(log, LEVELS) == []


@pytest.mark.parametrize("keep", range(4))
def test_short_and_partial_logs_are_no_error(keep):
    log = a_log(TAKE_OFF, TAKE_OFF)[:keep]
    assert all(isinstance(text, str) for text in diagnose_run(log, LEVELS))
    bare = [{"step": n, "loss": 9.0 - n / 50} for n in range(1, 200)]
    assert diagnose_run(bare, LEVELS) == []
    assert diagnose_run([], LEVELS) == []


def test_files_without_documents(tmp_path):
    empty = write([], tmp_path / "none")
    some = write(documents(3), tmp_path / "some")
    for train, held_out in ((empty, some), (some, empty), (empty, empty)):
        assert diagnose_text(train, held_out, TOKENIZER, 64)


def test_curves_average_a_twentieth():
    log = a_log([9, 5], [9, 5], steps=400)
    curves = read_curves(log)
    losses = [record["loss"] for record in log[1:]]
    assert curves.around(400) == pytest.approx(np.mean(losses[-20:]))
    assert curves.around(30) == pytest.approx(np.mean(losses[10:30]))
