"""Mistakes, calibration and attributions: known answers and other code."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from bertbook.config import BertConfig
from bertbook.explanations import (
    Explanation,
    confident_mistakes,
    confusion,
    explain,
    fit_temperature,
    highlight,
    integrated_gradients,
    log_odds,
    logits_of,
    merge_pieces,
    reliability,
    removal_curve,
)
from bertbook.heads import BertForSequenceClassification
from bertbook.tokenizer import BertTokenizer

SEEDS = st.integers(0, 10**6)
CONFIG = BertConfig(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=32,
    num_labels=3,
    labels=("bad", "fair", "good"),
)
TEXTS = [
    "a film",
    "unwatchable , and not for a moment dull",
    "",
    "It isn't bad; it's worse than that, and longer, too!",
]


TOKENIZER = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZER


def make_model(**changes):
    torch.manual_seed(0)
    model = BertForSequenceClassification(replace(CONFIG, **changes))
    for parameter in model.parameters():  # wide enough to bend the path
        torch.nn.init.normal_(parameter, std=0.15)
    return model.double().eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


# Scores


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("remove_padding", [False, True])
def test_scores_do_not_depend_on_the_batch(
    tokenizer, batch_size, remove_padding
):
    model = make_model(remove_padding=remove_padding)
    found = logits_of(model, tokenizer, TEXTS, batch_size, max_length=32)
    for text, row in zip(TEXTS, found):
        alone = logits_of(model, tokenizer, [text], max_length=32)
        assert torch.allclose(alone[0], row, atol=1e-5)


def test_scores_leave_the_mode(tokenizer, model):
    model.train()
    first, second = (
        logits_of(model, tokenizer, TEXTS, max_length=32) for _ in range(2)
    )
    assert model.training and torch.equal(first, second)
    model.eval()


def test_no_text_is_named(tokenizer, model):
    with pytest.raises(ValueError, match="at least one"):
        logits_of(model, tokenizer, [])


# Mistakes


@settings(deadline=None)
@given(SEEDS, st.integers(2, 5), st.integers(1, 40))
def test_confusion_is_scikit_learns(seed, classes, count):
    generator = torch.Generator().manual_seed(seed)
    labels, said = torch.randint(
        classes, (2, count), generator=generator
    ).unbind()
    found = confusion(labels, said, classes)
    wanted = confusion_matrix(
        labels.numpy(), said.numpy(), labels=range(classes)
    )
    assert found.tolist() == wanted.tolist()


@settings(deadline=None)
@given(SEEDS)
def test_mistakes_are_all_wrong_and_in_order(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 3, generator=generator)
    labels = torch.randint(3, (30,), generator=generator)
    found = confident_mistakes(logits, labels)
    wrong = (logits.argmax(1) != labels).nonzero()[:, 0].tolist()
    assert sorted(found.tolist()) == wrong
    sure = logits.softmax(1).amax(1)[found].tolist()
    assert sure == sorted(sure, reverse=True)


def test_no_mistakes():
    found = confident_mistakes(torch.eye(3), torch.arange(3))
    assert found.tolist() == []


# Calibration


@given(SEEDS, st.integers(1, 30), st.integers(1, 60))
@settings(deadline=None)
def test_calibration_error_bin_by_bin(seed, bins, count):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 3, generator=generator).double()
    labels = torch.randint(3, (count,), generator=generator)
    found = reliability(logits, labels, bins)
    confidence, said = logits.softmax(1).max(1)
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (confidence > low) & (confidence <= high)
        assert found.count[number] == inside.sum()
        if inside.any():
            share = (said == labels)[inside].double().mean()
            mean = confidence[inside].mean()
            assert math.isclose(found.accuracy[number], share)
            assert math.isclose(found.confidence[number], mean)
            total += inside.double().mean() * abs(share - mean)
        else:
            assert found.accuracy[number].isnan()
    assert math.isclose(found.error, total, abs_tol=1e-12)


def test_calibration_error_of_certainty():
    logits = torch.tensor([[60.0, 0.0]]).expand(4, 2)
    assert reliability(logits, torch.zeros(4).long()).error == 0
    assert reliability(logits, torch.ones(4).long()).error == 1


@given(SEEDS, st.floats(0.3, 4.0))
@settings(deadline=None, max_examples=25)
def test_temperature_is_the_optimizers(seed, sharpness):
    generator = torch.Generator().manual_seed(seed)
    honest = torch.randn(300, 4, generator=generator).double()
    labels = honest.softmax(1).multinomial(1, generator=generator)[:, 0]
    logits = sharpness * honest
    rate = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [rate], max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / rate.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = fit_temperature(logits, labels)
    assert math.isclose(found, rate.exp().item(), rel_tol=1e-3)
    assert math.isclose(
        fit_temperature(2 * logits, labels), 2 * found, rel_tol=1e-6
    )


def test_temperature_has_limits():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert math.isclose(fit_temperature(logits, right), 0.01, rel_tol=1e-6)
    assert math.isclose(fit_temperature(logits, wrong), 100, rel_tol=1e-6)


# Attributions


@settings(deadline=None)
@given(SEEDS, st.integers(2, 6))
def test_log_odds_are_those_of_the_softmax(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator).double()
    for label in range(classes):
        p = logits.softmax(-1)[:, label]
        assert torch.allclose(log_odds(logits, label), (p / (1 - p)).log())


class Toy(torch.nn.Module):
    """Scores that depend on embeddings in a known way."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Embedding(10, 2).double()


def test_a_product_is_shared_equally():
    toy = Toy()
    toy.layer.weight.data[0] = 0.0
    toy.layer.weight.data[1] = torch.tensor([2.0, 3.0])
    ids, blank = torch.tensor([[1, 0]]), torch.tensor([[0, 0]])
    found = integrated_gradients(
        lambda rows: toy.layer(rows)[:, 0].prod(-1),
        toy.layer,
        ids,
        blank,
        4,
    )
    wanted = torch.tensor([[3.0, 3.0], [0.0, 0.0]]).double()
    assert torch.allclose(found, wanted)


def test_a_linear_score_needs_one_step():
    toy = Toy()
    ids, blank = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 2, 0]])
    weights = torch.randn(3, 2).double()
    found = integrated_gradients(
        lambda rows: (toy.layer(rows) * weights).sum((1, 2)),
        toy.layer,
        ids,
        blank,
        steps=1,
    )
    with torch.no_grad():
        wanted = (toy.layer(ids) - toy.layer(blank))[0] * weights
    assert torch.allclose(found, wanted)
    assert not found[1].any()


def rows_of(tokenizer, text, filler="[PAD]"):
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    blank = ids.clone()
    blank[:, 1:-1] = tokenizer.convert_tokens_to_ids(filler)
    return ids, blank


@pytest.mark.parametrize("filler", ["[PAD]", "[MASK]"])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_equal_to_captum(tokenizer, model, filler, target):
    from captum.attr import LayerIntegratedGradients

    ids, blank = rows_of(tokenizer, TEXTS[1], filler)
    layer = model.bert.embeddings.tokens

    def score(rows):
        return log_odds(model(rows).logits, target)

    ours = integrated_gradients(score, layer, ids, blank, 24)
    theirs = LayerIntegratedGradients(score, layer).attribute(
        ids, baselines=blank, n_steps=24, method="riemann_middle"
    )
    assert torch.allclose(ours, theirs[0].detach(), atol=1e-5)


def test_equal_to_the_integral_by_adaptive_steps(tokenizer, model):
    from scipy.integrate import quad_vec

    ids, blank = rows_of(tokenizer, TEXTS[1])
    layer = model.bert.embeddings.tokens
    with torch.no_grad():
        start, end = layer(blank), layer(ids)

    def gradient(share):
        point = (start + share * (end - start)).requires_grad_()
        hook = layer.register_forward_hook(lambda *_: point)
        score = log_odds(model(ids).logits, 2).sum()
        hook.remove()
        (found,) = torch.autograd.grad(score, point)
        return found[0].numpy()

    integral, error = quad_vec(gradient, 0.0, 1.0, epsrel=1e-9)
    assert error < 1e-6
    wanted = (end - start)[0].numpy() * integral
    ours = integrated_gradients(
        lambda rows: log_odds(model(rows).logits, 2), layer, ids, blank, 256
    )
    assert np.allclose(ours.numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"layer_norm": "pre"}, {"classifier_pooling": "mean"}],
    ids=str,
)
@pytest.mark.parametrize("text", [TEXTS[1], TEXTS[3], "a"])
def test_attributions_sum_to_the_difference(tokenizer, changes, text):
    model = make_model(**changes)
    gaps = []
    for steps in (4, 256):
        found = explain(model, tokenizer, text, "good", steps=steps)
        gaps.append(abs(found.gap))
    size = 1 + abs(found.score - found.baseline)
    # GELU, softmax and norms are smooth on the path.
    assert gaps[1] < 1e-3 * size
    assert gaps[1] <= gaps[0] + 1e-9


def test_explaining_changes_nothing(tokenizer, model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = len(model.bert.embeddings.tokens._forward_hooks)
    model.train()
    first = explain(model, tokenizer, TEXTS[1], steps=4)
    assert model.training
    model.eval()
    assert first == explain(model, tokenizer, TEXTS[1], steps=4)
    assert len(model.bert.embeddings.tokens._forward_hooks) == hooks
    assert all(each.grad is None for each in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_hook_goes_where_the_score_fails(tokenizer, model):
    ids, blank = rows_of(tokenizer, "a film")
    layer = model.bert.embeddings.tokens

    def score(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        integrated_gradients(score, layer, ids, blank)
    assert not layer._forward_hooks


def test_what_is_explained(tokenizer, model):
    found = explain(model, tokenizer, TEXTS[3])
    logits = logits_of(model, tokenizer, [TEXTS[3]], max_length=32)[0]
    assert found.label == CONFIG.labels[logits.argmax()]
    odds = log_odds(logits, logits.argmax().item())
    assert math.isclose(found.score, odds, abs_tol=1e-4)
    assert found.words == TEXTS[3].split()
    with pytest.raises(ValueError, match="'great' is no label.*bad, fair"):
        explain(model, tokenizer, "a", "great")


def test_two_classes_are_each_others_opposite(tokenizer):
    model = make_model(num_labels=2, labels=("neg", "pos"))
    good, bad = (
        explain(model, tokenizer, TEXTS[1], label, steps=8)
        for label in ("pos", "neg")
    )
    assert np.allclose(good.attributions, -np.array(bad.attributions))


def test_a_rating_is_refused(tokenizer):
    model = make_model(num_labels=1, labels=None)
    with pytest.raises(ValueError, match="explain a classifier"):
        explain(model, tokenizer, "a film")


def test_a_long_text_is_cut(tokenizer, model):
    text = "word " * 100
    found = explain(model, tokenizer, text, steps=2, max_length=16)
    assert found.words == ["word"] * 14
    empty = explain(model, tokenizer, "", steps=2)
    assert empty.words == [] and abs(empty.gap) < 1e-9


# Words


@given(st.text(max_size=40))
@settings(deadline=None)
def test_merging_loses_nothing(text):
    found = TOKENIZER(
        text, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    values = [
        0.0 if special else 1.0 + number
        for number, special in enumerate(found["special_tokens_mask"])
    ]
    words, sums = merge_pieces(text, found["offset_mapping"], values)
    assert math.isclose(sum(sums), sum(values))
    places = [text.find(word) for word in words]
    assert all(place >= 0 for place in places)
    assert not any(set(word) & set(" \t\n\r") for word in words)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=8), st.floats(-5, 5)), max_size=6)
)
def test_a_picture_shows_every_word_and_no_markup(pairs):
    words = [word for word, _ in pairs]
    shares = [share for _, share in pairs]
    page = highlight(Explanation(words, shares, "<i>", 1.0, 0.0))
    assert "<i>" not in page and "&lt;i&gt;" in page
    assert page.count("<span") == len(words) == page.count("</span>")


def test_a_picture_does_not_speak_by_colour_alone():
    found = Explanation(["up", "down", "so"], [2.0, -2.0, 0.0], "x", 1, 0)
    up, down, rest = highlight(found).split("<span")[1:]
    assert "solid currentColor" in up and "+2.0" in up
    assert "dashed currentColor" in down and "-2.0" in down
    assert "transparent" in rest and "<sub>" not in rest


def test_nothing_to_show():
    assert "baseline" in highlight(Explanation([], [], "x", 0, 0))
    highlight(Explanation(["a"], [0.0], "x", 0, 0))


# Removal


class Counter(torch.nn.Module):
    """Says class 1 while the piece `good` is in the text."""

    def __init__(self, tokenizer):
        super().__init__()
        self.config, self.unused = CONFIG, torch.nn.Linear(1, 1)
        self.good = tokenizer.convert_tokens_to_ids("good")

    def forward(self, input_ids, **_):
        has = (input_ids == self.good).any(1).float()
        return Explained(torch.stack([torch.full_like(has, 0.5), has], 1))


class Explained:
    def __init__(self, logits):
        self.logits = logits


def test_removal_finds_the_word(tokenizer):
    model = Counter(tokenizer)
    texts = [["a", "good", "film"], ["good"], ["not", "so", "bad"]]
    first = [[1, 0, 2], [0], [0, 1, 2]]
    last = [[0, 2, 1], [0], [2, 1, 0]]
    fast = removal_curve(model, tokenizer, texts, first, most=3)
    slow = removal_curve(model, tokenizer, texts, last, most=3)
    assert np.allclose(fast, [1, 2 / 3, 2 / 3, 2 / 3])  # one word stays
    assert slow == [1, 1, 1, 1]
