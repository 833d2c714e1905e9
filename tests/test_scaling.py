"""The model of cost against what is counted and what is saved."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bertbook.checkpoints import CheckpointError
from bertbook.config import PRESETS, BertConfig
from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.losses import IGNORED
from bertbook.masking import Masking, Pieces
from bertbook.objectives import Objective, Pretraining, make_batch
from bertbook.optimization import Length, Optimization, make_optimizers
from bertbook.pretraining import pretrain
from bertbook.run_folder import new_objective
from bertbook.scaling import (
    ACCELERATORS,
    BERT_PHASES,
    Phase,
    activation_memory,
    break_even,
    exchange_seconds,
    run_hours,
    run_operations,
    step_seconds,
    training_memory,
    training_operations,
    training_seconds,
)
from bertbook.token_files import PackedRows, write_token_files
from bertbook.tokenizer import BertTokenizer

SMALL = BertConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,  # not four times, so that no term hides another
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def batch_of(config, rows, seq, width):
    return {
        "input_ids": torch.zeros(rows, seq, dtype=torch.long),
        "positions": torch.zeros(rows, width, dtype=torch.long),
        "labels": torch.zeros(rows, width, dtype=torch.long),
    }


def saved_bytes(config, rows, seq, width, dtype):
    objective = Objective(BertForMaskedLM(config))
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    seen = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen.setdefault(storage.data_ptr(), storage)
        return tensor

    cast = nullcontext()
    if dtype == "bfloat16":
        cast = torch.autocast("cpu", torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), cast:
        objective(batch_of(config, rows, seq, width))
    return sum(each.nbytes() for each in seen.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [(0.0, 0.0), (0.1, 0.0), (0.1, 0.1)])
def test_activations_are_those_that_autograd_saves(
    dtype, layer_norm, attention, dropout
):
    config = replace(
        SMALL,
        layer_norm=layer_norm,
        attn_implementation=attention,
        hidden_dropout_prob=dropout[0],
        attention_probs_dropout_prob=dropout[1],
    )
    shapes = [(3, 48, 7), (8, 16, 2), (2, 64, 40), (1, 64, 9)]
    for rows, seq, width in shapes:
        masked = rows * width
        predicted = activation_memory(config, rows, seq, masked, dtype)
        measured = saved_bytes(config, rows, seq, width, dtype)
        # The context of a single row is copied before it is projected.
        near = 0.01 if rows > 1 else 0.1
        assert sum(predicted.values()) == pytest.approx(measured, rel=near)


@pytest.mark.parametrize("name", PRESETS)
def test_operations_are_those_of_a_step(name):
    """Three forward passes, counted on the meta device by PyTorch."""
    config = replace(
        PRESETS[name],
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    for pairs, kind in (
        (False, BertForMaskedLM),
        (True, BertForPreTraining),
    ):
        with torch.device("meta"):
            objective = Objective(kind(config))
            batch = batch_of(config, 4, 20, 3)
            if pairs:
                label = torch.zeros(4, dtype=torch.long)
                batch["next_sentence_label"] = label
            with FlopCounterMode(display=False) as counter:
                sum(objective(batch).values()).backward()
        counted = counter.get_total_flops()
        known = training_operations(config, 80, 20, 0.15, pairs)
        # The head of pairs, two outputs a row, is not among the components.
        two = 3 * 4 * 2 * 2 * config.hidden_size if pairs else 0
        assert counted == sum(known.values()) + two


@pytest.mark.parametrize("kind", ["adamw", "muon", "bert_adam"])
def test_fixed_memory_is_what_a_step_leaves(kind):
    model = BertForMaskedLM(SMALL)
    optimizers = make_optimizers(model, Optimization(optimizer=kind))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    known = training_memory(SMALL, 1, 16, 2, optimizer=kind)
    held = sum(each.nbytes for each in model.parameters())
    assert known["parameters"] == known["gradients"] == held
    remembered = sum(
        value.nbytes
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim
    )
    assert known["optimizer"] == remembered


def test_shards_divide_what_copies_repeat():
    whole = training_memory(SMALL, 2, 16, 4)
    parts = training_memory(SMALL, 2, 16, 4, shards=4)
    for name in ("parameters", "gradients", "optimizer"):
        assert parts[name] == whole[name] // 4
    for name in ("layers", "attention", "embeddings", "mlm_head"):
        assert parts[name] == whole[name]
    assert whole["gathered"] == 0 < parts["gathered"]


def test_a_gpu_keeps_no_attention_weights():
    dropped = replace(
        SMALL, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
    here = activation_memory(dropped, 4, 64, 8, "bfloat16")
    there = activation_memory(dropped, 4, 64, 8, "bfloat16", gpu=True)
    assert there["attention"] < here["attention"] / 10
    assert there["layers"] < here["layers"]
    long = activation_memory(dropped, 2, 128, 8, "bfloat16", gpu=True)
    assert long["attention"] == there["attention"]  # not of the length


def test_nothing_masked_costs_no_scores():
    assert activation_memory(SMALL, 4, 16, 0)["mlm_head"] == 0
    assert training_operations(SMALL, 64, 16, 0.0)["mlm_head"] == 0
    assert training_operations(SMALL, 64, 16)["pooler"] == 0
    part = training_operations(SMALL, 65, 16)  # a row more
    assert (
        part["projections"]
        == 5 / 4 * (training_operations(SMALL, 64, 16)["projections"])
    )


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match=f"share={share}"):
        training_seconds(1e12, 1e12, share)
    assert training_seconds(3e12, 1e12, 0.5) == 6


@given(st.floats(1, 1000), st.floats(1e2, 1e6), st.floats(1.01, 10))
def test_compiling_has_paid_when_both_took_as_long(seconds, rate, faster):
    tokens = break_even(seconds, rate, rate * faster)
    usual, compiled = tokens / rate, seconds + tokens / (rate * faster)
    assert usual == pytest.approx(compiled)
    assert break_even(seconds, rate, rate / faster) == math.inf


def simulated_exchange(size, count, chip, latency):
    """Round by round: what each chip sends, in pieces of its ring."""
    near = min(count, chip.chips)
    machines = count // near
    total = 0.0
    for _ in range(2 * (near - 1)):
        total += latency + size / near / chip.inside
    for _ in range(2 * (machines - 1)):
        total += latency + size / near / machines / chip.between
    return total


@pytest.mark.parametrize("name", ACCELERATORS)
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 64, 512])
def test_an_exchange_is_the_sum_of_its_rounds(name, count):
    chip = ACCELERATORS[name]
    for size in (8, 1e9):
        found = exchange_seconds(size, count, chip, 1e-5)
        expected = simulated_exchange(size, count, chip, 1e-5)
        assert found == pytest.approx(expected)


def test_a_step_divides_rows_and_never_beats_its_parts():
    base, chip = PRESETS["base"], ACCELERATORS["A100"]
    alone = step_seconds(base, 256, 128, 1, chip, 0.4)
    for count in (2, 8, 32, 256):
        step = step_seconds(base, 256, 128, count, chip, 0.4)
        computing = (alone - 0.005) / count
        weights = 4 * 110e6
        assert step >= 0.005 + computing * 0.999
        assert step >= 0.005 + exchange_seconds(weights, count, chip) * 0.99
        assert step < alone
    # 5 rows on 4 chips: the busiest has two.
    few = step_seconds(base, 5, 128, 4, chip, 0.4)
    assert few == pytest.approx(
        step_seconds(base, 8, 128, 4, chip, 0.4), rel=1e-3
    )
    with pytest.raises(ValueError, match="3 rows cannot be shared by 4"):
        step_seconds(base, 3, 128, 4, chip, 0.4)


def test_a_run_is_its_phases():
    base, chip = PRESETS["base"], ACCELERATORS["H100"]
    assert [phase.seq_length for phase in BERT_PHASES] == [128, 512]
    assert sum(tokens for _, tokens in BERT_PHASES) == 256 * (
        900_000 * 128 + 100_000 * 512
    )
    whole = run_hours(base, 8, chip, 0.4)
    parts = [
        run_hours(base, 8, chip, 0.4, phases=(each,))
        for each in BERT_PHASES
    ]
    assert whole == pytest.approx(sum(parts))
    # About 6 P T for the 85 M weights of the layers, and something more.
    rough = 6 * 85e6 * sum(tokens for _, tokens in BERT_PHASES)
    assert 1 < run_operations(base) / rough < 1.25
    steps = [Phase(128, 128 * 256 * 10)]
    ten = run_hours(base, 1, chip, 0.4, phases=steps)
    one = step_seconds(base, 256, 128, 1, chip, 0.4)
    assert ten * 3600 == pytest.approx(10 * one)


@pytest.fixture
def text(tmp_path):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the sea rose fell and .".split()
    tokenizer = BertTokenizer({word: at for at, word in enumerate(words)})
    texts = ["The sea rose. The sea fell and rose."] * 60
    files = write_token_files(texts, tokenizer, tmp_path / "text")
    return files, tokenizer


def settings_for(tokenizer, **changes):
    config = replace(SMALL, vocab_size=len(tokenizer.get_vocab()))
    options = dict(seq_length=8, batch_size=8, dtype="float32")
    return Pretraining(config, Length(steps=4), **(options | changes))


def test_a_second_phase_begins_with_the_first_ones_model(text, tmp_path):
    files, tokenizer = text
    dropped = settings_for(tokenizer)
    dropped = replace(
        dropped, model=replace(dropped.model, hidden_dropout_prob=0.1)
    )
    rows = PackedRows(files, 8, tokenizer)
    run = pretrain(
        dropped, rows, rows, tokenizer, tmp_path / "short", samples=[]
    )
    longer = replace(
        dropped, seq_length=64, initial=str(tmp_path / "short"), seed=1
    )
    objective = new_objective(longer)
    assert objective.training
    assert all(module.training for module in objective.modules())
    best = BertForMaskedLM.from_pretrained(tmp_path / "short").state_dict()
    for name, tensor in objective.model.state_dict().items():
        assert torch.equal(tensor, best[name]), name
    assert run.progress.step == 4

    wide = PackedRows(files, 64, tokenizer)
    batch = make_batch(
        wide, Pieces.of(tokenizer), Masking(), 0, 0, torch.arange(3).numpy()
    )
    assert (batch["labels"] != IGNORED).any()
    assert all(v.isfinite() for v in objective(batch).values())
    after = pretrain(
        longer, wide, wide, tokenizer, tmp_path / "long", samples=[]
    )
    assert after.progress.step == 4


@pytest.mark.parametrize(
    "change",
    [
        {"max_position_embeddings": 128},  # positions that are not there
        {"num_hidden_layers": 2},
        {"layer_norm": "pre"},
    ],
)
def test_a_second_phase_refuses_another_model(text, tmp_path, change):
    files, tokenizer = text
    first = settings_for(tokenizer)
    new_objective(first).model.save_pretrained(
        tmp_path / "first", tokenizer=tokenizer
    )
    other = replace(
        first,
        model=replace(first.model, **change),
        initial=str(tmp_path / "first"),
    )
    with pytest.raises((ValueError, CheckpointError)):
        new_objective(other)
