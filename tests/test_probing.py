"""Probes and control tasks: known answers, another implementation, limits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from bertbook.config import BertConfig
from bertbook.inspection import capture
from bertbook.losses import IGNORED
from bertbook.model import BertModel
from bertbook.probing import (
    LabelledWords,
    ProbeScores,
    balanced,
    capital_labels,
    control_labels,
    fit_probe,
    labelled_words,
    probe_layer,
    probe_loss,
    type_baseline,
)
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import accuracy

SEEDS = st.integers(0, 10**6)
X = IGNORED


def generator(seed):
    return torch.Generator().manual_seed(seed)


def problem(seed, n=200, size=6, classes=3, signal=2.0):
    labels = torch.arange(n) % classes
    vectors = torch.randn(n, size, generator=generator(seed))
    vectors[:, :classes] += signal * F.one_hot(labels, classes)
    return vectors, labels


def toy_words(states, labels, types):
    return LabelledWords(states[None], labels, types)


# Words and labels


@pytest.mark.parametrize(
    "sentence, words, labels",
    [
        ("", [], []),
        ("Paris", ["Paris"], [X]),
        ("in Paris.", ["in", "Paris", "."], [X, 1, X]),
        ("So, Ann, go", ["So", ",", "Ann", ",", "go"], [X, X, 1, X, 0]),
        (
            'He said: "Go in May."',
            ["He", "said", ":", '"', "Go", "in", "May", ".", '"'],
            [X, 0, X, X, X, 0, 1, X, X],
        ),
        ("on 9 May", ["on", "9", "May"], [X, X, 1]),
        ("the BBC's Élan", ["the", "BBC's", "Élan"], [X, 1, 1]),
        ("a T-shirt iPod", ["a", "T-shirt", "iPod"], [X, 1, 0]),
    ],
)
def test_capital_labels(sentence, words, labels):
    assert capital_labels(sentence) == (words, labels)


@given(st.text(max_size=60))
def test_capital_labels_lose_nothing_but_blanks(text):
    words, labels = capital_labels(text)
    assert len(words) == len(labels)
    assert "".join(words) == "".join(text.split()).replace("_", "")
    assert set(labels) <= {0, 1, IGNORED}
    assert labels[:1] in ([], [IGNORED])


def test_labelled_words_are_first_pieces():
    tokenizer = BertTokenizer.from_pretrained("all-MiniLM-L6-v2").fast
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
        )
    )
    sentences = [
        (["We", "met", "Featherstonehaugh", "in", "May"], [X, 0, 1, X, 1]),
        (["Nobody", "there"], [X, 0]),
        (["Nothing", "at", "all"], [X, X, X]),
    ]
    found = labelled_words(model, tokenizer, sentences)
    assert found.types == ["met", "featherstonehaugh", "may", "there"]
    assert found.labels.tolist() == [0, 1, 1, 0]
    seen = capture(model, tokenizer, "We met Featherstonehaugh in May")
    tokens = seen.tokens[0]
    pieces = ["met", tokenizer.tokenize("Featherstonehaugh")[0], "may"]
    for number, piece in enumerate(pieces):
        torch.testing.assert_close(
            found.states[:, number],
            seen.hidden_states[:, 0, tokens.index(piece)],
            rtol=1e-5,
            atol=1e-6,
        )
    some = found.take(torch.tensor([2, 0]))
    assert some.types == ["may", "met"] and some.labels.tolist() == [1, 0]
    assert torch.equal(some.states, found.states[:, [2, 0]])


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=50), seed=SEEDS
)
def test_balanced_keeps_equally_many(labels, seed):
    labels = torch.tensor(labels)
    kept = balanced(labels, generator(seed))
    assert kept.tolist() == sorted(set(kept.tolist()))
    counts = labels[kept].bincount()
    fewest = labels.bincount()[labels.unique()].min()
    assert (counts[labels.unique()] == fewest).all()


# The probe


def test_gradient_of_the_loss_vanishes_at_the_probe():
    vectors, labels = problem(0)
    probe = fit_probe(vectors, labels, 0.1)
    mean, scale = vectors.double().mean(0), vectors.double().std(0)
    weight = (probe.weight * scale).requires_grad_()
    bias = (probe.bias + probe.weight @ mean).requires_grad_()
    loss = probe_loss(weight, bias, (vectors - mean) / scale, labels, 0.1)
    loss.backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, classes=st.integers(2, 4))
def test_the_probe_is_that_of_scikit_learn(seed, classes):
    vectors, labels = problem(seed, classes=classes)
    ours = fit_probe(vectors, labels, 0.05).logits(vectors).softmax(-1)
    scaled = ((vectors - vectors.mean(0)) / vectors.std(0)).double()
    # Two classes: one weight there is the difference of two here.
    factor = 2 if classes == 2 else 1
    theirs = LogisticRegression(
        C=factor / (0.05 * len(labels)), tol=1e-9, max_iter=2000
    )
    theirs.fit(scaled.numpy(), labels.numpy())
    expected = torch.from_numpy(theirs.predict_proba(scaled.numpy()))
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)


def test_a_probe_reads_what_is_there_and_nothing_else():
    vectors, labels = problem(0, n=600, signal=12.0)
    probe = fit_probe(vectors[:300], labels[:300])
    assert accuracy(probe.logits(vectors[300:]), labels[300:]) == 1
    vectors, labels = problem(1, n=3000, signal=0.0)
    probe = fit_probe(vectors[:1500], labels[:1500])
    found = accuracy(probe.logits(vectors[1500:]), labels[1500:])
    assert found == pytest.approx(1 / 3, abs=0.04)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_scale_place_and_order_of_states_do_not_matter(seed):
    vectors, labels = problem(seed)
    expected = fit_probe(vectors, labels).logits(vectors).softmax(-1)
    scale = torch.rand(6, generator=generator(seed)) * 9 + 0.5
    moved = vectors * scale + 3
    order = torch.randperm(len(labels), generator=generator(seed))
    probe = fit_probe(moved[order], labels[order])
    found = probe.logits(moved).softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_the_same_probe_twice():
    vectors, labels = problem(0)
    one, two = fit_probe(vectors, labels), fit_probe(vectors, labels)
    assert all(map(torch.equal, one, two))


def test_a_coordinate_that_never_changes_is_harmless():
    vectors, labels = problem(0, signal=8.0)
    vectors[:, 5] = 7
    probe = fit_probe(vectors, labels)
    assert probe.weight.isfinite().all() and probe.bias.isfinite().all()
    assert accuracy(probe.logits(vectors), labels) > 0.95


# The control task


@settings(deadline=None)
@given(
    types=st.lists(st.text(max_size=5), max_size=20),
    seed=st.integers(0, 9),
)
def test_control_labels_depend_on_type_and_seed_only(types, seed):
    shares = [0.3, 0.3, 0.4]
    labels = control_labels(types, shares, seed)
    assert labels.shape == (len(types),) and not labels.is_floating_point()
    alone = [control_labels([word], shares, seed).item() for word in types]
    assert labels.tolist() == alone
    assert set(alone) <= {0, 1, 2}
    backwards = control_labels(types[::-1], shares, seed)
    assert torch.equal(backwards.flip(0), labels)


def test_control_labels_stay_what_they_are():
    """Another release, another machine: the same lots."""
    words = "the bank of england and the bank of the river".split()
    lots = control_labels(words, [0.5, 0.5], seed=1).tolist()
    assert lots == [1, 1, 0, 0, 0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    "shares", [[1.0], [0.5, 0.5], [0.1, 0.2, 0.7], [0.0, 1.0]]
)
def test_control_labels_follow_the_shares(shares):
    types = [str(number) for number in range(20_000)]
    labels = control_labels(types, shares, seed=3)
    found = labels.bincount(minlength=len(shares)) / len(types)
    torch.testing.assert_close(
        found, torch.tensor(shares), atol=0.015, rtol=0
    )


def test_rounded_shares_make_no_further_label():
    types = [str(number) for number in range(50_000)]
    labels = control_labels(types, [1 / 3 - 1e-3] * 3)
    assert labels.max() == 2


def test_seeds_are_independent():
    types = [str(number) for number in range(20_000)]
    one, two = (control_labels(types, [0.5, 0.5], seed) for seed in (0, 1))
    same = (one == two).float().mean().item()
    assert same == pytest.approx(0.5, abs=0.015)


# Selectivity


def token_problem(seed, n=2000, types=40):
    number = torch.randint(types, (n,), generator=generator(seed))
    return number, [str(one) for one in number.tolist()]


def halves(words):
    n = len(words.types) // 2
    return words.take(torch.arange(n)), words.take(torch.arange(n, 2 * n))


def test_name_tags_have_no_selectivity():
    number, types = token_problem(0)
    words = toy_words(F.one_hot(number).float(), number % 2, types)
    train, test = halves(words)
    (scores,) = probe_layer(train, [test], 0)
    assert scores == (1.0, 1.0) and scores.selectivity == 0


def test_pure_meaning_has_all_of_it():
    number, types = token_problem(0, types=400)
    label = F.one_hot(number % 2).float()
    train, test = halves(toy_words(label, number % 2, types))
    (scores,) = probe_layer(train, [test], 0)
    assert scores.task == 1
    assert scores.control == pytest.approx(0.5, abs=0.12)


def test_lots_of_unseen_types_are_chance():
    number, types = token_problem(0, types=500)
    vectors = torch.randn(500, 64, generator=generator(1))[number]
    words = toy_words(vectors, number % 2, types)
    known, fresh = (number < 250).nonzero()[:, 0], (number >= 250).nonzero()
    train, test = words.take(known), words.take(fresh[:, 0])
    (scores,) = probe_layer(train, [test], 0)
    assert scores.control == pytest.approx(0.5, abs=0.1)


def test_probe_layer_takes_the_layer_and_every_test():
    number, types = token_problem(0)
    noise = torch.randn(2000, 2, generator=generator(1))
    label = F.one_hot(number % 2).float()
    words = LabelledWords(torch.stack([noise, label]), number % 2, types)
    train, test = halves(words)
    low, lower = probe_layer(train, [test, train], 0)
    assert low.task < 0.6 and lower.task < 0.6
    assert [s.task for s in probe_layer(train, [test, train], 1)] == [1, 1]
    assert ProbeScores(0.75, 0.5).selectivity == 0.25


def test_type_baseline():
    zeros = torch.zeros(1, 6, 2)
    types = ["may", "may", "may", "the", "ann", "the"]
    asked = ["may", "the", "ann", "new", "may", "x"]
    test = LabelledWords(zeros, torch.zeros(6, dtype=torch.long), asked)
    train = LabelledWords(zeros, torch.tensor([1, 1, 0, 0, 1, 0]), types)
    assert type_baseline(train, test).tolist() == [1, 0, 1, 0, 1, 0]
    train = LabelledWords(zeros[:, :2], torch.tensor([1, 0]), ["may"] * 2)
    assert type_baseline(train, test).tolist() == [0] * 6, "ties"
