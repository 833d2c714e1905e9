"""Optimizers, groups, clipping, schedules and the ends of runs."""

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bertbook.config import BertConfig
from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.optimization import (
    OPTIMIZERS,
    BertAdam,
    Length,
    Optimization,
    make_optimizers,
    parameter_kinds,
    set_rates,
    take_step,
    warmup_linear,
)

TINY = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
)


def walk(make, steps=40, dtype=torch.float64, size=1.0):
    """A matrix after each step along the same random gradients."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=dtype)
    weight = nn.Parameter(weight)
    optimizer, places = make([weight]), []
    for _ in range(steps):
        noise = torch.randn(4, 3, generator=generator, dtype=dtype)
        weight.grad = noise * size
        optimizer.step()
        places.append(weight.detach().clone())
    return torch.stack(places)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.98), (0.0, 0.5)])
@pytest.mark.parametrize("size", [1e-7, 1.0, 1e3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_correction_it_is_adamw(betas, size, decay):
    options = dict(lr=0.02, betas=betas, eps=1e-8, weight_decay=decay)
    ours = walk(
        lambda p: BertAdam(p, correct_bias=True, **options), size=size
    )
    theirs = walk(lambda p: torch.optim.AdamW(p, **options), size=size)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_with_correction_it_is_adamw_in_float32():
    options = dict(lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01)
    ours, theirs = (
        walk(make, 200, torch.float32)
        for make in (
            lambda p: BertAdam(p, correct_bias=True, **options),
            lambda p: torch.optim.AdamW(p, fused=True, **options),
        )
    )
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_without_correction_it_is_the_published_update():
    rate, first, second, eps, decay = 0.02, 0.9, 0.999, 1e-6, 0.1
    ours = walk(
        lambda p: BertAdam(p, rate, (first, second), eps, decay), size=1e-5
    )

    class Published:
        """google-research/bert, optimization.py, in its order."""

        def __init__(self, params):
            self.weight = params[0]
            self.m = self.v = 0.0

        def step(self):
            gradient = self.weight.grad
            self.m = first * self.m + (1 - first) * gradient
            self.v = second * self.v + (1 - second) * gradient**2
            update = self.m / (self.v**0.5 + eps)
            update = update + decay * self.weight.data
            self.weight.data = self.weight.data - rate * update

    assert torch.allclose(ours, walk(Published, size=1e-5), atol=1e-12)


@given(st.floats(0, 0.99), st.floats(0, 0.9999))
def test_the_first_step_without_correction(first, second):
    options = dict(lr=1.0, betas=(first, second), eps=0.0, weight_decay=0.0)
    steps = []
    for correct in (False, True):
        weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        weight.grad = torch.tensor([3.0, -0.2], dtype=torch.float64)
        BertAdam([weight], correct_bias=correct, **options).step()
        steps.append(weight.detach())
    factor = (1 - first) / math.sqrt(1 - second)
    assert torch.allclose(steps[0], factor * steps[1], rtol=1e-9)


def test_a_state_that_is_loaded_goes_on_bit_for_bit():
    def run(stop=None):
        torch.manual_seed(0)
        model = BertForMaskedLM(TINY).eval()
        optimizers = make_optimizers(model, Optimization("bert_adam"))
        for step in range(6):
            if step == stop:
                saved = [each.state_dict() for each in optimizers]
                optimizers = make_optimizers(
                    model, Optimization("bert_adam")
                )
                for each, state in zip(optimizers, saved):
                    each.load_state_dict(state)
            ids = torch.arange(step, step + 8)[None]
            model(ids, labels=ids).loss.backward()
            take_step(model, optimizers, 1.0)
        return model.state_dict()

    whole, resumed = run(), run(stop=3)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_kinds_share_out_every_parameter_once():
    model = BertForPreTraining(TINY)
    kinds = parameter_kinds(model)
    shared = [id(p) for members in kinds.values() for p in members]
    assert sorted(shared) == sorted(id(p) for p in model.parameters())
    tables = [
        model.bert.embeddings.tokens.weight,
        model.bert.embeddings.positions.weight,
    ]
    found = {id(p) for p in kinds["tables"]}
    assert {id(table) for table in tables} < found and len(found) == 3
    assert all(p.ndim == 1 for p in kinds["vectors"])
    assert all(p.ndim == 2 for p in kinds["matrices"])


def test_frozen_parameters_are_left_out():
    model = BertForMaskedLM(TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = model.bert.encoder.layers[0]
    frozen.requires_grad_(False)
    optimizers = make_optimizers(model, Optimization())
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()
    take_step(model, optimizers, 1.0)
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same == ("layers.0." in name), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matrices_decay_except_in_berts_own(name):
    """With gradients of zero the decay is all that moves."""
    torch.manual_seed(0)
    model = BertForPreTraining(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    settings = Optimization(name, weight_decay=0.5)
    kinds = parameter_kinds(model)
    before = {k: [p.clone() for p in v] for k, v in kinds.items()}
    take_step(model, make_optimizers(model, settings), None)
    rate = 2e-3 if name != "muon" else 0.02
    for kind, members in kinds.items():
        decays = kind == "matrices"
        decays |= kind == "tables" and name == "bert_adam"
        kept = 1 - rate * 0.5 if decays else 1
        for parameter, old in zip(members, before[kind]):
            assert torch.allclose(parameter, old * kept, atol=1e-6), kind


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = BertForMaskedLM(TINY)
    muon, adamw = make_optimizers(model, Optimization())
    assert isinstance(muon, torch.optim.Muon)
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    matrices = parameter_kinds(model)["matrices"]
    assert taken == {id(p) for p in matrices}
    assert adamw.param_groups[0]["fused"]
    ids = torch.arange(16)[None]
    model(ids, labels=ids).loss.backward()
    before = [p.detach().clone() for p in matrices]
    muon.step()
    for old, new in zip(before, matrices):
        scale = 0.02 * max(1, new.shape[0] / new.shape[1]) ** 0.5
        step = (old * (1 - 0.02 * 0.01) - new.detach()) / scale
        found = torch.linalg.svdvals(step)
        assert found.max() < 1.3  # whatever the gradient's were
        gradient = torch.linalg.svdvals(new.grad)
        loud = gradient / gradient.norm() > 0.01
        assert found[: loud.sum()].min() > 0.5


def test_rates_follow_the_peaks():
    model = BertForMaskedLM(TINY)
    optimizers = make_optimizers(model, Optimization())
    for factor in (0.3, 0.7, 0.1):
        set_rates(optimizers, factor)
        rates = [g["lr"] for each in optimizers for g in each.param_groups]
        assert rates == [0.02 * factor, 2e-3 * factor, 2e-3 * factor]


@given(st.integers(2, 500), st.data())
def test_the_schedule_is_that_of_transformers(total, data):
    warm = data.draw(st.integers(0, total - 1))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_linear_schedule_with_warmup(
        optimizer, warm, total
    ).lr_lambdas[0]
    for step in range(total + 1):
        ours = warmup_linear(step / total, warm / total)
        assert math.isclose(ours, theirs(step), abs_tol=1e-9)


@pytest.mark.parametrize("limit", [0.01, 1.0, 1e9, None])
def test_clipping_keeps_the_direction(limit):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    gradient = [torch.randn_like(p) * 10 for p in model.parameters()]
    for parameter, value in zip(model.parameters(), gradient):
        parameter.grad = value.clone()
    norm = math.sqrt(sum((g**2).sum().item() for g in gradient))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert math.isclose(
        take_step(model, [optimizer], limit), norm, rel_tol=1e-6
    )
    share = 1 if limit is None else min(1, limit / norm)
    for parameter, old, value in zip(model.parameters(), before, gradient):
        assert torch.allclose(parameter, old - share * value, atol=1e-5)


@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_step_along_what_is_no_number(value, limit):
    weight = nn.Linear(2, 2, bias=False)
    before = weight.weight.detach().clone()
    weight.weight.grad = torch.full((2, 2), value)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    with pytest.raises(FloatingPointError, match="no step was taken"):
        take_step(weight, [optimizer], limit)
    assert torch.equal(weight.weight, before)


@pytest.mark.parametrize(
    "name, values",
    [
        ("optimizer", ["adam", None, 3]),
        ("learning_rate", [0, -1e-3, math.nan, math.inf, "1e-3", None]),
        ("muon_learning_rate", [0.0, None]),
        ("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9), 0.9, (0.9, 0.9, 0.9)]),
        ("eps", [0.0, -1e-8]),
        ("weight_decay", [-0.1, math.inf, None]),
        ("clip_norm", [0.0, -1.0, "1"]),
        ("warmup", [-0.1, 1.0, 500, None]),
    ],
)
def test_settings_that_do_not_fit_are_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}=.*; give "):
            Optimization(**{name: value})


def test_settings_that_fit():
    Optimization(clip_norm=None, warmup=0, weight_decay=0, betas=(0, 0.5))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps": 0},
        {"minutes": -1.0},
        {"tokens": math.inf},
        {"steps": 3, "tokens": 3},
        {"steps": 1, "tokens": 1, "minutes": 1},
    ],
)
def test_a_length_is_exactly_one(given):
    with pytest.raises(ValueError, match="give exactly one of them"):
        Length(**given)


@given(st.sampled_from(["steps", "tokens", "minutes"]), st.integers(1, 99))
def test_progress_grows_from_0_to_1(name, end):
    length = Length(**{name: end})
    factor = 60 if name == "minutes" else 1
    nothing = {"steps": 7, "tokens": 7, "seconds": 7.0}
    key = "seconds" if name == "minutes" else name
    found = [
        length.progress(**nothing | {key: factor * at})
        for at in range(end + 2)
    ]
    assert found[0] == 0 and found[-2:] == [1, 1]
    assert found == sorted(found)
    assert math.isclose(found[end // 2], end // 2 / end)
