"""Tagging: alignment, windows, strict scores, repair and offsets.

The oracles are `seqeval`, the tokenizer and the collator of `transformers`,
and loops over the definitions.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities
from torch import nn
from transformers import (
    BertTokenizerFast,
    DataCollatorForTokenClassification,
)

from bertbook.classification import collate
from bertbook.config import BertConfig
from bertbook.finetuning import Finetuning, finetune, new_model
from bertbook.heads import BertForTokenClassification
from bertbook.labelled_data import Labelled
from bertbook.losses import IGNORED
from bertbook.optimization import Length, Optimization
from bertbook.token_tagging import (
    Tagging,
    check_tags,
    decode_entities,
    find_entities,
    first_pieces,
    predict_tags,
    repair_bio,
    score_tags,
    split_words,
    window_rows,
)
from bertbook.tokenizer import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["a", "b", "c", "ab", "##a", "##b", "##c", "##bc", "'", "!", "s"]
VOCAB = {piece: number for number, piece in enumerate(SPECIAL + PIECES)}
TOKENIZER = BertTokenizer(VOCAB)
TWIN = BertTokenizerFast(vocab=VOCAB)
LABELS = ("O", "B-x", "I-x", "B-geo-loc", "I-geo-loc")

TAGS = st.lists(st.sampled_from(LABELS), max_size=12)
# "\u200d" is dropped by the tokenizer: a word without a piece.
WORDS = st.lists(
    st.text("abc'!", min_size=1, max_size=9) | st.just("\u200d"),
    max_size=14,
)
QUICK = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def tagged_pairs(draw):
    """Two taggings of the same few sentences."""
    sizes = draw(st.lists(st.integers(0, 8), min_size=1, max_size=5))
    return [
        [
            draw(st.lists(st.sampled_from(LABELS), min_size=n, max_size=n))
            for n in sizes
        ]
        for _ in range(2)
    ]


# Entities and repair


@given(TAGS)
def test_entities_are_those_of_seqeval_in_strict_mode(tags):
    (found,) = Entities([tags], IOB2).entities
    assert [(e.tag, e.start, e.end) for e in found] == find_entities(tags)


@given(TAGS)
def test_repair_makes_tags_that_are_whole(tags):
    mended = repair_bio(tags)
    assert repair_bio(mended) == mended
    for before, tag in zip(["O", *mended], mended):
        assert tag[0] != "I" or before[1:] == tag[1:]
    for old, new in zip(tags, mended, strict=True):
        assert old == new or (old[0], new) == ("I", "B" + old[1:])


@given(TAGS)
def test_strict_on_repaired_is_lenient_on_raw(tags):
    lenient = [(kind, a, b + 1) for kind, a, b in get_entities(tags)]
    assert find_entities(repair_bio(tags)) == lenient


@given(TAGS)
def test_repair_leaves_whole_tags_alone(tags):
    whole = ["O"] * len(tags)
    for kind, start, end in find_entities(tags):
        whole[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    assert repair_bio(whole) == whole
    assert find_entities(whole) == find_entities(tags)


def test_an_empty_tag_is_refused():
    with pytest.raises(ValueError, match="a tag is the empty text; name"):
        decode_entities("a b", [(0, 1), (2, 3)], ["B-x", ""], [0.9, 0.9])


def test_no_tags():
    assert find_entities([]) == repair_bio([]) == []


# Scores


@QUICK
@given(tagged_pairs())
def test_scores_are_those_of_the_definition(pair):
    truth, guesses = pair
    total, by_kind = score_tags(truth, guesses)
    wanted, said = (
        {
            (n, *e)
            for n, tags in enumerate(side)
            for e in find_entities(tags)
        }
        for side in pair
    )

    def check(score, wanted, said):
        right = len(wanted & said)
        assert score.precision == pytest.approx(right / max(len(said), 1))
        assert score.recall == pytest.approx(right / max(len(wanted), 1))
        both = max(len(wanted) + len(said), 1)
        assert score.f1 == pytest.approx(2 * right / both)
        assert score.count == len(wanted)

    check(total, wanted, said)
    assert set(by_kind) == {kind for _, kind, _, _ in wanted | said}
    for kind, score in by_kind.items():
        check(
            score,
            {entity for entity in wanted if entity[1] == kind},
            {entity for entity in said if entity[1] == kind},
        )


@QUICK
@given(tagged_pairs())
def test_scores_are_those_of_the_public_report(pair):
    truth, guesses = pair
    total, by_kind = score_tags(truth, guesses)
    if not by_kind:  # the report cannot be without any type
        assert total == (0, 0, 0, 0)
        return
    report = classification_report(
        *pair, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    assert report["micro avg"]["f1-score"] == pytest.approx(total.f1)
    for kind, score in by_kind.items():
        assert report[kind]["f1-score"] == pytest.approx(score.f1)
        assert report[kind]["support"] == score.count


@QUICK
@given(tagged_pairs())
def test_the_lenient_score_is_that_of_repaired_tags(pair):
    truth = [repair_bio(tags) for tags in pair[0]]
    mended = [repair_bio(tags) for tags in pair[1]]
    lenient = f1_score(truth, pair[1], zero_division=0)
    assert score_tags(truth, mended)[0].f1 == pytest.approx(lenient)


@pytest.mark.parametrize("guesses", [[["O"]], [["O", "O"], ["O"]]])
def test_scores_of_other_lengths_are_refused(guesses):
    with pytest.raises(ValueError, match="inconsistent"):
        score_tags([["O", "B-x"]], guesses)


# From words to rows


@QUICK
@given(WORDS)
def test_first_pieces_are_those_of_the_other_tokenizer(words):
    assume(words)
    encoded = TWIN(words, is_split_into_words=True)
    seen, expected = set(), []
    for word in encoded.word_ids():
        fresh = word is not None and word not in seen
        expected.append(word if fresh else None)
        seen.add(word)
    (row,) = window_rows(TOKENIZER, [words], 512, None)
    assert row["input_ids"] == encoded["input_ids"]
    assert row["attention_mask"] == encoded["attention_mask"]
    as_labels = [IGNORED if word is None else word for word in expected]
    assert row["words"] == as_labels
    assert first_pieces(encoded.word_ids()) == expected


@QUICK
@given(
    st.lists(WORDS, min_size=1, max_size=4),
    st.integers(3, 20),
    st.integers(0, 19),
)
def test_every_word_with_a_piece_is_in_one_row(sentences, length, stride):
    if stride >= length - 2:
        with pytest.raises(ValueError, match="no room"):
            window_rows(TOKENIZER, sentences, length, stride)
        return
    rows = window_rows(TOKENIZER, sentences, length, stride)
    for number, words in enumerate(sentences):
        own = [row for row in rows if row["example"] == number]
        assert own and all(len(row["input_ids"]) <= length for row in own)
        seen = [w for row in own for w in row["words"] if w != IGNORED]
        there = [i for i, w in enumerate(words) if TOKENIZER.tokenize(w)]
        assert sorted(seen) == there
        for row in own:  # the piece there is the word's first
            for piece, word in zip(row["input_ids"], row["words"]):
                if word != IGNORED:
                    first = TOKENIZER.tokenize(words[word])[0]
                    assert piece == VOCAB[first]


@QUICK
@given(WORDS, st.integers(4, 16), st.integers(0, 12))
def test_no_other_row_has_more_context(words, length, stride):
    room = length - 2
    assume(stride < room and words)
    rows = window_rows(TOKENIZER, [words], length, stride)
    whole = window_rows(TOKENIZER, [words], 512, None)[0]["words"][1:-1]
    for number, row in enumerate(rows):
        start = number * (room - stride)
        for place, word in enumerate(row["words"][1:-1]):
            if word == IGNORED:
                continue
            here = min(place, len(row["words"]) - 3 - place)
            at = whole.index(word)
            assert at == start + place
            for other, rival in enumerate(rows):
                there = at - other * (room - stride)
                size = len(rival["words"]) - 2
                assert min(there, size - 1 - there) <= here


def test_truncation_keeps_the_beginning():
    words = [["ab"] * 9]
    (row,) = window_rows(TOKENIZER, words, 6, None)
    assert row["words"] == [IGNORED, 0, 1, 2, 3, IGNORED]
    assert window_rows(TOKENIZER, [], 6, None) == []
    (row,) = window_rows(TOKENIZER, [[]], 6, 2)
    assert row["input_ids"] == [2, 3] and row["words"] == [IGNORED] * 2


@pytest.mark.parametrize("length, stride", [(2, None), (2, 0), (8, 6)])
def test_no_room_is_one_sentence(length, stride):
    with pytest.raises(
        ValueError, match=f"max_length={length} has no room"
    ):
        window_rows(TOKENIZER, [["a"]], length, stride)


@pytest.mark.parametrize("words", [["a"], ["a"] * 20])
def test_windows_with_gaps_are_refused(words):
    with pytest.raises(ValueError, match="stride=-3 would leave out text"):
        window_rows(TOKENIZER, [words], 8, -3)
    with pytest.raises(ValueError, match="stride=-3 would leave out text"):
        TOKENIZER(" ".join(words), max_length=8, stride=-3)


def labelled(sentences, tags):
    rows = {"tokens": sentences, "tags": tags}
    return Labelled(Dataset.from_dict(rows), LABELS)


@QUICK
@given(
    st.lists(
        st.lists(
            st.sampled_from(["a", "abc", "bbbb", "c!"]),
            min_size=1,
            max_size=10,
        ),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_features_and_batches_are_those_of_transformers(sentences, random):
    tags = [[random.randrange(5) for _ in words] for words in sentences]
    task = Tagging(LABELS)
    ours = task.features(labelled(sentences, tags), TOKENIZER, 128)
    theirs = []
    for words, own in zip(sentences, tags):
        row = TWIN(words, is_split_into_words=True)
        labels, before = [], None
        for word in row.word_ids():
            new = word is not None and word != before
            labels.append(own[word] if new else -100)
            before = word
        names = "input_ids", "attention_mask"
        theirs.append({n: row[n] for n in names} | {"labels": labels})
    names = "input_ids", "attention_mask", "labels"
    assert [{n: row[n] for n in names} for row in ours] == theirs
    expected = DataCollatorForTokenClassification(TWIN)(theirs)
    batch = collate(ours, TOKENIZER.pad_token_id)
    for name in names:
        assert torch.equal(batch[name], expected[name])


# From rows to words


class ByPiece(nn.Module):
    """A model whose answer is known: the id of the piece, modulo 5."""

    config = SimpleNamespace(pad_token_id=0)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask):
        known = nn.functional.one_hot(input_ids % len(LABELS), len(LABELS))
        return SimpleNamespace(logits=20.0 * known)


@QUICK
@given(
    st.lists(WORDS, min_size=1, max_size=4),
    st.integers(7, 20),
    st.integers(0, 4),
    st.sampled_from([1, 2, 64]),
)
def test_predictions_come_back_to_their_words(
    sentences, length, stride, batch_size
):
    rows = window_rows(TOKENIZER, sentences, length, stride)
    counts = [len(words) for words in sentences]
    answers = predict_tags(ByPiece(), rows, counts, LABELS, batch_size)
    for words, answer in zip(sentences, answers, strict=True):
        pieces = [TOKENIZER.tokenize(word) for word in words]
        assert answer.tags == [
            LABELS[VOCAB[found[0]] % len(LABELS)] if found else "O"
            for found in pieces
        ]
        assert answer.lost == sum(not found for found in pieces)
        for found, score in zip(pieces, answer.scores, strict=True):
            assert score > 0.99 if found else score == 0


def test_lost_words_are_o_and_cost_recall():
    assert VOCAB["a"] % len(LABELS) == 0  # all that is seen is O
    data = labelled([["b"] * 4 + ["a", "a"]], [[1, 1, 1, 1, 3, 4]])
    task = Tagging(LABELS, stride=None)
    assert LABELS[VOCAB["b"] % len(LABELS)] == "B-x"
    rows = task.features(data, TOKENIZER, 5)  # three of six words
    found = task.evaluate(ByPiece(), rows, data)
    assert found == pytest.approx(
        {
            "precision": 1,
            "recall": 3 / 5,
            "f1": 3 / 4,
            "count": 5,
            "lost": 3,
        }
    )
    whole = Tagging(LABELS, stride=1)
    rows = whole.features(data, TOKENIZER, 5)
    found = whole.evaluate(ByPiece(), rows, data)
    assert found == pytest.approx(
        {
            "precision": 1,
            "recall": 4 / 5,
            "f1": 8 / 9,
            "count": 5,
            "lost": 0,
        }
    )


def tiny(**changes):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=len(LABELS),
        labels=LABELS,
        **changes,
    )
    return BertForTokenClassification(config).eval()


def test_a_sentence_alone_and_among_others():
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 30, (40,), generator=generator).tolist()
    sentences = [["abc", "c", "b!"] * (n // 3) + ["a"] for n in sizes]
    counts = [len(words) for words in sentences]
    rows = window_rows(TOKENIZER, sentences, 24, 8)
    together = predict_tags(model, rows, counts, LABELS, batch_size=7)
    for words, among in zip(sentences, together, strict=True):
        rows = window_rows(TOKENIZER, [words], 24, 8)
        (alone,) = predict_tags(model, rows, [len(words)], LABELS)
        assert alone.tags == among.tags and alone.lost == among.lost == 0
        assert alone.scores == pytest.approx(among.scores, abs=1e-5)


def test_predicting_leaves_the_mode_of_the_model():
    model = tiny().train()
    rows = window_rows(TOKENIZER, [["a"]], 8, None)
    predict_tags(model, rows, [1], LABELS)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_is_the_mean_over_labelled_words():
    model, task = tiny(), Tagging(LABELS)
    data = labelled([["abc", "a"], ["c"] * 7], [[1, 2], [0] * 7])
    rows = task.features(data, TOKENIZER, 32)
    loss = task.loss(model, collate(rows, 0))
    total = []
    for row in rows:  # one row at a time, without padding
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
        for place, label in enumerate(row["labels"]):
            if label != IGNORED:
                total.append(-logits[place].log_softmax(-1)[label].item())
    assert len(total) == 9
    assert math.isclose(loss.item(), sum(total) / 9, rel_tol=1e-5)


# The task


@pytest.mark.parametrize(
    "labels",
    [
        (),
        ("B-x", "I-x"),
        ("O", "B-x"),
        ("O", "I-x"),
        ("O", "x"),
        ("O", "B-x", "I-x", "E-x"),
    ],
)
def test_names_that_are_no_bio_are_refused(labels):
    with pytest.raises(ValueError, match="give 'O', and 'B-' and 'I-'"):
        Tagging(labels)
    with pytest.raises(ValueError):
        check_tags(labels)


def test_names_that_are_bio():
    check_tags(LABELS)
    check_tags(["O"])
    check_tags(["I-x", "O", "B-x"])  # in any order


def test_data_with_other_tags_is_refused():
    data = labelled([["a"]], [[0]])
    task = Tagging(("O", "B-y", "I-y"))
    with pytest.raises(ValueError, match="labels=task.labels"):
        task.features(data, TOKENIZER, 32)


def test_the_model_of_the_task_is_that_of_its_seed(tmp_path):
    tiny().save_pretrained(tmp_path, tokenizer=TOKENIZER)
    names = ("O", "B-y", "I-y")
    task = Tagging(names)
    one, same, other = (
        new_model(Finetuning("tag", str(tmp_path), seed=seed), task)
        for seed in (1, 1, 2)
    )
    assert one.config.labels == names
    assert one.classifier.weight.shape == (3, 32)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    words = "bert.embeddings.tokens.weight"
    assert torch.equal(one.state_dict()[words], other.state_dict()[words])


def test_a_tagger_learns_a_sentence_and_is_kept(tmp_path):
    """From words to a folder, with windows: the best model is in it."""
    tiny().save_pretrained(tmp_path / "start", tokenizer=TOKENIZER)
    data = labelled(
        [["abc", "a", "c", "b", "ab", "c!"]], [[1, 2, 0, 3, 4, 0]]
    )
    task, start = Tagging(LABELS, stride=2), str(tmp_path / "start")
    settings = Finetuning(
        "tag",
        start,
        Length(steps=200),
        max_length=8,
        evaluate_every=50,
        dropout=0.0,
        optimization=Optimization("adamw", learning_rate=3e-3),
    )
    out = tmp_path / "run"
    run = finetune(settings, task, data, data, TOKENIZER, out)
    model = task.head.from_pretrained(out)
    features = task.features(data, TOKENIZER, 8)
    assert len(features) > 1  # the sentence is in several windows
    found = task.evaluate(model, features, data)
    assert found["f1"] == 1 == 1 - run.progress.best
    assert model.config.labels == LABELS and found["lost"] == 0


# Texts and places


@given(st.text())
def test_words_cover_a_text_but_for_blanks(text):
    spans = split_words(text)
    for (_, end), (start, _) in zip(spans, spans[1:]):
        assert end <= start and not text[end:start].strip()
    assert all(start < end for start, end in spans)
    assert "".join(text[a:b] for a, b in spans) == "".join(text.split())


@pytest.mark.parametrize(
    "text, words",
    [
        ("Anna's", ["Anna", "'s"]),
        ("Anna’s!", ["Anna", "’s", "!"]),
        ("don't I'm", ["don't", "I'm"]),
        ("(@foo)", ["(", "@foo", ")"]),
        ("#a@b", ["#a", "@b"]),
        ("S.F. Rabbis", ["S.F.", "Rabbis"]),
        ("30,000 at 7:30.", ["30,000", "at", "7:30", "."]),
        (
            "see http://t.co/a?b=c, ok",
            ["see", "http://t.co/a?b=c", ",", "ok"],
        ),
        ("Wal-mart :D :)", ["Wal-mart", ":D", ":)"]),
        ("Jose\u0301 Garci\u0301a's", ["Jose\u0301", "Garci\u0301a", "'s"]),
        ("नमस्ते दिल्ली।", ["नमस्ते", "दिल्ली", "।"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("#cafe\u0301 @jose\u0301", ["#cafe\u0301", "@jose\u0301"]),
        ("ok 😀\ufe0f", ["ok", "😀\ufe0f"]),
        ("a \u0301 b", ["a", "\u0301", "b"]),
        ("\u0301a", ["\u0301", "a"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_of_texts(text, words):
    assert [text[a:b] for a, b in split_words(text)] == words


@given(st.text(), st.data())
def test_offsets_index_the_text(text, data):
    spans = split_words(text)
    size = len(spans)
    draw = data.draw
    tags = draw(
        st.lists(st.sampled_from(LABELS), min_size=size, max_size=size)
    )
    shares = st.floats(0, 1, exclude_min=True)
    scores = draw(st.lists(shares, min_size=size, max_size=size))
    found = decode_entities(text, spans, tags, scores)
    entities = find_entities(repair_bio(tags))
    assert len(found) == len(entities)
    assert sum(e.end - e.start for e in entities) == sum(
        tag != "O" for tag in tags
    )
    end = 0
    for each, (kind, first, after) in zip(found, entities):
        assert each["entity"] == kind
        assert each["text"] == text[each["start"] : each["end"]]
        assert each["text"] == each["text"].strip() != ""
        assert end <= each["start"] < each["end"] <= len(text)
        assert each["score"] == min(scores[first:after])
        end = each["end"]
