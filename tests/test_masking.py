"""Masking: ratios, whole words, and masks that depend on the address only.

The oracles are a row-by-row loop over the definitions, and the collator of
transformers.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.config import BertConfig
from bertbook.heads import BertForMaskedLM
from bertbook.losses import IGNORED
from bertbook.masking import (
    SPAN_LIMIT,
    SPAN_P,
    Masking,
    Pieces,
    choose_positions,
    draw_numbers,
    find_owners,
    mask_rows,
    rate_at,
    spread_labels,
)
from bertbook.objectives import Objective
from bertbook.tokenizer import BertTokenizer

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
WORDS = [f"w{n}" for n in range(300)] + [f"##p{n}" for n in range(100)]
TOKENIZER = BertTokenizer({name: n for n, name in enumerate(NAMES + WORDS)})
PIECES = Pieces.of(TOKENIZER)
FIRST, INNER = len(NAMES), len(NAMES) + 300  # of words, of ##pieces
VOCAB = len(NAMES) + len(WORDS)
UNITS = ("piece", "word", "span")
COUNTS = ("exact", "independent")


def text_rows(rows, seq, seed=0, pad=False):
    """[CLS] text [SEP], a quarter of it ##pieces, some rows padded."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(FIRST, INNER, (rows, seq))
    inner = draw.random((rows, seq)) < 0.25
    ids[inner] = draw.integers(INNER, VOCAB, inner.sum())
    ids[:, 0], ids[:, -1] = 2, 3
    if pad:
        for row in ids[: rows // 2]:
            end = draw.integers(2, seq)
            row[end - 1], row[end:] = 3, 0
    return torch.from_numpy(ids)


def mask(ids, masking, seed=0, epoch=0, first=0):
    return mask_rows(
        ids, PIECES, masking, seed, epoch, first + np.arange(len(ids))
    )


def near(share, wanted, count, spread=1.0):
    """Within 4.5 standard deviations of a binomial share."""
    room = 4.5 * spread * math.sqrt(wanted * (1 - wanted) / count)
    return abs(share - wanted) <= room + 1e-12


# The ratios, on 100,000 pieces


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_ratios_on_100_000_pieces(unit, count, rate):
    ids = text_rows(1000, 102)
    rows = mask(ids, Masking(rate, unit, count))
    labels = spread_labels(rows)
    asked = labels != IGNORED
    total = int(asked.sum())
    # pieces of one unit fall together, so coins for units spread more
    units = {"piece": 1, "word": 1.6, "span": 3}[unit]
    if count == "exact":
        assert (asked.sum(1) == round(100 * rate)).float().mean() > 0.99
    else:
        assert near(total / 100_000, rate, 100_000, units)
    now, true = rows.input_ids[asked], labels[asked]
    assert torch.equal(true, ids[asked])
    units = {"piece": 1, "word": 1, "span": 3}[unit]
    hidden, kept = now == PIECES.mask_id, now == true
    other = 1 / len(PIECES.ordinary)  # a random piece may be the same
    assert near(hidden.float().mean().item(), 0.8, total, units)
    wanted = 0.1 + 0.1 * other
    assert near(kept.float().mean().item(), wanted, total, units)


@pytest.mark.parametrize(
    "shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.2), (0.9, 0.1)]
)
def test_other_recipes(shares):
    ids = text_rows(1000, 102)
    rows = mask(ids, Masking(mask=shares[0], random=shares[1]))
    at = rows.labels != IGNORED
    now = rows.input_ids.gather(1, rows.positions)[at]
    hidden = (now == PIECES.mask_id).float().mean().item()
    kept = (now == rows.labels[at]).float().mean().item()
    assert near(hidden, shares[0], int(at.sum()))
    wanted = 1 - sum(shares) + shares[1] / len(PIECES.ordinary)
    assert near(kept, wanted, int(at.sum()))


def test_positions_and_random_pieces_are_uniform():
    ids = text_rows(4000, 34, seed=1)
    rows = mask(ids, Masking(mask=0.0, random=1.0))
    at = rows.labels != IGNORED
    counts = torch.bincount(rows.positions[at], minlength=34)[1:-1]
    assert counts.sum() == 4000 * 5
    deviation = (counts - counts.float().mean()).abs().max()
    assert deviation < 5 * math.sqrt(counts.float().mean())
    drawn = rows.input_ids.gather(1, rows.positions)[at]
    counts = torch.bincount(drawn, minlength=VOCAB)
    assert (counts[:FIRST] == 0).all()  # neither special nor unused
    usual = counts[FIRST:].float().mean()
    assert (counts[FIRST:] - usual).abs().max() < 5 * math.sqrt(usual)


# The same masks for the same address


@pytest.mark.parametrize("unit", UNITS)
def test_batches_order_ranks_and_workers_change_nothing(unit):
    ids = text_rows(60, 32, pad=True)
    everything = mask(ids, Masking(unit=unit))
    order = np.random.default_rng(1).permutation(60)
    for size in (1, 7, 60):
        for part in np.split(order, range(size, 60, size)):
            some = mask_rows(
                ids[part], PIECES, Masking(unit=unit), 0, 0, part
            )
            for one, whole in zip(some, everything):
                assert torch.equal(one, whole[part])
    for rank in range(3):  # every third row
        part = np.arange(rank, 60, 3)
        some = mask_rows(ids[part], PIECES, Masking(unit=unit), 0, 0, part)
        assert torch.equal(some.input_ids, everything.input_ids[part])


def test_every_part_of_the_address_counts():
    ids = text_rows(50, 64)
    seen = [
        mask(ids, Masking(), seed, epoch, first).input_ids
        for seed, epoch, first in (
            (0, 0, 0),
            (1, 0, 0),
            (0, 1, 0),
            (0, 0, 50),
        )
    ]
    for n, one in enumerate(seen):
        for other in seen[n + 1 :]:
            assert (one != other).any(1).all()


IN_ANOTHER_PROCESS = """
import sys, zlib
from multiprocessing import get_context
sys.path.insert(0, sys.argv[1])
import test_masking as t

if __name__ == "__main__":
    print(t.digest_of_masks(range(0, 40)))
    with get_context("spawn").Pool(2) as pool:
        print(*pool.map(t.digest_of_masks, [range(0, 20), range(20, 40)]))
"""


def digest_of_masks(rows):
    import zlib

    ids = text_rows(40, 32, pad=True)
    examples = np.array(rows)
    masked = mask_rows(ids[examples], PIECES, Masking(), 5, 9, examples)
    return [zlib.crc32(row.numpy().tobytes()) for row in masked.input_ids]


def test_other_processes_draw_the_same(tmp_path):
    script = tmp_path / "draw.py"
    script.write_text(IN_ANOTHER_PROCESS)
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    mine = digest_of_masks(range(40))
    alone, workers = done.stdout.splitlines()
    assert alone == str(mine)
    assert workers == f"{mine[:20]} {mine[20:]}"


def test_masks_stay_what_they_are():
    """A change here changes what every seed means."""
    numbers = draw_numbers(3, 1, np.array([7, 2**40]), 4)
    key = np.random.Philox(key=3, counter=[0, 0, 7, 1])
    oracle = np.random.Generator(key).random((4, 4), np.float32)
    assert np.array_equal(numbers[:, 0], oracle)
    assert not torch.equal(numbers[:, 0], numbers[:, 1])


# The definitions, row by row


def words_of(row):
    """The words of a row of ids, as lists of positions."""
    words, special = [], True
    for place, number in enumerate(row):
        inner = number >= INNER and not special
        words[-1].append(place) if inner else words.append([place])
        special = number < FIRST - 1
    return words


def naive(row, masking, numbers):
    """What is asked for in one row, by loops over its units."""
    score, _, _, length = numbers
    ordinary = [p for p in range(len(row)) if row[p] >= FIRST - 1]
    words = words_of(row)
    units = [[p] for p in range(len(row))]
    if masking.unit == "word":
        units = words
    elif masking.unit == "span":
        q = 1 - SPAN_P
        units, left, k = [], 0, 0
        for word in words:
            fresh = left == 0
            if fresh:
                u = length[k] * (1 - q**SPAN_LIMIT)
                left = math.ceil(np.float32(np.log1p(-u) / np.log(q)))
                left, k = min(max(left, 1), SPAN_LIMIT), k + 1
            left -= 1
            alone = (
                word[0] not in ordinary
                or units
                and (units[-1][0] not in ordinary)
            )
            units.append(list(word)) if fresh or alone or not units else (
                units[-1].extend(word)
            )
    units = [unit for unit in units if unit[0] in ordinary]
    if masking.count == "independent":
        chosen = [u for u in units if score[u[0]] < masking.rate]
        return sorted(sum(chosen, []))
    wanted = min(len(ordinary), max(1, round(len(ordinary) * masking.rate)))
    line = sum(sorted(units, key=lambda u: score[u[0]]), [])
    asked = line[:wanted]
    if masking.unit != "piece" and wanted:
        last = next(word for word in words if asked[-1] in word)
        if not set(last) <= set(asked):
            rest = [p for p in asked if p not in last]
            single = [p for p in line[wanted:] if [p] in words]
            whole = rest + single[: wanted - len(rest)]
            asked = whole or asked
    return sorted(asked)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("count", COUNTS)
def test_agrees_with_loops_over_the_units(unit, count):
    for seed, (seq, rate) in enumerate(((12, 0.4), (40, 0.15), (64, 0.3))):
        ids = text_rows(80, seq, seed, pad=True)
        rows = mask(ids, Masking(rate, unit, count), seed)
        numbers = draw_numbers(seed, 0, np.arange(80), seq).numpy()
        for n in range(80):
            valid = rows.labels[n] != IGNORED
            found = sorted(rows.positions[n][valid].tolist())
            wanted = naive(
                ids[n].tolist(), Masking(rate, unit, count), numbers[:, n]
            )
            assert found == wanted, (seed, n)


@pytest.mark.parametrize("unit", ("word", "span"))
@pytest.mark.parametrize("count", COUNTS)
def test_whole_words_are_whole(unit, count):
    ids = text_rows(300, 64)
    asked = spread_labels(mask(ids, Masking(0.15, unit, count))) != IGNORED
    for row, hidden in zip(ids.tolist(), asked.tolist()):
        for word in words_of(row):
            assert len({hidden[place] for place in word}) == 1


def test_a_word_longer_than_the_count_is_cut():
    ids = torch.tensor([[2, FIRST, *[INNER] * 9, 3]])
    rows = mask(ids, Masking(0.15, "word"))
    assert (rows.labels != IGNORED).sum() == round(10 * 0.15)


def test_spans_share_what_is_shown():
    ids = text_rows(500, 64)
    rows = mask(ids, Masking(0.3, "span", "independent"))
    numbers = draw_numbers(0, 0, np.arange(500), 64)
    units = find_owners(ids, PIECES, "span", numbers[3]).units
    kind = torch.full((500, 64), -1)
    asked = spread_labels(rows) != IGNORED
    kind[asked & (rows.input_ids == PIECES.mask_id)] = 0
    kind[asked & (rows.input_ids == ids)] = 1
    kind[asked & (kind < 0)] = 2
    for row, owner in zip(kind, units):
        for unit in owner.unique():
            shown = set(row[owner == unit].tolist())
            # a random piece may happen to be the right one
            assert len(shown) == 1 or shown == {1, 2}


# Specials, widths, labels


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(
        st.lists(st.integers(0, VOCAB - 1), min_size=9, max_size=9),
        min_size=1,
        max_size=6,
    ),
    unit=st.sampled_from(UNITS),
    count=st.sampled_from(COUNTS),
    rate=st.floats(0.01, 1),
    shares=st.sampled_from([(0.8, 0.1), (0.0, 1.0), (1.0, 0.0)]),
    seed=st.integers(0, 2**64),
)
def test_never_a_special_token(ids, unit, count, rate, shares, seed):
    """Whatever stands in a row, [PAD] and [SEP] in its midst included."""
    ids = torch.tensor(ids)
    rows = mask(ids, Masking(rate, unit, count, *shares), seed)
    valid = rows.labels != IGNORED
    assert not PIECES.special[rows.labels[valid]].any()
    changed = rows.input_ids != ids
    put_in = rows.input_ids[changed]
    put_in = put_in[put_in != PIECES.mask_id]
    assert torch.isin(put_in, PIECES.ordinary).all()
    labels = spread_labels(rows)
    assert (labels[changed] == ids[changed]).all()
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
    sorted_positions = rows.positions.sort(1).values
    assert (sorted_positions.diff(dim=1) > 0).all()  # each place once
    ordinary = (~PIECES.special[ids]).sum(1)
    if count == "exact":
        assert rows.positions.shape[1] == max(1, round(9 * rate))
        assert ((valid.sum(1) > 0) == (ordinary > 0)).all()
        if unit == "piece":
            for has, found in zip(ordinary.tolist(), valid.sum(1).tolist()):
                assert found == min(has, max(1, round(has * rate)))


@given(seq=st.integers(1, 200), rate=st.floats(0.001, 1))
@settings(max_examples=100, deadline=None)
def test_static_width_holds_all_that_is_wanted(seq, rate):
    score = torch.rand(3, seq)
    score[1, seq // 2 :] = 2
    words = torch.arange(seq).expand(3, seq)
    at, chosen = choose_positions(score, words, Masking(rate))
    assert at.shape == chosen.shape == (3, max(1, round(seq * rate)))
    for row, kept in zip(score, chosen):
        has = int((row < 2).sum())
        assert kept.sum() == min(has, max(1, round(has * rate)))


def test_no_rows_and_rows_of_padding():
    for count in COUNTS:
        empty = mask(
            torch.zeros(0, 8, dtype=torch.long), Masking(count=count)
        )
        assert empty.positions.shape[0] == 0
        padding = torch.zeros(2, 8, dtype=torch.long)
        rows = mask(padding, Masking(count=count, unit="word"))
        assert torch.equal(rows.input_ids, padding)
        assert (rows.labels == IGNORED).all()


def test_padding_of_published_vocabularies_is_not_put_in():
    names = {name: 2 * n for n, name in enumerate(NAMES + WORDS)}  # gaps
    pieces = Pieces.of(BertTokenizer(names))
    assert names["[unused0]"] not in pieces.ordinary.tolist()
    assert not pieces.special[names["[unused0]"]]
    assert set(pieces.ordinary.tolist()) == {names[word] for word in WORDS}


# transformers


def test_in_distribution_as_the_collator():
    transformers = pytest.importorskip("transformers")
    collator = transformers.DataCollatorForLanguageModeling(
        _their_tokenizer(transformers), seed=3
    )
    ids = text_rows(1000, 102)
    special = PIECES.special[ids]
    theirs, labels = collator.torch_mask_tokens(
        ids.clone(), special_tokens_mask=special
    )
    rows = mask(ids, Masking(count="independent"))
    ours = rows.input_ids, spread_labels(rows)
    for masked, found in (ours, (theirs, labels)):
        asked = found != IGNORED
        assert not (asked & special).any()
        assert torch.equal(found[asked], ids[asked])
        assert torch.equal(masked[~asked], ids[~asked])
        total = int(asked.sum())
        assert near(total / 100_000, 0.15, 100_000)
        spread = asked.sum(1).float().var().item()  # of 100 coins
        assert abs(spread - 100 * 0.15 * 0.85) < 3
        hidden = (masked == PIECES.mask_id)[asked].float().mean().item()
        kept = (masked == ids)[asked].float().mean().item()
        assert near(hidden, 0.8, total) and near(kept, 0.1, total)


def _their_tokenizer(transformers):
    vocab = {name: n for n, name in enumerate(NAMES + WORDS)}
    return transformers.BertTokenizer(vocab=vocab)


@pytest.mark.parametrize("unit", UNITS)
def test_spread_labels_give_the_loss_of_the_sparse_path(unit):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    model = BertForMaskedLM(config).eval()
    ids = text_rows(8, 32, pad=True)
    rows = mask(ids, Masking(unit=unit))
    present = (ids != 0).long()
    batch = rows._asdict() | {"attention_mask": present}
    count = (rows.labels != IGNORED).sum()
    sparse = Objective(model)(batch)["mlm"] / count
    dense = model(
        rows.input_ids, attention_mask=present, labels=spread_labels(rows)
    ).loss
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)


# Settings


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": 15.0}, "rate=15.0"),
        ({"rate": math.nan}, "rate=nan"),
        ({"unit": "words"}, "unit='words'"),
        ({"count": "all"}, "count='all'"),
        ({"mask": 0.9, "random": 0.2}, "mask=0.9"),
        ({"random": -0.1}, "random=-0.1"),
        ({"mask": math.nan}, "mask=nan"),
    ],
)
def test_bad_settings_are_one_sentence(wrong, named):
    with pytest.raises(ValueError, match="give") as caught:
        Masking(**wrong)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_shares_that_sum_to_one_by_rounding_are_fine():
    assert 0.7 + 0.2 + 0.1 != 1  # so is what follows, near enough
    Masking(mask=0.7 + 0.2, random=0.1)
    Masking(mask=1.0, random=0.0)


def test_a_vocabulary_without_mask_is_refused():
    class Bare:
        mask_token = "[MASK]"

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(ValueError, match=r"no \[MASK\]; train it"):
        Pieces.of(Bare())


def test_the_rate_falls_in_a_line():
    rates = [rate_at(n / 10, 0.3, 0.15) for n in range(11)]
    assert rates[0] == 0.3 and abs(rates[-1] - 0.15) < 1e-12
    assert np.allclose(np.diff(rates), -0.015)
    assert rate_at(-1.0, 0.3, 0.15) == 0.3
