"""Every number of every model equals that of transformers.

Both get the same random weights and the same batch. Compared are the loss,
the outputs, every hidden state, every attention weight and the gradient of
every parameter, over sizes, heads, attention paths, paddings, segment ids,
training without dropout, and number formats.
"""

import itertools

import pytest
import torch
import transformers

import bertbook.heads
import bertbook.model
from bertbook.config import BertConfig
from bertbook.published_names import from_published

SIZES = {  # layers, heads, hidden, intermediate, activation
    "1x16": (1, 1, 16, 32, "gelu"),
    "2x32": (2, 4, 32, 48, "gelu_new"),
    "3x48": (3, 2, 48, 96, "gelu"),
    "4x96": (4, 12, 96, 200, "relu"),
}
HEADS = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
OUR_HEADS = ("mlm", "nsp", "span", "classifier.weight", "classifier.bias")
PADDINGS = ("none", "right", "left")
BATCH, SEQ, VOCAB = 3, 9, 61
# Relative to the largest number of the compared tensor.
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}


def configs(name, size, **options):
    layers, heads, hidden, inner, act = SIZES[size]
    ours = BertConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act=act,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=16,
        num_labels=2 if name == "BertForQuestionAnswering" else 3,
        **options,
    )
    theirs = transformers.BertConfig.from_dict(
        ours.to_dict(), attn_implementation=ours.attn_implementation
    )
    return ours, theirs


def pair(name, size, dtype=torch.float32, **options):
    """Theirs with random weights everywhere, biases and norms included,
    and ours with the same."""
    config, reference = configs(name, size, **options)
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(reference)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    home = bertbook.heads if name != "BertModel" else bertbook.model
    ours = getattr(home, name)(config)
    ours.load_state_dict(translate(theirs.state_dict()))
    return ours.to(dtype), theirs.to(dtype)


def translate(tensors):
    """Published tensors under our names (query, key and value as one)."""
    prefix = "bert." if any(n.startswith("bert.") for n in tensors) else ""
    return {
        ours
        if ours.split("_head")[0] in OUR_HEADS
        else prefix + ours: value
        for ours, value in from_published(tensors).items()
    }


def make_batch(padding, types):
    draw = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(1, VOCAB, (BATCH, SEQ), generator=draw)
    }
    lengths = torch.tensor([SEQ, 4, 6])
    at = torch.arange(SEQ).expand(BATCH, SEQ)
    if padding == "right":
        batch["attention_mask"] = (at < lengths[:, None]).long()
    if padding == "left":
        batch["attention_mask"] = (at >= SEQ - lengths[:, None]).long()
    if padding != "none":
        batch["input_ids"] *= batch["attention_mask"]
    if types:
        batch["token_type_ids"] = torch.randint(
            0, 2, (BATCH, SEQ), generator=draw
        )
    return batch


def make_labels(name, mask):
    """Labels for a batch; none where `mask` is 0."""
    draw = torch.Generator().manual_seed(2)
    per_row = torch.tensor([1, 0, 1])
    words = torch.randint(0, VOCAB, (BATCH, SEQ), generator=draw)
    words[torch.rand(BATCH, SEQ, generator=draw) < 0.6] = -100
    tags = torch.randint(0, 3, (BATCH, SEQ), generator=draw)
    tags[:, ::3] = -100
    words, tags = words.where(mask, -100), tags.where(mask, -100)
    return {
        "BertModel": {},
        "BertForPreTraining": {
            "labels": words,
            "next_sentence_label": per_row,
        },
        "BertForMaskedLM": {"labels": words},
        "BertForNextSentencePrediction": {"labels": per_row},
        "BertForSequenceClassification": {"labels": per_row + 1},
        "BertForTokenClassification": {"labels": tags},
        "BertForQuestionAnswering": {
            "start_positions": per_row,
            "end_positions": per_row + 2,
        },
    }[name]


def relative_error(value, truth, floor=0.0):
    scale = max(truth.abs().max().item(), floor)
    return (value.double() - truth.double()).abs().max().item() / scale


def assert_close(ours, theirs, what, floor=0.0):
    assert ours.shape == theirs.shape, what
    error = relative_error(ours, theirs, floor)
    assert error <= LIMIT[theirs.dtype], f"{what}: {error:.1e}"
    return error


def compare(ours, theirs, batch, labels, path):
    """All numbers of one call; returns the largest error of each kind."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    real = mask.bool()
    wanted = {
        "output_hidden_states": True,
        "output_attentions": path == "eager",
    }
    one = ours(**batch, **labels, **wanted)._asdict()
    two = theirs(**batch, **labels, **wanted)
    errors = {}
    for name, value in one.items():
        if value is None:
            assert name == "attentions" and path != "eager"
            continue
        other = two[name]
        if not isinstance(value, tuple):
            value, other = (value,), (other,)
        assert len(value) == len(other)
        for mine, reference in zip(value, other):
            if mine.shape != reference.shape:  # only the masked words
                reference = reference[labels["labels"] != -100]
            elif path.startswith("packed") and mine.shape[:2] == real.shape:
                mine, reference = mine[real], reference[real]
            error = assert_close(mine, reference, name)
            errors[name] = max(errors.get(name, 0.0), error)
    return errors, one, two


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def compare_gradients(ours, theirs, one, two):
    mine = gradients(ours, one)
    reference = translate(gradients(theirs, two))
    assert mine.keys() == reference.keys()
    return max(
        assert_close(
            mine[name], reference[name], f"d {name}", scale(reference, name)
        )
        for name in mine
    )


def scale(gradients, name):
    """The largest gradient in the module of a parameter: that of a bias is
    0 by an identity where a shift of all scores changes no softmax."""
    module = name.rpartition(".")[0] + "."
    return max(
        gradient.abs().max().item()
        for other, gradient in gradients.items()
        if other.startswith(module)
    )


def loss_of(outputs):
    """The loss, or for the bare model a number that all outputs enter."""
    if "loss" in outputs:
        return outputs["loss"]
    return (
        outputs["pooler_output"].square().sum()
        + outputs["last_hidden_state"][:, 0].square().sum()
    )


def skipped(name, path, padding):
    """Without padding, zeros stand where padding was: in front of a row
    the pooler reads them, behind it the softmax over a span does."""
    if not path.startswith("packed"):
        return False
    if name == "BertForQuestionAnswering":
        return padding != "none"
    by_word = ("BertForMaskedLM", "BertForTokenClassification")
    return padding == "left" and name not in by_word


OPTIONS = {
    "sdpa": {"attn_implementation": "sdpa"},
    "eager": {"attn_implementation": "eager"},
    "packed": {"attn_implementation": "sdpa", "remove_padding": True},
    "packed-eager": {
        "attn_implementation": "eager",
        "remove_padding": True,
    },
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("path", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", HEADS)
def test_all_numbers_are_equal(name, size, path, dtype, record_property):
    ours, theirs = pair(name, size, dtype, **OPTIONS[path])
    worst = {}
    cases = itertools.product(PADDINGS, (False, True), (False, True))
    for padding, types, train in cases:
        if skipped(name, path, padding):
            continue
        ours.train(train), theirs.train(train)
        batch = make_batch(padding, types)
        everywhere = torch.ones(BATCH, SEQ)
        labelled = (
            batch.get("attention_mask", everywhere)
            if path.startswith("packed")
            else everywhere
        )
        labels = make_labels(name, labelled.bool())
        errors, one, two = compare(ours, theirs, batch, labels, path)
        errors["gradients"] = compare_gradients(
            ours, theirs, loss_of(one), loss_of(two)
        )
        errors["batches"] = worst.get("batches", 0) + 1
        for kind, error in errors.items():
            worst[kind] = max(worst.get(kind, 0.0), error)
    for kind, error in worst.items():
        record_property(kind, error)


@pytest.mark.parametrize("train", (False, True), ids=("eval", "train"))
@pytest.mark.parametrize("path", OPTIONS)
@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_is_as_exact_as_theirs(name, path, train):
    """Rounding differs, so both are compared with float64: the same
    weights, rounded to bfloat16, and the same batch."""
    ours, theirs = pair(name, "3x48", torch.bfloat16, **OPTIONS[path])
    exact = pair(name, "3x48", torch.float64, **OPTIONS[path])[0]
    exact.load_state_dict(ours.state_dict())
    padding = "none" if skipped(name, path, "right") else "right"
    batch = make_batch(padding, True)
    mask = batch.get("attention_mask", torch.ones(BATCH, SEQ)).bool()
    labels = make_labels(name, mask)
    found, slopes = [], []
    for model in (ours, theirs, exact):
        outputs = model.train(train)(**batch, **labels)
        fields = outputs if model is theirs else outputs._asdict()
        found.append(fields)
        grads = gradients(model, loss_of(fields))
        slopes.append(translate(grads) if model is theirs else grads)
    rounding = torch.finfo(torch.bfloat16).eps
    for field, truth in found[2].items():
        if not isinstance(truth, torch.Tensor):
            continue
        reference = found[1][field]
        if reference.shape != truth.shape:
            reference = reference[labels["labels"] != -100]
        mine = found[0][field]
        assert torch.isfinite(mine).all()
        if truth.shape[:2] == mask.shape:
            mine, reference, truth = (
                mine[mask],
                reference[mask],
                truth[mask],
            )
        limit = 2 * relative_error(reference, truth) + rounding
        assert relative_error(mine, truth) <= limit, field
    for parameter, truth in slopes[2].items():
        mine, reference = slopes[0][parameter], slopes[1][parameter]
        floor = scale(slopes[2], parameter)
        limit = 2 * relative_error(reference, truth, floor) + 4 * rounding
        assert relative_error(mine, truth, floor) <= limit, parameter
