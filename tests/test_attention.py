"""Attention against other implementations, in values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertbook.attention import (
    SelfAttention,
    additive_mask,
    attend,
    attend_fast,
    attend_packed,
    attention_weights,
)
from bertbook.config import BertConfig

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
dtypes = st.sampled_from(list(TOLERANCE))
small = st.integers(1, 9)


def close(ours, theirs, tolerance=1e-5):
    """Equal up to `tolerance`, relative to the largest number."""
    assert ours.shape == theirs.shape
    scale = max(theirs.abs().max().item(), 1e-3)
    assert (ours.float() - theirs.float()).abs().max() <= tolerance * scale


def by_loops(query, key, value, mask):
    """The definition, one number at a time, in double precision."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1]).double()
    for i, q in enumerate(query.double()):
        powers = [
            math.exp((q @ k).item() / math.sqrt(len(q))) if allowed else 0.0
            for k, allowed in zip(key.double(), mask[i].tolist())
        ]
        for power, v in zip(powers, value.double()):
            out[i] += power / sum(powers) * v
    return out


@st.composite
def problems(draw):
    """Query, key, value, a mask or None, an upstream gradient, a dtype."""
    batch, heads, seq, keys, d_k, d_v = (draw(small) for _ in range(6))
    dtype, kind = (
        draw(dtypes),
        draw(st.sampled_from(["none", "2-D", "3-D"])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    mask = None
    upstream = random(batch, heads, seq, d_v)
    if kind != "none":
        rows = 1 if kind == "2-D" else seq
        chance = torch.rand(batch, 1, rows, keys, generator=generator)
        mask = chance < draw(st.sampled_from([0.0, 0.3, 0.9]))
        upstream = upstream * mask.any(-1, keepdim=True)
    size = draw(st.sampled_from([1.0, 10.0]))
    size = 1.0 if dtype == torch.bfloat16 else size
    query = size * random(batch, heads, seq, d_k)
    key = random(batch, heads, keys, d_k)
    return (
        query,
        key,
        random(batch, heads, keys, d_v),
        mask,
        upstream,
        dtype,
    )


def value_and_gradients(function, inputs, upstream):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    out.backward(upstream)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_both_paths_agree_in_value_and_gradient(problem):
    query, key, value, mask, upstream, dtype = problem
    inputs = (query, key, value)
    slow = value_and_gradients(
        lambda *t: attend(*t, mask)[0], inputs, upstream
    )
    fast = value_and_gradients(
        lambda *t: attend_fast(*t, mask), inputs, upstream
    )
    exact = value_and_gradients(
        lambda *t: attend(*t, mask)[0],
        [tensor.double() for tensor in inputs],
        upstream.double(),
    )
    for one, other, true in zip(slow, fast, exact):
        assert one.isfinite().all() and other.isfinite().all()
        scale = max(true.abs().max().item(), 1.0)
        error = 1e-4 if dtype == torch.float32 else 0.05
        for found in (one, other):
            assert (found - true).abs().max() <= error * scale
        assert (one.double() - other).abs().max() <= error * scale


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), small, small, small)
def test_the_formula_is_its_definition(seed, queries, keys, d_k):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(queries, d_k, generator=generator)
    key = torch.randn(keys, d_k, generator=generator)
    value = torch.randn(keys, 3, generator=generator)
    mask = torch.rand(queries, keys, generator=generator) < 0.6
    mask[:, 0] = True
    found, weights = attend(query, key, value, mask)
    close(found, by_loops(query, key, value, mask), 3e-6)
    assert (weights[~mask] == 0).all()
    close(weights.sum(-1), torch.ones(queries))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    small,
    small,
    st.integers(0, 10**6),
)
def test_packed_is_padded_without_the_padding(lengths, heads, d_k, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), 3, heads, d_k)
    projected = torch.randn(shape, generator=generator)
    present = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    upstream = torch.randn(sum(lengths), heads, d_k, generator=generator)

    def padded(projected):
        query_key_value = projected.permute(2, 0, 3, 1, 4)
        context, _ = attend(*query_key_value, present[:, None, None])
        return context.transpose(1, 2)[present]

    def packed(projected):
        return attend_packed(projected[present], lengths)

    expected = value_and_gradients(padded, [projected], upstream)
    for ours, theirs in zip(
        value_and_gradients(packed, [projected], upstream), expected
    ):
        assert (ours - theirs).abs().max() < 3e-5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_empty_rows_are_finite_and_the_same_on_both_paths(dtype, size):
    torch.manual_seed(0)
    query, key, value = (size * torch.randn(3, 2, 4, 7, 8)).to(dtype)
    mask = torch.zeros(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., :3] = True
    upstream = torch.ones_like(query)
    for function in (lambda *t: attend(*t, mask)[0], attend_fast):
        arguments = [query, key, value]
        if function is attend_fast:
            found = value_and_gradients(
                lambda *t: attend_fast(*t, mask), arguments, upstream
            )
        else:
            found = value_and_gradients(function, arguments, upstream)
        assert all(tensor.isfinite().all() for tensor in found)
        mean = value[0].float().mean(1, keepdim=True)
        close(found[0][0], mean.expand(4, 7, 8), TOLERANCE[dtype])
    weights = attention_weights(query, key, mask)
    assert (weights[0] == weights[0, 0, 0, 0]).all()
    assert (weights[1, ..., 3:] == 0).all()


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64])
def test_additive_mask_allows_zero_and_forbids_finitely(dtype):
    mask = torch.tensor([[True, False]])
    added = additive_mask(mask, dtype)
    assert added.dtype == dtype
    assert added.tolist() == [[0.0, torch.finfo(dtype).min]]


@pytest.mark.parametrize("size", [1e3, 1e18])
def test_large_scores_are_not_nan(size):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 5, 4)
    for found in (
        attend(size * query, key, value)[0],
        attend_fast(size * query, key, value),
    ):
        nearest = value[..., (query @ key.mT).argmax(-1).flatten(), :]
        close(found, nearest)


def test_dropout_spares_the_weights_returned_and_keeps_the_mean():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 6, 8)
    plain, weights = attend(query, key, value)
    many = torch.stack(
        [attend(query, key, value, dropout_p=0.5)[0] for _ in range(2000)]
    )
    _, returned = attend(query, key, value, dropout_p=0.5)
    assert torch.equal(returned, weights)
    assert not torch.allclose(many[0], plain, atol=1e-2)
    assert (many.mean(0) - plain).abs().max() < 0.08
    fast = torch.stack(
        [attend_fast(query, key, value, dropout_p=0.5) for _ in range(2000)]
    )
    assert (fast.mean(0) - plain).abs().max() < 0.08


def layer(**options):
    torch.manual_seed(0)
    return SelfAttention(
        BertConfig(hidden_size=32, num_attention_heads=4, **options)
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("three", [False, True])
def test_the_layer_is_torchs_multi_head_attention(
    implementation, asked, three
):
    ours = layer(attn_implementation=implementation).eval()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight = ours.query_key_value.weight
    theirs.in_proj_bias = ours.query_key_value.bias
    theirs.out_proj = ours.output
    hidden = torch.randn(3, 9, 32)
    if three:
        mask = torch.rand(3, 9, 9) < 0.6
        mask[..., 0] = True
        options = {"attn_mask": ~mask.repeat_interleave(4, 0)}
        mask = mask[:, None]
    else:
        mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
        options = {"key_padding_mask": ~mask}
        mask = mask[:, None, None]
    results = []
    for run in (
        lambda h: ours(h, mask, output_attentions=asked),
        lambda h: theirs(h, h, h, average_attn_weights=False, **options),
    ):
        leaf = hidden.clone().requires_grad_()
        ours.zero_grad()
        out, weights = run(leaf)
        out.pow(3).sum().backward()
        grads = [p.grad.clone() for p in ours.parameters()]
        results.append([out, leaf.grad, *grads, weights])
    *found, weights = results[0]
    for one, other in zip(found, results[1]):
        close(one, other)
    assert (weights is not None) == asked
    if asked:
        close(weights, results[1][-1])


@pytest.mark.parametrize("probability", [0, 0.5])
def test_dropout_is_for_training_only(probability):
    ours = layer(attention_probs_dropout_prob=probability)
    hidden = torch.randn(2, 9, 32)
    out = ours.eval()(hidden)[0]
    assert torch.equal(out, ours(hidden)[0])
    packed = ours(hidden.flatten(0, 1), lengths=[9, 9])[0]
    close(packed.unflatten(0, (2, 9)), out)
    trained = ours.train()(hidden)[0]
    assert torch.equal(trained, out) == (probability == 0)


def test_neighbours_in_a_batch_change_nothing():
    ours = layer().eval()
    hidden = torch.randn(3, 9, 32)
    mask = torch.arange(9) < torch.tensor([9, 4, 6])[:, None]
    out = ours(hidden, mask[:, None, None])[0]
    for row, length in enumerate([9, 4, 6]):
        alone = ours(hidden[row : row + 1, :length])[0][0]
        assert (out[row, :length] - alone).abs().max() < 1e-6
    turned = ours(hidden.flip(0), mask.flip(0)[:, None, None])[0]
    assert (turned.flip(0) - out).abs().max() < 1e-6


def test_lengths_that_do_not_sum_to_the_tokens_are_refused():
    projected = torch.randn(10, 3, 2, 4)
    with pytest.raises(RuntimeError, match="sum exactly to 10"):
        attend_packed(projected, [4, 5])


def test_the_boolean_kernel_would_answer_zeros():
    """Why the mask is additive: the two kinds differ on empty rows."""
    query, key, value = torch.randn(3, 1, 1, 4, 8)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    boolean = F.scaled_dot_product_attention(query, key, value, mask)
    assert (boolean == 0).all()
    assert not (attend_fast(query, key, value, mask) == 0).any()
