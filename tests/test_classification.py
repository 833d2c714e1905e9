"""Batches, losses, scores and intervals beside torch, scikit-learn, scipy."""

import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.utils.rnn import pad_sequence

from bertbook.classification import (
    Classification,
    balanced_weights,
    class_logits,
    classification_scores,
    collate,
    mean_interval,
    wilson_interval,
)
from bertbook.config import BertConfig
from bertbook.heads import BertForSequenceClassification
from bertbook.labelled_data import Labelled
from bertbook.tokenizer import BertTokenizer

SEEDS = st.integers(0, 10**6)
WORDS = "a bad dull film fine fun good is no not so the very was".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("bad", "fair", "good")
TOKENIZER = BertTokenizer({w: n for n, w in enumerate(SPECIAL + WORDS)})
CONFIG = BertConfig(
    vocab_size=len(SPECIAL + WORDS),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    initializer_range=0.3,  # large, so that a mistake is large
)


def make_model(task, **changes):
    torch.manual_seed(0)
    return task.head(replace(CONFIG, **task.config, **changes)).eval()


def make_data(count, seed=0, pairs=False, labels=LABELS):
    """Random texts of one to twelve words, each with some label."""
    draw = np.random.default_rng(seed)

    def text():
        return " ".join(draw.choice(WORDS, draw.integers(1, 13)))

    columns = {"text": [text() for _ in range(count)]}
    if pairs:
        columns["text_pair"] = [text() for _ in range(count)]
    columns["label"] = draw.integers(len(labels), size=count).tolist()
    return Labelled(datasets.Dataset.from_dict(columns), labels)


# A batch


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 99), min_size=1), min_size=1),
    pad=st.integers(0, 99),
    by_piece=st.booleans(),
)
def test_a_batch_is_padded_as_torch_pads(rows, pad, by_piece):
    features = [
        {
            "input_ids": ids,
            "token_type_ids": [n % 2 for n in ids],
            "attention_mask": [1] * len(ids),
            "labels": ids if by_piece else ids[0],
            "rate": ids[0] / 2,
        }
        for ids in rows
    ]
    batch = collate(features, pad)
    assert list(batch) == list(features[0])
    fill = {"input_ids": pad, "labels": -100}
    for name in batch:
        values = [torch.tensor(row[name]) for row in features]
        if values[0].ndim:
            wanted = pad_sequence(
                values, batch_first=True, padding_value=fill.get(name, 0)
            )
        else:
            wanted = torch.stack(values)
        assert torch.equal(batch[name], wanted)
        assert batch[name].dtype == wanted.dtype
    assert all(
        len(row["input_ids"]) == len(r) for row, r in zip(features, rows)
    ), "the features stay as they are"


# The loss


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_balanced_weights_are_scikit_learns(labels):
    missing = set(range(4)) - set(labels)
    if missing:
        with pytest.raises(ValueError) as error:
            balanced_weights(labels, 4)
        assert f"class {min(missing)} of 4 has no text" in str(error.value)
        labels = [*labels, *missing]
    found = balanced_weights(labels, 4)
    wanted = compute_class_weight(
        "balanced", classes=np.arange(4), y=labels
    )
    assert np.allclose(found, wanted)


@pytest.mark.parametrize(
    "weights", [None, (1.0, 1.0, 1.0), (0.5, 3.0, 0.1)]
)
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_the_loss_is_the_weighted_mean(weights, pooling):
    task = Classification(LABELS, weights, pooling)
    model = make_model(task)
    features = task.features(make_data(9), TOKENIZER, 40)
    batch = collate(features, TOKENIZER.pad_token_id)
    loss = task.loss(model, batch)
    loss.backward()
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits
    labels = batch["labels"].numpy()
    wanted = log_loss(
        labels,
        logits.detach().double().softmax(-1).numpy(),
        labels=range(3),
        sample_weight=weights and np.array(weights)[labels],
    )
    assert math.isclose(loss.item(), wanted, rel_tol=1e-5)
    (theirs,) = torch.autograd.grad(
        F.cross_entropy(
            logits, batch["labels"], weights and torch.tensor(weights)
        ),
        model.classifier.weight,
    )
    assert torch.allclose(model.classifier.weight.grad, theirs, atol=1e-6)
    if weights is None or len(set(weights)) == 1:
        own = model(**batch).loss
        assert torch.allclose(loss, own)


def test_the_loss_of_a_batch_in_bfloat16_is_float32():
    task = Classification(LABELS)
    model = make_model(task)
    features = task.features(make_data(9), TOKENIZER, 40)
    batch = collate(features, 0)
    exact = task.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = task.loss(model, batch)
    assert rough.dtype == torch.float32 and rough != exact
    assert abs(rough - exact) < 0.1 * (1 + exact)


# The task


def test_the_configuration_is_the_task_s():
    model = make_model(Classification(LABELS, pooling="pooler"))
    assert isinstance(model, BertForSequenceClassification)
    assert model.config.labels == LABELS and model.config.num_labels == 3
    assert model.config.classifier_pooling == "pooler"
    model = make_model(Classification(("no", "yes")))
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.classifier_pooling == "mean"


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("max_length", [5, 9, 40])
@pytest.mark.parametrize("training", [False, True])
def test_features_are_the_pieces_and_the_label(pairs, max_length, training):
    data = make_data(12, pairs=pairs)
    task = Classification(LABELS)
    found = task.features(data, TOKENIZER, max_length, training=training)
    assert len(found) == len(data.rows)
    for row, feature in zip(data.rows, found):
        texts = (row["text"], row["text_pair"]) if pairs else (row["text"],)
        wanted = TOKENIZER(*texts, truncation=True, max_length=max_length)
        assert feature == {**wanted, "labels": row["label"]}
        assert len(feature["input_ids"]) <= max_length
    assert pairs == any(1 in each["token_type_ids"] for each in found)


@pytest.mark.parametrize(
    "labels", [LABELS[::-1], LABELS[:2], (*LABELS, "best")]
)
def test_data_with_other_labels_is_refused(labels):
    data = make_data(3, labels=labels)
    with pytest.raises(ValueError) as error:
        Classification(LABELS).features(data, TOKENIZER, 9)
    message = str(error.value)
    assert ", ".join(labels) in message and "bad, fair, good" in message
    assert message.endswith("labels=task.labels")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize(
    "changes",
    [{}, {"remove_padding": True}, {"attn_implementation": "eager"}],
    ids=str,
)
def test_scores_are_those_of_each_text_alone(pairs, batch_size, changes):
    task = Classification(LABELS)
    model = make_model(task, **changes)
    features = task.features(make_data(23, pairs=pairs), TOKENIZER, 40)
    found = class_logits(model, features, batch_size)
    assert found.shape == (23, 3) and found.dtype == torch.float32
    assert not found.requires_grad
    for row, feature in zip(found, features):
        inputs = {
            name: torch.tensor([values])
            for name, values in feature.items()
            if name != "labels"
        }
        with torch.no_grad():
            alone = model(**inputs).logits[0]
        assert torch.allclose(row, alone, atol=1e-5)


def test_scores_leave_the_mode_and_the_random_state():
    task = Classification(LABELS)
    model = make_model(task).train()
    features = task.features(make_data(9), TOKENIZER, 40)
    state = torch.get_rng_state()
    first = class_logits(model, features)
    assert torch.equal(first, class_logits(model, features))
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


# Scores


@settings(deadline=None)
@given(seed=SEEDS, classes=st.integers(2, 6), count=st.integers(1, 40))
def test_scores_are_scikit_learns(seed, classes, count):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    found = classification_scores(logits, labels)
    said, truth = logits.argmax(-1).numpy(), labels.numpy()
    wanted = {
        "accuracy": accuracy_score(truth, said),
        "macro_f1": f1_score(truth, said, average="macro"),
        "loss": log_loss(
            truth,
            logits.double().softmax(-1).numpy(),
            labels=range(classes),
        ),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert type(found[name]) is float
        close = math.isclose(found[name], value, rel_tol=1e-5, abs_tol=1e-6)
        assert close, name


def test_the_verdict_is_on_all_texts():
    task = Classification(LABELS, weights=(1.0, 5.0, 1.0))
    model, data = make_model(task).train(), make_data(70)
    features = task.features(data, TOKENIZER, 40)
    found = task.evaluate(model, features, data)
    truth = data.rows["label"][:]
    said = class_logits(model, features).argmax(-1).tolist()
    assert math.isclose(found["accuracy"], accuracy_score(truth, said))
    assert found[task.metric] == found["accuracy"]
    assert model.training


# Intervals


@settings(deadline=None)
@given(count=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilsons_interval_is_scipys(count, share):
    right = round(share * count)
    exact = stats.norm.ppf(0.975)
    low, high = wilson_interval(right, count, exact)
    known = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert math.isclose(low, known.low, abs_tol=1e-9)
    assert math.isclose(high, known.high, abs_tol=1e-9)
    usual = wilson_interval(right, count)
    assert np.allclose(usual, (low, high), atol=1e-4)
    assert usual[0] - 1e-12 <= right / count <= usual[1] + 1e-12


@settings(deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=12))
def test_the_interval_of_a_mean_is_scipys(values):
    mean, half = mean_interval(values)
    assert math.isclose(mean, np.mean(values), abs_tol=1e-9)
    spread = stats.sem(values)
    wanted = stats.t.ppf(0.975, len(values) - 1) * spread
    assert math.isclose(half, wanted, rel_tol=1e-6, abs_tol=1e-9)


def test_one_run_says_nothing_of_the_spread():
    assert mean_interval([0.8]) == (0.8, math.inf)
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.0)
