"""That the rungs of the ladder compute the same, and the race's sums."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bertbook import side_by_side
from bertbook.attention import SelfAttention
from bertbook.config import BertConfig
from bertbook.heads import BertForMaskedLM
from bertbook.masking import Masking, Pieces
from bertbook.model import operation_counts
from bertbook.objectives import Objective, make_batch
from bertbook.performance import (
    Climber,
    Ground,
    Rung,
    count_work,
    ladder,
    rung_optimizers,
    rung_rows,
)
from bertbook.pretraining_text import Text
from bertbook.textbook_step import (
    Everywhere,
    HeadByHead,
    SentenceRows,
    TextRows,
    make_batch_by_rows,
    real_tokens,
)
from bertbook.token_files import PackedRows, write_token_files
from bertbook.tokenizer import BertTokenizer
from bertbook.vocabulary import train_wordpiece

WORDS = (
    "the film was a slow and quiet drama with two very good actors".split()
)
TINY = BertConfig(
    vocab_size=120,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    attn_implementation="eager",
    initializer_range=0.3,  # large, so that a mistake is large
)


def make_documents(count=12):
    draw = np.random.default_rng(0)
    return [
        " ".join(
            " ".join(draw.choice(WORDS, draw.integers(1, 40))) + "."
            for _ in range(draw.integers(1, 6))
        ).capitalize()
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    documents = make_documents()
    vocabulary = train_wordpiece(documents, 120, show_progress=False)
    tokenizer = BertTokenizer(vocabulary)
    folder = tmp_path_factory.mktemp("text")
    train = write_token_files(documents, tokenizer, folder, shard_size=5)
    texts = dict.fromkeys((False, True), Text(tokenizer, train, train))
    base = replace(TINY, vocab_size=len(vocabulary))
    return Ground(base, documents, texts, seq_length=16, batch_size=6)


def row_sources(ground):
    text = ground.texts[False]
    return text.tokenizer, [
        PackedRows(text.train, 16, text.tokenizer),
        SentenceRows(text.train, 16, text.tokenizer),
        TextRows(ground.documents, text.tokenizer, 16),
    ]


@pytest.mark.parametrize("seq_length", [3, 8, 32, 64])
def test_rows_of_files_are_rows_of_text(ground, seq_length):
    """Over shards, documents' ends and sentences that are cut."""
    text = ground.texts[False]
    of_text = TextRows(ground.documents, text.tokenizer, seq_length)
    of_files = SentenceRows(text.train, seq_length, text.tokenizer)
    assert len(text.train.shards) == 3
    assert of_text.count(0) == of_files.count(0)
    examples = np.random.default_rng(1).permutation(of_text.count(0))
    expected = of_text.rows(0, examples)
    found = of_files.rows(0, examples)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_batch_by_rows_is_the_batch(ground):
    tokenizer, sources = row_sources(ground)
    examples = np.array([4, 0, 7])
    for rows in sources:
        address = rows, Pieces.of(tokenizer), Masking(), 3, 1, examples
        expected = make_batch(*address)
        found = make_batch_by_rows(*address)
        assert found.keys() == expected.keys()
        for name in expected:
            assert torch.equal(found[name], expected[name]), name


def test_real_tokens_leave_out_padding(ground):
    tokenizer, sources = row_sources(ground)
    pieces, examples = Pieces.of(tokenizer), np.arange(5)
    for rows in sources:
        batch = make_batch(rows, pieces, Masking(), 0, 0, examples)
        pads = (batch["input_ids"] == tokenizer.pad_token_id).sum()
        assert real_tokens(batch) == batch["input_ids"].numel() - pads


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_head_by_head_is_the_layer(stacked, masked):
    """Outputs, and the gradients of inputs and of every weight."""
    torch.manual_seed(0)
    layer = SelfAttention(TINY).double()
    for parameter in layer.parameters():  # biases too
        torch.nn.init.normal_(parameter)
    whole = layer.query_key_value
    plain = HeadByHead(layer, stacked).double()
    hidden = torch.randn(3, 7, 32).double().requires_grad_()
    mask = None
    if masked:
        mask = torch.rand(3, 1, 1, 7) < 0.6
        mask[..., 0] = True
    weight = torch.randn(3, 7, 32).double()
    expected = layer(hidden, mask)[0]
    wanted = torch.autograd.grad(
        (expected * weight).sum(), [hidden, whole.weight, whole.bias]
    )
    found = plain(hidden, mask)[0]
    torch.testing.assert_close(found, expected)
    parts = [hidden]
    parts += [each.weight for each in plain.projections]
    parts += [each.bias for each in plain.projections]
    gradient, *rest = torch.autograd.grad((found * weight).sum(), parts)
    half = len(rest) // 2
    torch.testing.assert_close(gradient, wanted[0])
    torch.testing.assert_close(torch.cat(rest[:half]), wanted[1])
    torch.testing.assert_close(torch.cat(rest[half:]), wanted[2])


def test_cut_projections_are_copies():
    layer = SelfAttention(TINY)
    before = layer.query_key_value.weight.clone()
    for each in HeadByHead(layer, stacked=False).projections:
        torch.nn.init.zeros_(each.weight)
    assert torch.equal(layer.query_key_value.weight, before)


def test_scores_everywhere_give_the_same_gradient(ground):
    tokenizer, sources = row_sources(ground)
    for rows in sources:
        batch = make_batch(
            rows, Pieces.of(tokenizer), Masking(), 0, 0, np.arange(5)
        )
        gradients = []
        for kind in Objective, Everywhere:
            torch.manual_seed(0)
            model = BertForMaskedLM(ground.base)
            kind(model)(batch)["mlm"].backward()
            gradients.append([each.grad for each in model.parameters()])
        torch.testing.assert_close(*gradients)


def test_a_looped_optimizer_steps_like_the_fused(ground):
    losses = []
    for kind in "looped", "fused":
        rung = replace(ladder()["packed rows"], optimizer=kind)
        climber = Climber(rung, ground)
        fused = climber.optimizers[0].param_groups[0]["fused"]
        assert fused == (kind == "fused")
        losses.append([climber.step(0.1)["loss"] for _ in range(6)])
    assert len(set(losses[0])) == 6
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_every_rung_trains(ground):
    """A rung that learns nothing is fast too."""
    for name, rung in ladder().items():
        climber = Climber(replace(rung, dropout=0.0), ground)
        losses = [climber.step(0.1)["loss"] for _ in range(25)]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05, name


def test_threads_and_vocabulary_change_no_objective(ground):
    rungs = ladder()
    small, cores = rungs["small vocabulary"], rungs["all cores"]
    losses = [
        Climber(rung, ground).step(0)["loss"] for rung in (small, cores)
    ]
    assert losses[0] == losses[1]


def test_held_out_rows_are_packed_on_every_rung(ground):
    for rung in ladder().values():
        assert isinstance(rung_rows(rung, ground, "held_out"), PackedRows)


def test_muon_takes_the_matrices(ground):
    model = BertForMaskedLM(ground.base)
    kinds = [
        [
            type(each).__name__
            for each in rung_optimizers(Rung(**kind), model)
        ]
        for kind in ({}, {"optimizer": "fused"}, {"optimizer": "muon"})
    ]
    assert kinds == [["AdamW"], ["AdamW"], ["Muon", "AdamW"]]


def test_work_is_what_the_configuration_says(ground):
    """Three forward passes, by the counts of the model's chapter."""
    climber = Climber(ladder()["fused optimizer"], ground)
    climber.step(0.5)
    work = count_work(climber)
    assert work == count_work(climber)
    batch = ground.batch_size
    width = round(0.15 * ground.seq_length)
    counts = operation_counts(
        ground.base, batch, ground.seq_length, batch * width
    )
    del counts["pooler"]
    assert work.operations == 3 * sum(counts.values())
    assert work.tokens == batch * ground.seq_length


def test_beside_divides_seconds_a_token(ground, monkeypatch):
    """The race's clock is what the racers say, not the wall's."""
    taken = {"sentences": 8e-4, "packed": 4e-4}

    def trainer_run(config, rows, tokenizer, **arguments):
        lengths = {len(row["input_ids"]) for row in rows}
        kind = "packed" if lengths == {64} else "sentences"
        share = 64 / arguments["per_device_train_batch_size"]
        return lambda: taken[kind] * share / (1 + arguments["bf16"])

    monkeypatch.setattr(side_by_side, "trainer_run", trainer_run)
    monkeypatch.setattr(side_by_side, "our_run", lambda *_: lambda: 1e-4)
    rows = side_by_side.beside(ground.texts[False], rounds=3)
    ratios = {row["theirs"]: round(row["median"], 6) for row in rows}
    assert ratios == {
        "as it comes": 64,
        "packed rows": 32,
        "batch of 64": 4,
        "bfloat16": 2,
    }
    for row in rows:
        faster = row["tokens_ours"] / row["tokens_theirs"]
        assert faster == pytest.approx(row["median"])
        assert row["vocabulary"] == ground.base.vocab_size


def test_the_command_records_its_table(tmp_path, monkeypatch, capsys):
    row = dict(theirs="bfloat16", vocabulary=8192, median=2.0, low=1.5)
    row |= dict(high=2.5, tokens_ours=4000.0, tokens_theirs=2000.0)
    monkeypatch.setattr(side_by_side, "tokenizers", lambda: {True: None})
    monkeypatch.setattr(side_by_side, "take_text", lambda *_: None)
    monkeypatch.setattr(side_by_side, "beside", lambda *_: [row])
    path = tmp_path / "speed.json"
    side_by_side.main(["--record", str(path), "--rounds", "2"])
    assert "2.00 (1.50-2.50)" in capsys.readouterr().out
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["rows"] == [row] and metrics["rounds"] == 2


def test_the_trainer_is_as_it_comes(ground, tmp_path):
    text = ground.texts[False]
    rows = side_by_side.rows_for_trainer(text, "sentences", 64)
    ends = []
    callback = {"on_step_end": lambda *a, **k: ends.append(k["model"])}
    trainer = side_by_side.make_trainer(
        ground.base, rows, text.tokenizer, tmp_path, callback, max_steps=3
    )
    batch = trainer.data_collator(rows[:4])
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["attention_mask"].sum() == sum(
        len(row["input_ids"]) for row in rows[:4]
    )
    special = torch.tensor(text.tokenizer.all_special_ids)
    wanted = batch["labels"][batch["labels"] != -100]
    assert not torch.isin(wanted, special).any()
    trainer.train()
    assert len(ends) == 3 and trainer.state.global_step == 3
    assert trainer.args.learning_rate == 5e-5
    assert trainer.args.per_device_train_batch_size == 8
    run = side_by_side.trainer_run(ground.base, rows, text.tokenizer)
    assert 0 < run() < 1 and 0 < run() < 1
