"""Pairs of sentences, against the rules of the published generators."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.config import BertConfig
from bertbook.heads import BertForPreTraining
from bertbook.masking import MaskedRows, Masking, Pieces, spread_labels
from bertbook.objectives import make_batch
from bertbook.sentence_pairs import (
    Documents,
    PairRows,
    Span,
    chunk_end,
    document_generator,
    next_sentence_pairs,
    pair_table,
    sentence_order_pairs,
    target_length,
    truncate_pair,
)
from bertbook.token_files import TokenFiles, write_token_files
from bertbook.tokenizer import BertTokenizer

WORDS = [f"w{n}" for n in range(90)]
VOCAB = {
    piece: n
    for n, piece in enumerate(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    )
}


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(VOCAB)


def in_memory(corpus, per_shard):
    """Token files of documents that are lists of sentence lengths."""
    files = TokenFiles.__new__(TokenFiles)
    files.folder, files.shards = "memory", []
    for begin in range(0, len(corpus), per_shard):
        ids, sentences, first = [], [], []
        for document in corpus[begin : begin + per_shard]:
            first.append(len(sentences))
            for length in document:
                sentences.append(len(ids))
                ids += [6] * length
            ids.append(VOCAB["[SEP]"])
        files.shards.append(
            {
                "ids": np.array(ids, np.uint16),
                "sentences": np.array([*sentences, len(ids)], np.int64),
                "documents": np.array([*first, len(sentences)], np.int64),
            }
        )
    return files


def places_of(corpus, per_shard):
    """Each document's sentences as spans, counted one by one."""
    spans = []
    for number, document in enumerate(corpus):
        shard, at = divmod(number, per_shard)
        if at == 0:
            stop = 0
        row = []
        for length in document:
            row.append(Span(shard, stop, stop + length))
            stop += length
        spans.append(row)
        stop += 1
    return spans


corpora = st.lists(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    min_size=2,
    max_size=7,
)
shard_sizes = st.integers(1, 7)
seeds = st.integers(0, 2**32)


def joined(sentences):
    return Span(sentences[0].shard, sentences[0].start, sentences[-1].stop)


def take(sentences, target, least=1):
    """The first sentences, one by one, until they reach the target."""
    chunk, length = [], 0
    for sentence in sentences:
        if length >= target and len(chunk) >= least:
            break
        chunk.append(sentence)
        length += sentence.stop - sentence.start
    return chunk


@given(corpora, shard_sizes)
def test_sentences_are_where_they_were_put(corpus, per_shard):
    documents = Documents(in_memory(corpus, per_shard))
    assert len(documents) == len(corpus)
    for number, spans in enumerate(places_of(corpus, per_shard)):
        shard, bounds = documents.bounds(number)
        found = [Span(shard, *b) for b in zip(bounds, bounds[1:])]
        assert found == spans


@given(corpora, st.integers(-3, 70), st.integers(1, 3))
def test_a_chunk_ends_where_counting_ends_it(corpus, target, least):
    documents = Documents(in_memory(corpus, 9))
    for number, spans in enumerate(places_of(corpus, 9)):
        bounds = documents.bounds(number)[1]
        for first in range(len(spans)):
            end = chunk_end(bounds, first, target, least)
            assert spans[first:end] == take(spans[first:], target, least)


@given(corpora, shard_sizes, st.integers(1, 60), seeds)
@settings(max_examples=300)
def test_next_sentence_pairs_keep_the_rules(
    corpus, per_shard, target, seed
):
    """Replays a document: order, put back, other documents, lengths."""
    documents = Documents(in_memory(corpus, per_shard))
    spans = places_of(corpus, per_shard)
    for number, own in enumerate(spans):
        draw = document_generator(seed, 0, number)
        left = list(own)
        for a, b, label in next_sentence_pairs(
            documents, number, target, draw
        ):
            chunk = take(left, target)
            ends = [each.stop for each in chunk]
            assert a.shard == chunk[0].shard
            assert a.start == chunk[0].start and a.stop in ends
            split = ends.index(a.stop) + 1
            if label == 0:
                assert b == joined(chunk[split:])
                left = left[len(chunk) :]
                continue
            assert label == 1
            assert split < len(chunk) or len(chunk) == 1
            rest = target - (a.stop - a.start)
            possible = [
                joined(take(other[first:], rest))
                for place, other in enumerate(spans)
                if place != number
                for first in range(len(other))
            ]
            assert b in possible
            left = left[split:]
        assert not left


@given(corpora, shard_sizes, st.integers(1, 60), seeds)
@settings(max_examples=200)
def test_sentence_order_pairs_keep_the_rules(
    corpus, per_shard, target, seed
):
    documents = Documents(in_memory(corpus, per_shard))
    spans = places_of(corpus, per_shard)
    for number, own in enumerate(spans):
        draw = document_generator(seed, 0, number)
        pairs = list(sentence_order_pairs(documents, number, target, draw))
        if len(own) == 1:
            assert pairs == []
            continue
        at = 0
        for a, b, label in pairs:
            before, after = (b, a) if label else (a, b)
            assert before.stop == after.start
            first = at - (at == len(own) - 1)  # a lone one takes another
            chunk = take(own[first:], target, 2)
            assert (before.start, after.stop) == joined(chunk)[1:]
            assert before.stop in [each.stop for each in chunk[:-1]]
            at = first + len(chunk)
        assert at == len(own)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(2, 90), seeds)
def test_truncation_takes_from_the_longer(first, second, room, seed):
    a, b = Span(0, 7, 7 + first), Span(3, 90, 90 + second)
    new = truncate_pair(a, b, room, np.random.default_rng(seed))
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    assert [each.stop - each.start for each in new] == [first, second]
    for old, cut in zip((a, b), new):
        assert old.shard == cut.shard
        assert old.start <= cut.start and cut.stop <= old.stop


def test_truncation_from_the_front_is_a_coin_for_each_piece():
    draw = np.random.default_rng(0)
    a, b = Span(0, 0, 16), Span(0, 20, 24)
    cut = [truncate_pair(a, b, 16, draw)[0].start for _ in range(16000)]
    expected = np.array([1, 4, 6, 4, 1]) * 1000
    assert np.abs(np.bincount(cut) - expected).max() < 150


def large_corpus(seed=0, count=3000):
    draw = np.random.default_rng(seed)
    return [
        draw.integers(3, 30, draw.integers(4, 25)).tolist()
        for _ in range(count)
    ]


def test_shares_over_many_documents():
    """Half of the coins are heads, and a tenth of the targets short."""
    files = in_memory(large_corpus(), 500)
    documents, coins, short = Documents(files), [], []
    for number in range(len(documents)):
        draw = document_generator(1, 0, number)
        target = target_length(61, 0.1, draw)
        short.append(target < 61)
        bounds = documents.bounds(number)[1]
        for a, _, label in next_sentence_pairs(
            documents, number, target, draw
        ):
            first = bounds.index(a.start)
            if chunk_end(bounds, first, target) > first + 1:
                coins.append(label)
            else:
                assert label == 1
    assert abs(np.mean(coins) - 0.5) < 0.02
    assert abs(np.mean(short) - 0.1 * 59 / 60) < 0.02
    sop = pair_table(files, 64, 1, 0, "sop")
    assert abs(sop[:, 6].mean() - 0.5) < 0.02
    table = pair_table(files, 64, 1, 0)
    others = table[table[:, 6] == 1]
    shares = np.bincount(others[:, 3]) / len(others)
    assert np.abs(shares - 1 / 6).max() < 0.02  # from every shard


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("seq_length", [5, 16, 64])
def test_a_table_is_a_function_of_seed_and_epoch(objective, seq_length):
    corpus = large_corpus(count=60)
    files = in_memory(corpus, 25)
    table = pair_table(files, seq_length, 3, 4, objective)
    again = pair_table(in_memory(corpus, 25), seq_length, 3, 4, objective)
    assert table.dtype == np.int32 and np.array_equal(table, again)
    for seed, epoch in ((3, 5), (4, 4), (4, 3)):
        other = pair_table(files, seq_length, seed, epoch, objective)
        assert not np.array_equal(table, other)
    lengths = table[:, [2, 5]] - table[:, [1, 4]]
    assert lengths.min() >= 1
    assert lengths.sum(axis=1).max() <= seq_length - 3


def test_no_short_pairs_and_only_short_ones():
    files = in_memory([[2] * 40] * 30, 30)
    full = pair_table(files, 23, 0, 0, short=0.0)
    lengths = (full[:, [2, 5]] - full[:, [1, 4]]).sum(axis=1)
    inside = full[:, 2] % 81 < 60  # far from a document's end
    inside &= (full[:, 5] % 81 < 80) & (full[:, 4] % 81 < 60)
    assert (lengths[inside] == 20).all() and inside.sum() > 30
    short = pair_table(files, 23, 0, 0, short=1.0)
    assert len(short) > 1.5 * len(full)


TEXTS = [
    "w1 w2 w3. w4 w5 w6 w7. w8. w9 w1.",
    " ",
    "w11 w12. w13 w14 w15 w16. w17 w18.",
    "",
    "w21 w22 w23. w24 w25.",
    "w31.",
    "w41 w42 w43 w44. w45 w46 w47. w48 w49 w41 w42.",
]
TEXTS = [text.upper() for text in TEXTS]  # a capital begins a sentence


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("pairs")
    return write_token_files(TEXTS, tokenizer, folder, shard_size=3)


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_rows_are_the_tokenizers(files, tokenizer, objective):
    """No [SEP] and no neighbour's word in a segment, and equal rows."""
    source = PairRows(files, 16, tokenizer, 5, objective)
    for epoch in range(20):
        table = source.table(epoch)
        rows = source.rows(epoch, np.arange(source.count(epoch)))
        assert all(each.dtype == np.int64 for each in rows.values())
        labels = rows["next_sentence_label"]
        assert np.array_equal(labels, table[:, 6])
        for number, pair in enumerate(table.tolist()):
            texts = []
            for shard, start, stop in (pair[:3], pair[3:6]):
                ids = files.shards[shard]["ids"][start:stop].tolist()
                assert min(ids) >= VOCAB["."]
                pieces = tokenizer.convert_ids_to_tokens(ids)
                texts.append(" ".join(pieces))
                words = {int(p[1:]) // 10 for p in pieces if p != "."}
                assert len(words) == 1  # of one document
            expected = tokenizer(
                *texts, padding="max_length", max_length=16
            )
            for name, values in expected.items():
                assert rows[name][number].tolist() == values


def test_rows_do_not_depend_on_the_batch(files, tokenizer):
    source = PairRows(files, 16, tokenizer)
    count = source.count(2)
    whole = source.rows(2, np.arange(count))
    order = np.random.default_rng(0).permutation(count)
    fresh = PairRows(files, 16, tokenizer)
    for rank in range(2):  # as two processes share a batch
        mine = order[rank::2]
        fresh.rows(1, np.array([0]))  # another epoch between
        part = fresh.rows(2, mine)
        for name, values in part.items():
            assert np.array_equal(values, whole[name][mine])


def test_what_gives_no_pairs_is_refused(tmp_path, tokenizer, files):
    def made(texts):
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        return write_token_files(texts, tokenizer, tmp_path / "made")

    for texts in (TEXTS[:1], TEXTS[:2], TEXTS[:1] + ["", " "]):
        one = made(texts)
        with pytest.raises(ValueError, match="holds 1 document"):
            PairRows(one, 16, tokenizer)
        assert PairRows(one, 16, tokenizer, objective="sop").count(0)
    for objective in ("nsp", "sop"):
        with pytest.raises(ValueError, match="no document of two"):
            PairRows(
                made(["W1.", "W2.", "W3."]),
                16,
                tokenizer,
                objective=objective,
            )
    with pytest.raises(ValueError, match="give one of nsp, sop"):
        PairRows(files, 16, tokenizer, objective="mlm")
    with pytest.raises(ValueError, match="seq_length=4"):
        PairRows(files, 4, tokenizer)
    with pytest.raises(ValueError, match="short=1.5"):
        PairRows(files, 16, tokenizer, short=1.5)


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_masks_and_pairs_train_together(files, tokenizer, objective):
    source = PairRows(files, 16, tokenizer, objective=objective)
    examples = np.arange(source.count(0))
    pieces = Pieces.of(tokenizer)
    batch = make_batch(source, pieces, Masking(), 0, 0, examples)
    plain = source.rows(0, examples)
    changed = batch["input_ids"].numpy() != plain["input_ids"]
    assert changed.any()
    assert not (changed & (plain["input_ids"] < VOCAB["."])).any()

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = BertForPreTraining(config)
    hidden = MaskedRows(*(batch[name] for name in MaskedRows._fields))
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
        labels=spread_labels(hidden),
        next_sentence_label=batch["next_sentence_label"],
    )
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert set(batch["next_sentence_label"].tolist()) == {0, 1}
    scores = outputs.seq_relationship_logits.detach().requires_grad_()
    torch.nn.functional.cross_entropy(
        scores, batch["next_sentence_label"]
    ).backward()
    # Both labels teach: a clone that ignores label 0 has zeros here.
    assert (scores.grad.abs().sum(dim=1) > 0).all()
