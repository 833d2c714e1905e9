"""Losses, settings, the order of rows, accumulation, evaluation."""

import inspect
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import bertbook.objectives
from bertbook.config import BertConfig
from bertbook.corpora import load_corpus
from bertbook.finetuning import Finetuning
from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.masking import MaskedRows, Masking, Pieces, spread_labels
from bertbook.objectives import (
    Objective,
    Place,
    Pretraining,
    accumulate,
    batches_from,
    count_labels,
    evaluate_masked,
    make_batch,
    rows_of,
    summed_loss,
    tasks_of,
)
from bertbook.optimization import Length
from bertbook.sentence_pairs import PairRows
from bertbook.token_files import PackedRows, write_token_files
from bertbook.tokenizer import BertTokenizer

VOCAB, SEQ = 61, 16
CONFIG = BertConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=SEQ,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,
)
SETTINGS = Pretraining(
    CONFIG, Length(steps=9), seq_length=SEQ, batch_size=8
)
COINS = Masking(rate=0.3, count="independent")
OBJECTIVES = ("mlm", "mlm+nsp")


def toy_pieces():
    special = torch.zeros(VOCAB, dtype=torch.bool)
    special[:4] = True  # [PAD] [CLS] [SEP] [MASK]
    continues = torch.zeros_like(special)
    continues[40:] = True
    plain = SimpleNamespace(
        mask_token="[MASK]",
        all_special_ids=[0, 1, 2, 3],
        get_vocab=lambda: {
            ("##" if i >= 40 else "") + ("[MASK]" if i == 3 else str(i)): i
            for i in range(VOCAB)
        },
    )
    return Pieces.of(plain)


class ToyRows:
    """Rows of random pieces, padded and paired if wanted."""

    def __init__(self, number=40, pairs=False):
        self.number, self.pairs = number, pairs

    def count(self, epoch):
        return self.number

    def rows(self, epoch, examples):
        made = [self._row(epoch, int(example)) for example in examples]
        return {
            name: np.stack([row[name] for row in made]) for name in made[0]
        }

    def _row(self, epoch, example):
        draw = np.random.default_rng([epoch, example])
        ids = draw.integers(4, VOCAB, SEQ)
        if not self.pairs:
            ids[0], ids[-1] = 1, 2
            return {"input_ids": ids}
        end = int(draw.integers(6, SEQ + 1))
        ids[0] = 1
        ids[[3, end - 1]] = 2
        ids[end:] = 0
        places = np.arange(SEQ)
        return {
            "input_ids": ids,
            "token_type_ids": ((places > 3) & (places < end)).astype(int),
            "attention_mask": (places < end).astype(int),
            "next_sentence_label": draw.integers(2),
        }


def build(objective, dtype=torch.float64):
    torch.manual_seed(0)
    kind = BertForMaskedLM if objective == "mlm" else BertForPreTraining
    model = kind(CONFIG)
    with torch.no_grad():  # biases and norms too
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Objective(model.to(dtype))


def batch_of(objective, examples, masking=COINS):
    rows = ToyRows(pairs=objective != "mlm")
    examples = np.asarray(examples)
    return make_batch(rows, toy_pieces(), masking, 0, 0, examples)


def gradients(objective):
    """All gradients in one vector; forgets them."""
    found = [
        torch.zeros_like(p) if p.grad is None else p.grad
        for p in objective.parameters()
    ]
    objective.zero_grad()
    return torch.cat([gradient.flatten() for gradient in found])


# --- the losses ---------------------------------------------------------


@pytest.mark.parametrize(
    "masking", [COINS, Masking()], ids=["coins", "exact"]
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_that_of_the_heads_and_of_transformers(
    objective, masking, tmp_path
):
    ours = build(objective)
    batch = batch_of(objective, range(12), masking)
    found = accumulate(ours, [batch])
    gradient = gradients(ours)
    masked = [batch[name] for name in MaskedRows._fields]
    answers = {"labels": spread_labels(MaskedRows(*masked))}
    inputs = [
        batch["input_ids"],
        batch.get("attention_mask"),
        batch.get("token_type_ids"),
    ]
    if objective != "mlm":
        answers["next_sentence_label"] = batch["next_sentence_label"]
    loss = ours.model(*inputs, **answers).loss
    loss.backward()
    assert abs(sum(found.values()) - loss.item()) < 1e-12
    assert torch.allclose(gradients(ours), gradient, atol=1e-12)

    ours.model.float().save_pretrained(tmp_path, format="published")
    theirs = getattr(transformers, type(ours.model).__name__)
    theirs = theirs.from_pretrained(tmp_path).double().train()
    loss = theirs(*inputs, **answers).loss
    assert abs(sum(found.values()) - loss.item()) < 1e-5
    loss.backward()
    table = theirs.bert.embeddings.word_embeddings.weight
    mine = accumulate(ours.double(), [batch])
    assert abs(sum(mine.values()) - loss.item()) < 1e-6
    own = ours.model.bert.embeddings.tokens.weight.grad
    assert torch.allclose(own, table.grad, atol=1e-6)


def test_a_batch_says_which_tasks_it_has():
    names = {
        objective: [t.name for t in tasks_of(batch_of(objective, [0, 1]))]
        for objective in OBJECTIVES
    }
    assert names == {"mlm": ["mlm"], "mlm+nsp": ["mlm", "nsp"]}


def test_a_model_of_pairs_learns_pieces_alone_too():
    ours = build("mlm+nsp")
    assert set(ours(batch_of("mlm", range(4)))) == {"mlm"}


def test_sums_are_taken_in_float32():
    objective = build("mlm", torch.float32)
    batch = batch_of("mlm", range(8))
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(batch)["mlm"]
    assert found.dtype == torch.float32
    full = objective(batch)["mlm"]
    assert abs(found - full) < 0.05 * full


@pytest.mark.parametrize("cases", [1, 7, 8, 9, 100])
def test_the_sum_is_that_of_all_blocks(cases):
    scores = torch.randn(cases, 5, dtype=torch.float64)
    labels = torch.randint(0, 5, (cases,))
    labels[::3] = -100
    whole = torch.nn.functional.cross_entropy(
        scores, labels, reduction="sum"
    )
    assert torch.allclose(summed_loss(scores, labels), whole)
    unchecked = inspect.unwrap(summed_loss)  # as outside the tests
    for fewer in range(cases):
        with pytest.raises(ValueError):
            unchecked(scores, labels[:fewer])


def test_nothing_hidden_is_no_loss_and_no_gradient():
    objective = build("mlm")
    batch = batch_of("mlm", range(3))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert accumulate(objective, [batch]) == {"mlm": 0.0}
    assert torch.count_nonzero(gradients(objective)) == 0


COMPILE = """
import torch
from torch._dynamo.testing import CompileCounter
from tests.test_objectives import Masking, batch_of, build

objective, counter = build("mlm+nsp"), CompileCounter()
compiled = torch.compile(objective, backend=counter, fullgraph=True)
for first in (0, 8, 16):
    batch = batch_of("mlm+nsp", range(first, first + 8), Masking())
    plain, found = objective(batch), compiled(batch)
    assert all(torch.allclose(found[k], plain[k]) for k in plain)
assert counter.frame_count == 1, counter.frame_count
"""


def test_one_graph_serves_every_batch():
    """In a process of its own, where shapes are not checked."""
    import subprocess
    import sys
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# --- accumulation -------------------------------------------------------


def split(examples, parts):
    return [part for part in np.array_split(np.asarray(examples), parts)]


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "dtype, limit", [(torch.float64, 1e-12), (torch.float32, 1e-6)]
)
def test_parts_do_not_change_the_gradient(objective, parts, dtype, limit):
    ours = build(objective, dtype)
    losses = accumulate(ours, [batch_of(objective, range(12))])
    large = gradients(ours)
    batches = [
        batch_of(objective, part) for part in split(range(12), parts)
    ]
    counts = [count_labels([batch])["mlm"] for batch in batches]
    assert len(set(counts)) > 1  # or the next test would prove nothing
    found = accumulate(ours, batches)
    gradient = gradients(ours)
    assert (gradient - large).abs().max() <= limit * large.abs().max()
    for name in losses:
        assert abs(found[name] - losses[name]) < 10 * limit


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_mean_of_means_is_another_gradient(objective):
    ours = build(objective)
    accumulate(ours, [batch_of(objective, range(12))])
    large = gradients(ours)
    batches = [batch_of(objective, part) for part in split(range(12), 4)]
    for batch in batches:
        counts, sums = count_labels([batch]), ours(batch)
        mean = sum(sums[name] / counts[name] for name in sums)
        (mean / len(batches)).backward()
    wrong = gradients(ours)
    assert (wrong - large).norm() > 0.01 * large.norm()


@pytest.mark.parametrize("ranks", [2, 3])
def test_averaged_processes_give_the_gradient_of_the_whole(
    ranks, monkeypatch
):
    """What DDP does: each process its rows, then the mean of gradients."""
    ours, objective = build("mlm+nsp"), "mlm+nsp"
    accumulate(ours, [batch_of(objective, range(12))])
    large = gradients(ours)
    shares = [np.arange(12)[number::ranks] for number in range(ranks)]
    batches = [
        [batch_of(objective, part) for part in split(share, 2)]
        for share in shares
    ]
    whole = count_labels(sum(batches, []))
    monkeypatch.setattr(
        bertbook.objectives,
        "this_rank",
        lambda: SimpleNamespace(size=ranks),
    )
    monkeypatch.setattr(
        bertbook.objectives,
        "sum_over_ranks",
        lambda counts: whole if isinstance(counts["mlm"], int) else counts,
    )
    found = []
    for parts in batches:
        accumulate(ours, parts)
        found.append(gradients(ours))
    mean = sum(found) / ranks
    assert (mean - large).abs().max() < 1e-12 * large.abs().max()


def test_counts_are_of_labels_and_of_rows():
    parts = [batch_of("mlm+nsp", part) for part in split(range(12), 5)]
    expected = sum((part["labels"] != -100).sum().item() for part in parts)
    assert count_labels(parts) == {"mlm": expected, "nsp": 12}


# --- the order of rows --------------------------------------------------


def epochs_of(rows, size, seed, epochs):
    """The rows visited in each epoch."""
    found = {}
    for place, numbers in batches_from(rows, size, seed, Place(0, 0)):
        if place.epoch == epochs:
            return [np.concatenate(each) for each in found.values()]
        found.setdefault(place.epoch, []).append(numbers)


@given(st.integers(1, 60), st.data())
def test_each_epoch_visits_each_row_at_most_once(count, data):
    size = data.draw(st.integers(1, count))
    for visited in epochs_of(ToyRows(count), size, 0, 3):
        assert len(visited) == count // size * size
        assert len(set(visited)) == len(visited)
        assert set(visited) <= set(range(count))


def test_a_batch_of_one_visits_every_row():
    for visited in epochs_of(ToyRows(37), 1, 0, 2):
        assert sorted(visited) == list(range(37))


def test_epochs_and_seeds_have_their_own_order():
    orders = [
        tuple(order)
        for seed in (0, 1)
        for order in epochs_of(ToyRows(50), 5, seed, 3)
    ]
    assert len(set(orders)) == 6
    assert tuple(range(50)) not in orders


@given(st.integers(1, 40), st.integers(0, 5), st.data())
def test_any_place_is_where_a_run_goes_on(count, seed, data):
    size = data.draw(st.integers(1, count))
    stop = data.draw(st.integers(1, 50))
    whole = list(
        islice(batches_from(ToyRows(count), size, seed, Place(0, 0)), 60)
    )
    place = whole[stop - 1][0]
    rest = batches_from(ToyRows(count), size, seed, place)
    for (after, numbers), (expected, same) in zip(rest, whole[stop:]):
        assert after == expected
        assert np.array_equal(numbers, same)


def test_epochs_may_differ_in_length():
    class Growing(ToyRows):
        def count(self, epoch):
            return 10 + 3 * epoch

    lengths = [len(each) for each in epochs_of(Growing(), 4, 0, 4)]
    assert lengths == [8, 12, 16, 16]
    place = Place(1, 3)  # the end of epoch 1
    after, _ = next(batches_from(Growing(), 4, 0, place))
    assert after == Place(2, 1)


def test_too_few_rows_are_refused():
    with pytest.raises(
        ValueError, match="7 rows, fewer than the batch of 8"
    ):
        next(batches_from(ToyRows(7), 8, 0, Place(0, 0)))


def test_a_batch_is_the_same_in_any_company():
    whole = batch_of("mlm+nsp", [5, 1, 30, 8], Masking())
    for place, example in enumerate([5, 1, 30, 8]):
        alone = batch_of("mlm+nsp", [example], Masking())
        for name, tensor in whole.items():
            assert torch.equal(tensor[place : place + 1], alone[name]), name


# --- evaluation ---------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_evaluation_counts_every_label_once(objective):
    ours = build(objective)
    batch = batch_of(objective, range(20))
    expected = accumulate(ours, [batch])
    ours.zero_grad()
    for parts in (1, 3, 20):
        batches = [batch_of(objective, p) for p in split(range(20), parts)]
        found = evaluate_masked(ours, batches)
        assert abs(found["loss"] - expected["mlm"]) < 1e-9
        if objective == "mlm":
            assert set(found) == {"loss", "accuracy"}
        else:
            assert abs(found["nsp_loss"] - expected["nsp"]) < 1e-9
    assert all(p.grad is None for p in ours.parameters())


def test_accuracy_is_the_share_of_right_answers():
    ours = build("mlm+nsp")
    batch = batch_of("mlm+nsp", range(20))
    masked = [batch[name] for name in MaskedRows._fields]
    with torch.no_grad():
        outputs = ours.model(
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
        )
    labels = spread_labels(MaskedRows(*masked))
    kept = labels != -100
    for share in (0.0, 0.5):  # let half of the answers be right
        guess = outputs.prediction_logits.argmax(-1)
        right = kept & (torch.rand(labels.shape) < share)
        labels = torch.where(right, guess, labels)
        batch["labels"] = torch.where(
            batch["labels"] != -100,
            labels.gather(1, batch["positions"]),
            -100,
        )
        found = evaluate_masked(ours, [batch])
        expected = (guess == labels)[kept].double().mean().item()
        assert abs(found["accuracy"] - expected) < 1e-12
    says = outputs.seq_relationship_logits.argmax(-1)
    expected = (says == batch["next_sentence_label"]).double().mean().item()
    assert abs(found["nsp_accuracy"] - expected) < 1e-12


def test_evaluation_leaves_the_model_as_it_was():
    noisy = replace(CONFIG, hidden_dropout_prob=0.5)
    torch.manual_seed(0)
    ours = Objective(BertForMaskedLM(noisy)).train()
    batches = [batch_of("mlm", range(6))]
    assert evaluate_masked(ours, batches) == evaluate_masked(ours, batches)
    assert all(module.training for module in ours.modules())


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(ValueError, match="no batch to evaluate on"):
        evaluate_masked(build("mlm"), [])


# --- settings and rows --------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("objective", "nsp"),
        ("seq_length", 2),
        ("seq_length", SEQ + 1),
        ("batch_size", 0),
        ("accumulation", 0),
        ("accumulation", 9),
        ("last_rate", 0.0),
        ("last_rate", 1.5),
        ("dtype", "float16"),
        ("positions", "learned"),
        ("evaluate_every", 0),
        ("patience", 0),
        ("seed", -1),
    ],
)
def test_settings_that_do_not_fit_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}.*; give "):
        replace(SETTINGS, **{name: value})


def test_pairs_need_two_segments():
    single = replace(CONFIG, type_vocab_size=1)
    replace(SETTINGS, model=single)
    with pytest.raises(ValueError, match="type_vocab_size=1; give a model"):
        replace(SETTINGS, model=single, objective="mlm+sop")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    tokenizer = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
    texts = load_corpus("bbc_news", "train")["text"][:30]
    folder = tmp_path_factory.mktemp("tokens")
    return write_token_files(texts, tokenizer, folder), tokenizer


def test_the_objective_decides_the_rows(files):
    examples = np.arange(5)
    found = {}
    for objective in ("mlm", "mlm+nsp", "mlm+sop"):
        chosen = replace(SETTINGS, objective=objective)
        rows = rows_of(chosen, *files)
        found[objective] = rows.rows(0, examples)["input_ids"]
        assert found[objective].shape == (5, SEQ)
        assert rows.files is files[0]
        kind = PackedRows if objective == "mlm" else PairRows
        assert isinstance(rows, kind)
    assert not np.array_equal(found["mlm+nsp"], found["mlm+sop"])


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_only_training_rows_depend_on_the_seed(files, objective):
    examples = np.arange(8)
    chosen = replace(SETTINGS, objective=objective)
    other = replace(chosen, seed=1)
    cut = [
        rows_of(which, *files, held_out).rows(0, examples)["input_ids"]
        for held_out in (True, False)
        for which in (chosen, other)
    ]
    assert np.array_equal(cut[0], cut[1])
    assert not np.array_equal(cut[2], cut[3])


@pytest.mark.parametrize("settings", ["pretrain", "finetune"])
def test_the_type_of_products_is_what_the_machine_is_fast_in(
    monkeypatch, settings
):
    """Chosen when settings are made, so that a resumed run keeps it."""

    def dtype():
        if settings == "finetune":
            return Finetuning("classify", "some/model").dtype
        return Pretraining(CONFIG, Length(steps=1), seq_length=SEQ).dtype

    for flags, expected in (
        ({"avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"neon": True}, "float32"),
    ):
        known = partial(dict, flags)
        monkeypatch.setattr("torch.cpu.get_capabilities", known)
        assert dtype() == expected
