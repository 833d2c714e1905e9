"""What the model and its heads refuse, and what must change nothing."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import bertbook.heads
from bertbook.config import BertConfig, parameter_counts
from bertbook.heads import BertForPreTraining
from bertbook.losses import cross_entropy, sequence_loss
from bertbook.model import (
    BertModel,
    MeanPooler,
    check_inputs,
    operation_counts,
)

TINY = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=16,
    num_labels=3,
    initializer_range=0.3,  # large, so that a mistake is large
)
PATHS = {
    "sdpa": {},
    "eager": {"attn_implementation": "eager"},
    "packed": {"remove_padding": True},
}
HEADS = (
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
LENGTHS = [9, 4, 1, 7]


def build(name="BertModel", noise=0.1, **options):
    torch.manual_seed(0)
    home = bertbook.heads if name != "BertModel" else bertbook.model
    model = getattr(home, name)(replace(TINY, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter.add_(torch.randn_like(parameter) * noise)
    return model


def rows(lengths=LENGTHS, seq=None, seed=0):
    """Ids, mask and segment ids of rows of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    seq = seq or max(lengths)
    shape = len(lengths), seq
    ids = torch.randint(1, 50, shape, generator=generator)
    types = torch.randint(0, 2, shape, generator=generator)
    mask = torch.arange(seq) < torch.tensor(lengths)[:, None]
    return ids, mask.long(), types


def answers(name, ids):
    """Labels that fit the head `name` on `ids`."""
    size, seq = ids.shape
    words = torch.where(ids % 3 == 0, ids, -100)
    words[0, 0] = ids[0, 0]
    return {
        "BertForPreTraining": {
            "labels": words,
            "next_sentence_label": torch.arange(size) % 2,
        },
        "BertForMaskedLM": {"labels": words},
        "BertForNextSentencePrediction": {"labels": torch.arange(size) % 2},
        "BertForSequenceClassification": {"labels": torch.arange(size) % 3},
        "BertForTokenClassification": {"labels": ids % 3},
        "BertForQuestionAnswering": {
            "start_positions": torch.zeros(size, dtype=torch.long),
            "end_positions": torch.full((size,), seq - 1),
        },
    }[name]


def no_answers(name, ids):
    given = answers(name, ids)
    return {
        key: torch.full_like(labels, -100) for key, labels in given.items()
    }


IDS, MASK, TYPES = rows()
WRONG_ID, WRONG_MASK, WRONG_TYPE = IDS.clone(), MASK.clone(), TYPES.clone()
WRONG_ID[2, 5], WRONG_MASK[1, 3], WRONG_TYPE[3, 8] = 50, 2, -1
FAR = torch.arange(9)[None] + 8
REFUSED_INPUTS = [
    ((IDS.float(),), TypeError, "input_ids holds torch.float32, and integers are expected; convert it by input_ids.long()"),
    ((IDS.bool(),), TypeError, "input_ids holds torch.bool, and integers are expected; convert it by input_ids.long()"),
    ((IDS[0],), ValueError, "input_ids has shape (9,), and (batch, seq) is expected; for a single row pass input_ids[None]"),
    ((IDS[None],), ValueError, "input_ids has shape (1, 4, 9), and (batch, seq) is expected; for a single row pass input_ids[None]"),
    ((IDS[:0],), ValueError, "input_ids has shape (0, 9), which holds nothing to read; pass at least one row of at least one id"),
    ((IDS[:, :0],), ValueError, "input_ids has shape (4, 0), which holds nothing to read; pass at least one row of at least one id"),
    ((torch.ones(1, 17).long(),), ValueError, "the rows are 17 ids long, and this model has 16 positions; cut them by truncation=True, max_length=16 in the tokenizer"),
    ((WRONG_ID,), ValueError, "input_ids[2, 5] is 50, and the ids of this vocabulary run from 0 to 49; encode the text with the model's own tokenizer"),
    ((IDS - 60,), ValueError, f"input_ids[0, 0] is {IDS[0, 0] - 60}, and the ids of this vocabulary run from 0 to 49; encode the text with the model's own tokenizer"),
    ((IDS, MASK.float()), TypeError, "attention_mask holds torch.float32, and 0 and 1 are expected; convert it by attention_mask.long()"),
    ((IDS, MASK[:, :8]), ValueError, "attention_mask has shape (4, 8), and (4, 9) or (4, 9, 9) goes with these input_ids; take both from one call of the tokenizer"),
    ((IDS, MASK[0]), ValueError, "attention_mask has shape (9,), and (4, 9) or (4, 9, 9) goes with these input_ids; take both from one call of the tokenizer"),
    ((IDS, MASK[:, None]), ValueError, "attention_mask has shape (4, 1, 9), and (4, 9) or (4, 9, 9) goes with these input_ids; take both from one call of the tokenizer"),
    ((IDS, WRONG_MASK), ValueError, "attention_mask[1, 3] is 2, and its values run from 0 to 1; mark what may be read by 1 and padding by 0"),
    ((IDS, -MASK), ValueError, "attention_mask[0, 0] is -1, and its values run from 0 to 1; mark what may be read by 1 and padding by 0"),
    ((IDS, MASK, WRONG_TYPE), ValueError, "token_type_ids[3, 8] is -1, and the segments of this model run from 0 to 1; number the segments from 0, or leave token_type_ids out"),
    ((IDS, MASK, TYPES[:2]), ValueError, "token_type_ids has shape (2, 9), and (4, 9) or (1, 9) goes with these input_ids; take both from one call of the tokenizer"),
    ((IDS, MASK, TYPES.bool()), TypeError, "token_type_ids holds torch.bool, and integers are expected; convert it by token_type_ids.long()"),
    ((IDS, MASK, TYPES, FAR), ValueError, "position_ids[0, 8] is 16, and the positions of this model run from 0 to 15; shorten the text, or leave position_ids out"),
    ((IDS, MASK, TYPES, FAR[0]), ValueError, "position_ids has shape (9,), and (4, 9) or (1, 9) goes with these input_ids; take both from one call of the tokenizer"),
    ((IDS, MASK, TYPES, FAR.float()), TypeError, "position_ids holds torch.float32, and integers are expected; convert it by position_ids.long()"),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "arguments, error, sentence", REFUSED_INPUTS, ids=lambda value: ""
)
def test_wrong_inputs_get_their_sentence(path, arguments, error, sentence):
    with pytest.raises(error) as caught:
        build(**PATHS[path])(*arguments)
    assert str(caught.value) == sentence


def test_what_is_no_tensor_gets_a_sentence():
    """Without the shape checks of the tests, which would speak first."""
    code = (
        "from bertbook import BertConfig, BertModel, BertForMaskedLM\n"
        "import torch\n"
        "c = BertConfig(hidden_size=8, num_attention_heads=2,\n"
        "    num_hidden_layers=1, intermediate_size=8, vocab_size=9)\n"
        "ids = torch.ones(1, 3, dtype=torch.long)\n"
        "for call in (lambda: BertModel(c)({'input_ids': ids}),\n"
        "             lambda: BertModel(c)(ids, [[1, 1, 1]]),\n"
        "             lambda: BertForMaskedLM(c)(ids, labels=[[1, 1, 1]])):\n"
        "    try:\n"
        "        call()\n"
        "    except TypeError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "input_ids is a dict, not a tensor; pass the tokenizer's tensors by name, as in model(**batch)",
        "attention_mask is a list, not a tensor; pass the tokenizer's tensors by name, as in model(**batch)",
        "labels is a list, not a tensor; convert it by torch.tensor(labels)",
    ], done.stderr


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_first_wrong_value_is_named(data):
    """Anything outside is refused, everything inside is accepted."""
    name = data.draw(st.sampled_from(["input_ids", "token_type_ids"]))
    stop = 50 if name == "input_ids" else 2
    given = {"input_ids": IDS.clone(), "token_type_ids": TYPES.clone()}
    row, at = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 8))
    value = data.draw(st.integers(-(2**40), 2**40) | st.integers(-2, 52))
    given[name][row, at] = value
    if 0 <= value < stop:
        check_inputs(TINY, **given)
        return
    with pytest.raises(ValueError) as caught:
        check_inputs(TINY, **given)
    assert f"{name}[{row}, {at}] is {value}, " in str(caught.value)


@pytest.mark.parametrize("path", PATHS)
def test_every_type_of_mask_and_ids_means_the_same(path):
    model = build(**PATHS[path])
    expected = model(IDS, MASK, TYPES).last_hidden_state
    for kind in (torch.bool, torch.uint8, torch.int32, torch.int8):
        found = model(IDS, MASK.to(kind), TYPES).last_hidden_state
        assert torch.equal(found, expected)
    found = model(IDS.int(), MASK, TYPES.int(), torch.arange(9)[None].int())
    assert torch.equal(found.last_hidden_state, expected)
    one_row = model(IDS, MASK, TYPES[:1]).last_hidden_state
    repeated = model(IDS, MASK, TYPES[:1].repeat(4, 1)).last_hidden_state
    assert torch.equal(one_row, repeated)


LABELS = {name: answers(name, IDS).get("labels") for name in HEADS}
FIRST = IDS[0, 0].item()
REFUSED_LABELS = [
    ("BertForMaskedLM", {"labels": IDS.float()}, TypeError, "labels holds torch.float32, and integers are expected; convert it by labels.long()"),
    ("BertForMaskedLM", {"labels": IDS[:2]}, ValueError, "labels has shape (2, 9), and (4, 9) is expected; pass one label for each thing that is classified"),
    ("BertForMaskedLM", {"labels": IDS + 50}, ValueError, f"labels[0, 0] is {FIRST + 50}, and 0 to 49 are expected; use -100 for what has no label"),
    ("BertForMaskedLM", {"labels": -IDS}, ValueError, f"labels[0, 0] is {-FIRST}, and 0 to 49 are expected; use -100 for what has no label"),
    ("BertForPreTraining", {"next_sentence_label": torch.tensor([0, 1, 2, 0])}, ValueError, "next_sentence_label[2] is 2, and 0 to 1 are expected; use -100 for what has no label"),
    ("BertForPreTraining", {"next_sentence_label": torch.tensor([0, 1])}, ValueError, "next_sentence_label has shape (2,), and (4,) or (4, 1) is expected; pass one label for each thing that is classified"),
    ("BertForNextSentencePrediction", {"labels": torch.tensor([0, 1, -1, 0])}, ValueError, "labels[2] is -1, and 0 to 1 are expected; use -100 for what has no label"),
    ("BertForTokenClassification", {"labels": torch.full((4, 9), 3)}, ValueError, "labels[0, 0] is 3, and 0 to 2 are expected; use -100 for what has no label"),
    ("BertForSequenceClassification", {"labels": torch.tensor([0, 1, 2, 3])}, ValueError, "labels[3] is 3, and 0 to 2 are expected; use -100 for what has no label"),
    ("BertForSequenceClassification", {"labels": torch.ones(4, 3).long()}, ValueError, "labels has shape (4, 3), and (4,) or (4, 1) is expected; pass one label for each thing that is classified"),
    ("BertForSequenceClassification", {"labels": torch.ones(4)}, ValueError, "labels has shape (4,), and (4, 3) is expected; pass one label for each thing that is classified"),
    ("BertForSequenceClassification", {"labels": torch.full((4, 3), 1.5)}, ValueError, "labels[0, 0] is 1.5, and probabilities from 0 to 1 are expected; give 1 for each class"),
    ("BertForQuestionAnswering", {"start_positions": torch.tensor([0, 1, 2, 9]), "end_positions": torch.tensor([0, 1, 2, 8])}, ValueError, "start_positions[3] is 9, and 0 to 8 are expected; use -100 for what has no label"),
    ("BertForQuestionAnswering", {"start_positions": torch.tensor([0, 1, 2, 3])}, ValueError, "start_positions and end_positions were not both given; pass both for a loss, or neither"),
    ("BertForQuestionAnswering", {"start_positions": torch.tensor([0, 1, 2, 3]), "end_positions": torch.ones(4)}, TypeError, "end_positions holds torch.float32, and integers are expected; convert it by end_positions.long()"),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, labels, error, sentence", REFUSED_LABELS, ids=lambda value: ""
)
def test_wrong_labels_get_their_sentence(name, labels, error, sentence):
    with pytest.raises(error) as caught:
        build(name)(IDS, MASK, **labels)
    assert str(caught.value) == sentence


def test_a_rating_that_is_no_number_is_refused():
    model = build("BertForSequenceClassification", num_labels=1)
    ratings = torch.tensor([1.0, 2.0, torch.inf, 3.0])
    with pytest.raises(
        ValueError, match=r"labels\[2\] is inf, and a finite"
    ):
        model(IDS, labels=ratings)


def close(found, expected, limit=1e-6):
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max().item() <= limit * scale


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_padding_and_order_change_nothing(dtype, path, layer_norm, data):
    """A row alone, in any company, in any order, with any padding."""
    lengths = data.draw(
        st.lists(st.integers(1, 10), min_size=1, max_size=5)
    )
    order = data.draw(st.permutations(range(len(lengths))))
    longer = data.draw(st.integers(max(lengths), 16))
    ids, mask, types = rows(lengths, longer, seed=len(lengths))
    pooling = data.draw(st.sampled_from(["pooler", "mean"]))
    options = PATHS[path] | {"layer_norm": layer_norm}
    options |= {"classifier_pooling": pooling}
    limit = 1e-13  # with weights so large that a leak is one too
    if dtype == torch.float32:  # with weights of about the usual size
        options |= {"noise": 0.02, "initializer_range": 0.05}
        limit = 1e-6
    model = build(**options).to(dtype)
    with torch.no_grad():
        together = model(ids, mask, types)
        turned = model(ids[order], mask[order], types[order])
        for one, two in zip(turned[:2], together[:2]):
            close(one, two[order], limit)
        for row, length in enumerate(lengths):
            here = slice(row, row + 1), slice(0, length)
            alone = model(ids[here], None, types[here])
            close(together[0][here], alone.last_hidden_state, limit)
            close(together[1][row], alone.pooler_output[0], limit)


@pytest.mark.parametrize(
    "kind", [torch.int64, torch.int32, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_sentence_transformers(kind, dtype):
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    hidden = torch.randn(5, 9, 8).to(dtype)
    mask = torch.rand(5, 9) < 0.6
    mask[3], mask[4] = True, False  # nothing is padding, and everything
    theirs = Pooling(8, pooling_mode="mean")(
        {"token_embeddings": hidden, "attention_mask": mask.long()}
    )["sentence_embedding"]
    ours = MeanPooler()(hidden, mask.to(kind))
    assert ours.dtype == dtype
    close(
        ours.float(), theirs.float(), 1e-6 if dtype.itemsize > 2 else 0.02
    )
    assert not ours[4].any()
    close(MeanPooler()(hidden), hidden.float().mean(1).to(dtype), 0.02)


@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_the_mean_of_a_model_reads_both_kinds_of_mask(path):
    model = build(classifier_pooling="mean", **PATHS[path])
    assert not list(model.pooler.parameters())
    out = model(IDS, MASK)
    for row, length in enumerate(LENGTHS):
        mean = out.last_hidden_state[row, :length].mean(0)
        close(out.pooler_output[row], mean)
    spread = MASK[:, None].expand(-1, 9, -1)
    close(model(IDS, spread).pooler_output, out.pooler_output)


@pytest.mark.parametrize("path", PATHS)
def test_what_stands_in_padding_changes_nothing(path):
    model = build(**PATHS[path])
    other = torch.where(MASK == 1, IDS, (IDS + 17) % 50)
    before = model(IDS, MASK, TYPES).last_hidden_state[MASK == 1]
    after = model(other, MASK, TYPES).last_hidden_state[MASK == 1]
    assert torch.equal(before, after)


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("layer_norm", ["post", "pre"])
def test_packing_equals_padding(side, layer_norm):
    """Hidden states of every layer, and the gradient of every parameter."""
    ids, mask, types = rows()
    if side == "left":
        ids, mask, types = ids.flip(1), mask.flip(1), types.flip(1)
    if side == "holes":
        mask[0, 3] = mask[3, 1] = 0
    real = mask.bool()
    padded = build(layer_norm=layer_norm)
    packed = build(layer_norm=layer_norm, remove_padding=True)
    runs = []
    for model in (padded, packed):
        out = model(ids, mask, types, output_hidden_states=True)
        states = torch.stack(out.hidden_states)
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(states[:, real].shape, generator=generator)
        (states[:, real] * weights).sum().backward()
        runs.append(states)
    close(runs[1][:, real], runs[0][:, real], 1e-5)
    assert runs[1][:, ~real].abs().max() == 0
    for (name, one), two in zip(
        padded.named_parameters(), packed.parameters()
    ):
        if not name.startswith("pooler"):
            close(two.grad, one.grad, 1e-5)


def test_packing_gives_way_to_attentions_and_square_masks():
    padded, packed = build(), build(remove_padding=True)
    square = MASK[:, None] * MASK[:, :, None]
    for arguments in ((MASK, True), (square, False)):
        mask, attentions = arguments
        one = padded(IDS, mask, output_attentions=attentions)
        two = packed(IDS, mask, output_attentions=attentions)
        assert torch.equal(one.last_hidden_state, two.last_hidden_state)
        assert (two.attentions is not None) == attentions
    full = packed(IDS, torch.ones_like(MASK))  # nothing to remove
    close(full.last_hidden_state, padded(IDS).last_hidden_state)


@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_a_square_mask_keeps_texts_in_one_row_apart(path):
    model = build(**PATHS[path])
    lengths = [5, 3, 6]
    texts = [rows([length], seed=length)[0] for length in lengths]
    owner = torch.repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    out = model(
        torch.cat(texts, 1),
        owner[None, :, None] == owner[None, None],
        position_ids=positions[None],
    )
    parts = out.last_hidden_state[0].split(lengths)
    for text, part in zip(texts, parts):
        close(part, model(text).last_hidden_state[0])
    spread = MASK[:, None].expand(-1, 9, -1)
    close(
        model(IDS, spread).last_hidden_state,
        model(IDS, MASK).last_hidden_state,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("empty", [[1], [0, 1, 2, 3]])
def test_a_row_of_padding_gives_finite_numbers(path, dtype, empty):
    model = build(**PATHS[path]).to(dtype)
    mask = MASK.clone()
    mask[empty] = 0
    out = model(IDS, mask, output_hidden_states=True)
    for tensor in (*out.hidden_states, out.pooler_output):
        assert tensor.dtype == dtype and tensor.isfinite().all()
    (out.last_hidden_state.sum() + out.pooler_output.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    if path != "packed":
        weights = model(IDS, mask, output_attentions=True).attentions
        assert all(each.isfinite().all() for each in weights)


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient(name, path, layer_norm):
    model = build(name, layer_norm=layer_norm, **PATHS[path]).train()
    model(IDS, MASK, TYPES, **answers(name, IDS)).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_heads_give_the_same_loss_on_every_path(name):
    labels = answers(name, IDS)
    if name in ("BertForTokenClassification", "BertForMaskedLM"):
        labels["labels"] = labels["labels"].masked_fill(MASK == 0, -100)
    if name == "BertForPreTraining":
        labels["labels"] = labels["labels"].masked_fill(MASK == 0, -100)
    packed_is_zero_in_padding = name == "BertForQuestionAnswering"
    paths = [
        "sdpa",
        "eager",
        *([] if packed_is_zero_in_padding else ["packed"]),
    ]
    losses = [
        build(name, **PATHS[path])(IDS, MASK, TYPES, **labels).loss
        for path in paths
    ]
    for loss in losses[1:]:
        close(loss, losses[0])


@pytest.mark.parametrize("name", HEADS)
def test_no_label_at_all_is_no_loss_and_no_nan(name):
    model = build(name)
    loss = model(IDS, MASK, **no_answers(name, IDS)).loss
    assert loss == 0
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.abs().max() == 0


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_the_loss_is_float32(name, how):
    model = build(name)
    exact = model(IDS, MASK, TYPES, **answers(name, IDS)).loss
    if how == "weights":
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out = model(IDS, MASK, TYPES, **answers(name, IDS))
    assert out.loss.dtype == torch.float32
    assert out[1].dtype == torch.bfloat16
    assert abs(out.loss - exact) < 0.1 * exact
    out.loss.backward()
    # A bfloat16 loss would be a multiple of a power of two this large.
    assert out.loss.bfloat16().float() != out.loss


@pytest.mark.parametrize("name", HEADS)
def test_models_have_a_pooler_only_where_it_is_read(name):
    pooled = "Sequence" in name or "Sentence" in name or "PreTr" in name
    model = build(name)
    assert (model.bert.pooler is not None) == pooled
    out = model(IDS)
    assert out.loss is None
    assert out.hidden_states is None and out.attentions is None
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    assert out.attentions[0].shape == (4, 4, 9, 9)


def test_the_masked_words_alone_are_scored():
    model = build("BertForMaskedLM")
    labels = LABELS["BertForMaskedLM"].clone()
    labels[1, :2] = torch.tensor([0, 49])  # the first piece and the last
    full = model(IDS, MASK).logits
    asked = model(IDS, MASK, labels=labels)
    close(asked.logits, full[labels != -100])
    everywhere = F.cross_entropy(full.flatten(0, 1), labels.flatten())
    close(asked.loss, everywhere)
    both = build("BertForPreTraining")(IDS, MASK, labels=labels)
    assert both.prediction_logits.shape == asked.logits.shape


def test_a_span_costs_the_mean_of_its_ends():
    model = build("BertForQuestionAnswering")
    start, end = (
        torch.tensor([0, 3, -100, 8]),
        torch.tensor([2, -100, 0, 8]),
    )
    out = model(IDS, MASK, start_positions=start, end_positions=end)
    ends = (
        F.cross_entropy(out.start_logits, start),
        F.cross_entropy(out.end_logits, end),
    )
    close(out.loss, sum(ends) / 2)
    column = model(
        IDS,
        MASK,
        start_positions=start[:, None],
        end_positions=end[:, None],
    )
    assert torch.equal(column.loss, out.loss)


def test_the_decoder_is_the_table_of_embeddings():
    model = build("BertForMaskedLM")
    names = dict(model.named_parameters())
    shape = (50, 32)
    assert [n for n, p in names.items() if p.shape == shape] == [
        "bert.embeddings.tokens.weight"
    ]
    before = model(IDS).logits
    with torch.no_grad():
        model.bert.embeddings.tokens.weight[49] += (
            1.0  # in no text: IDS < 49
        )
    ids_without = IDS.clamp(max=48)
    after = model(ids_without).logits
    again = build("BertForMaskedLM")(ids_without).logits
    assert (after[..., 49] != again[..., 49]).all()
    assert torch.equal(after[..., :49], again[..., :49])
    assert before.shape == (4, 9, 50)


@settings(deadline=None, max_examples=40)
@given(
    cases=st.integers(1, 12),
    classes=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_cross_entropy_is_that_of_torch(cases, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, classes, generator=generator) * 3
    labels = torch.randint(0, classes, (cases,), generator=generator)
    ignored = torch.rand(cases, generator=generator) < 0.4
    labels = labels.masked_fill(ignored, -100)
    found = cross_entropy(logits, labels.int())
    if ignored.all():
        assert found == 0
    else:
        close(found, F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    "problem, num_labels, labels, expected",
    [
        (None, 1, "ratings", "regression"),
        (None, 3, "classes", "single_label_classification"),
        (None, 3, "many", "multi_label_classification"),
        ("regression", 3, "many", "regression"),
        ("multi_label_classification", 3, "many ints", None),
        ("regression", 1, "classes", "regression"),
    ],
)
def test_problem_types(problem, num_labels, labels, expected):
    labels = {
        "ratings": torch.tensor([0.5, -2.0, 3.0, 1.0]),
        "classes": torch.tensor([0, 2, 1, 1]),
        "many": torch.tensor([[1.0, 0, 0.5]] * 4),
        "many ints": torch.tensor([[1, 0, 1]] * 4),
    }[labels]
    logits = build(num_labels=3).pooler.dense.weight[:4, :num_labels]
    formulas = {
        "regression": lambda z, t: F.mse_loss(z, t.float().view_as(z)),
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
    }
    formula = formulas[expected or problem]
    if labels.shape[-1:] == (3,):
        labels_for_formula = labels.float()
    else:
        labels_for_formula = labels
    found = sequence_loss(logits, labels, problem)
    close(found, formula(logits, labels_for_formula))


@settings(deadline=None, max_examples=10)
@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 6),
    inner=st.integers(1, 40),
    batch=st.integers(1, 3),
    seq=st.integers(1, 16),
)
def test_counts_are_what_runs(layers, heads, width, inner, batch, seq):
    config = replace(
        TINY,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=heads * width,
        intermediate_size=inner,
        attn_implementation="eager",
    )
    model = BertForPreTraining(config)
    ids = torch.ones(batch, seq, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    labels[0, :2] = 1
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=labels)
    masked = min(seq, 2)
    expected = sum(operation_counts(config, batch, seq, masked).values())
    nsp = 2 * batch * config.hidden_size * 2
    assert counter.get_total_flops() == expected + nsp
    held = sum(parameter.numel() for parameter in model.parameters())
    assert held == sum(parameter_counts(config).values())


def test_first_weights_are_cut_at_two_deviations():
    model = BertModel(
        replace(TINY, hidden_size=256, initializer_range=0.02)
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.abs().max() <= 0.04, name
            assert parameter.mean().abs() < 0.002, name
            assert 0.016 < parameter.std() < 0.019, name
        elif name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        else:
            assert (parameter == 1).all(), name
    assert model.embeddings.tokens.weight[0].abs().max() == 0


COMPILED = """
import torch
from bertbook import BertConfig, BertForMaskedLM
config = BertConfig(hidden_size=16, num_attention_heads=2, vocab_size=30,
    num_hidden_layers=1, intermediate_size=16, {options})
model = BertForMaskedLM(config).eval()
ids = torch.arange(1, 13).view(2, 6)
mask = torch.ones_like(ids)
mask[1, 4:] = 0
expected = model(ids, mask).logits
fast = torch.compile(model, backend="eager", fullgraph={whole})
found = fast(ids, mask).logits
assert torch.allclose(found, expected, atol=1e-6)
"""


@pytest.mark.parametrize("packed", [False, True])
def test_the_model_compiles(packed):
    """Packing looks at the mask, which breaks the graph, and still runs."""
    code = COMPILED.format(
        options=f"remove_padding={packed}", whole=not packed
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_wrong_label_name_is_no_label():
    with pytest.raises(TypeError, match="lables"):
        build("BertForMaskedLM")(IDS, lables=IDS)


def test_every_head_is_tested():
    """The grids above would shrink unseen if a head were renamed."""
    found = {
        name
        for name in bertbook.heads.__all__
        if name.startswith("BertFor")
    }
    assert found == set(HEADS)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_regression_learns_from_labels_of_any_float(dtype):
    config = replace(TINY, num_labels=1)
    model = bertbook.heads.BertForSequenceClassification(config)
    labels = torch.tensor([0.5, 1.0], dtype=dtype)
    loss = model(torch.tensor([[1, 2], [3, 4]]), labels=labels).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.classifier.weight.grad.abs().sum() > 0


def test_a_span_head_has_two_outputs_whatever_the_labels(tmp_path):
    assert TINY.num_labels == 3
    bertbook.heads.BertForQuestionAnswering(TINY).save_pretrained(tmp_path)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path)
    assert theirs.qa_outputs.out_features == 2
