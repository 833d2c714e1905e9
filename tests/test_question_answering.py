"""Answers in texts, against other measures and an exhaustive search."""

import re
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.config import BertConfig
from bertbook.heads import BertForQuestionAnswering
from bertbook.question_answering import (
    INPUTS,
    LONGEST_QUESTION,
    NO_SPAN,
    answer_windows,
    best_match,
    best_spans,
    exact_match,
    mark_answer,
    max_context,
    normalise,
    rank_guesses,
    read_answers,
    token_f1,
    window_spans,
)
from bertbook.tokenizer import BertTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "'", "£"]
VOCAB += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
VOCAB += ["who", "bank", "##ing", "of", "the", "lee"]


@pytest.fixture(scope="module")
def tokenizer():
    """Every word of small letters has pieces in it."""
    return BertTokenizer({piece: n for n, piece in enumerate(VOCAB)})


# The measures


def other_normalise(text):
    """SQuAD's four steps, letter by letter and word by word."""
    letters = [c for c in text.lower() if c not in string.punctuation]
    text, words = "".join(letters), []
    for part in re.split(r"(\W)", text):  # \b stands at these blanks
        words.append(" " if part in ("a", "an", "the") else part)
    return " ".join("".join(words).split())


def other_f1(prediction, answer):
    """Words are paired off one by one."""
    said = other_normalise(prediction).split()
    right = other_normalise(answer).split()
    if not said or not right:
        return float(said == right)
    left, common = list(right), 0
    for word in said:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


PHRASES = st.one_of(
    st.lists(
        st.sampled_from(
            "the The a an Bank bank of Lee's 5.2% £5 $5 O'Gara theatre —".split()
        ),
        max_size=6,
    ).map(" ".join),
    st.text(alphabet="aAnthe .,'$£-\n\té2", max_size=12),
    st.text(max_size=8),
)


@given(PHRASES, PHRASES)
@settings(max_examples=500)
def test_the_measures_are_squads(prediction, answer):
    assert normalise(prediction) == other_normalise(prediction)
    same = other_normalise(prediction) == other_normalise(answer)
    assert exact_match(prediction, answer) == same
    value = token_f1(prediction, answer)
    assert value == pytest.approx(other_f1(prediction, answer))
    assert 0 <= exact_match(prediction, answer) <= value <= 1
    assert token_f1(answer, prediction) == pytest.approx(value)


@pytest.mark.parametrize(
    "prediction, answer, exact, f1",
    [
        ("Denver Broncos", "the Denver Broncos.", 1, 1),
        ("The The", "", 1, 1),
        ("", "Lee", 0, 0),
        ("Lee", "", 0, 0),
        ("a bank of banks", "bank", 0, 0.5),  # 2 * 1 / (3 + 1)
        ("U.S.", "us", 1, 1),
        ("5.2%", "52", 1, 1),
        ("twenty-one", "twenty one", 0, 0),
    ],
)
def test_the_measures_by_hand(prediction, answer, exact, f1):
    assert exact_match(prediction, answer) == exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_the_best_of_several_answers_counts():
    assert best_match(token_f1, "ann lee", ["lee", "ann b lee"]) == 0.8
    for nothing in ([], ["the"], ["...", ""]):
        assert best_match(exact_match, "", nothing) == 1
        assert best_match(exact_match, "lee", nothing) == 0
    assert best_match(exact_match, "", ["the", "lee"]) == 0


# Windows


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_each_piece_has_the_window_with_most_context(length, size, data):
    stride = data.draw(st.integers(0, size - 1))
    step = size - stride
    spans = [(0, min(size, length))]
    while spans[-1][1] < length:
        start = spans[-1][0] + step
        spans.append((start, min(start + size, length)))
    own = max_context([end - start for start, end in spans], stride)
    for piece in range(length):
        scores = {}
        for number, (start, end) in enumerate(spans):
            if start <= piece < end:
                around = min(piece - start, end - 1 - piece)
                scores[number] = around + 0.01 * (end - start)
        expected = max(scores, key=scores.get)  # of equals the first
        for number, (start, _) in enumerate(spans):
            if number in scores:
                assert own[number][piece - start] == (number == expected)


def pieces_of(tokenizer, text):
    """Where each piece of a text stands."""
    found = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True
    )
    return [tuple(span) for span in found["offset_mapping"]]


TEXTS = st.text(
    alphabet=st.sampled_from(LETTERS + "ABÉ  .,'£\n"), max_size=80
)


@given(
    TEXTS,
    TEXTS,
    st.integers(12, 40),
    st.integers(0, 3),
    st.sampled_from(["left", "right"]),
)
@settings(max_examples=300, deadline=None)
def test_windows_cover_the_context(question, context, length, stride, side):
    vocab = {piece: n for n, piece in enumerate(VOCAB)}
    tokenizer = BertTokenizer(vocab, truncation_side=side)
    whole = pieces_of(tokenizer, context)
    windows = answer_windows(
        [question], [context], tokenizer, length, stride
    )
    seen = {
        (int(a), int(b))
        for each in windows
        for a, b in each.spans[each.inside]
    }
    assert seen == set(whole)
    owned = [
        (int(a), int(b))
        for each in windows
        for a, b in each.spans[each.own]
    ]
    assert sorted(owned) == sorted(whole)  # each once
    for one, two in zip(windows, windows[1:]):
        shared = {*map(tuple, one.spans[one.inside].tolist())} & {
            *map(tuple, two.spans[two.inside].tolist())
        }
        assert len(shared) == stride
    for each in windows:
        assert not (each.own & ~each.inside).any()
        assert list(each) == list(INPUTS)
        assert len(each["input_ids"]) == len(each.spans) <= length
        ids = np.array(each["input_ids"])
        types = np.array(each["token_type_ids"])
        assert (types[each.inside] == 1).all()
        assert (ids[~each.inside & (types == 1)] == 3).all()  # [SEP]


@given(TEXTS, st.integers(12, 40), st.integers(0, 3), st.data())
@settings(max_examples=300, deadline=None)
def test_an_answer_survives_the_round_trip(
    tokenizer, context, length, stride, data
):
    """From characters to pieces in a window, and back."""
    windows = answer_windows(["who"], [context], tokenizer, length, stride)
    pieces = pieces_of(tokenizer, context)
    if not pieces:
        return
    first = data.draw(st.integers(0, len(pieces) - 1))
    last = data.draw(st.integers(first, len(pieces) - 1))
    start, end = pieces[first][0], pieces[last][1]
    found = 0
    for window in windows:
        i, j = mark_answer(window, start, end)
        spans = [tuple(span) for span in window.spans.tolist()]
        holds = pieces[first] in spans and pieces[last] in spans
        assert (i > 0) == holds == (j > 0)
        if holds:
            found += 1
            assert context[spans[i][0] : spans[j][1]] == context[start:end]
    if last - first < stride:  # short answers are never cut in two
        assert found


@pytest.mark.parametrize(
    "context, answer, kept",
    [
        ("lee\u0301 of", "lee\u0301", "lee\u0301"),
        ("lee\u0301 of", "lee", "lee\u0301"),  # no letter loses its mark
        ("of lee\u0301", "lee\u0301", "lee\u0301"),
        ("ok 😀\ufe0f", "😀\ufe0f", "😀\ufe0f"),  # a variation selector
        ("\u200elee of", "\u200elee", "lee"),
        ("of lee ", "lee ", "lee"),
        (" lee of lee\u200b", " lee of lee\u200b", "lee of lee"),
        ("of \u0301 lee", "\u0301 lee", "lee"),
    ],
)
def test_marks_and_blanks_cost_no_answer(tokenizer, context, answer, kept):
    """Characters without a piece are in training and in the answer."""
    windows = answer_windows(["who"], [context], tokenizer, 12, 2)
    start = context.index(answer)
    i, j = mark_answer(windows[0], start, start + len(answer))
    window = windows[0]
    assert i and context[window.spans[i][0] : window.spans[j][1]] == kept
    scores = torch.zeros(2, len(windows), 12)
    scores[0, 0, i] = scores[1, 0, j] = 9.0
    (best,) = rank_guesses(context, window_spans(windows, *scores))
    assert best.text == kept


def test_marks_that_are_pieces_stay_apart():
    """A tokenizer that keeps accents may begin a piece at one."""
    pieces = ["e", "##e", "##\u0301"]
    keeps = BertTokenizer(
        {piece: n for n, piece in enumerate(VOCAB + pieces)},
        strip_accents=False,
    )
    context = "e\u0301e e\u0301"
    windows = answer_windows(["e"], [context], keeps, 6, 1)
    spans = {(*s,) for w in windows for s in w.spans[w.inside].tolist()}
    assert spans == {(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)}


def test_an_answer_cut_by_a_window_is_none_of_it(tokenizer):
    """Blanks at the cut are nobody's; a letter behind them is not."""
    context = "of  lee  bank"
    first, second = answer_windows(["who"], [context], tokenizer, 6, 1)
    assert (first.reach, second.reach) == ((0, 9), (2, 13))
    assert mark_answer(first, 0, 9) == (3, 4)
    assert mark_answer(first, 4, 10) == (0, 0)
    assert mark_answer(second, 2, 13) == (3, 4)
    assert mark_answer(second, 1, 13) == (0, 0)


def test_an_answer_inside_a_piece_takes_the_whole_piece(tokenizer):
    (window,) = answer_windows(["who"], ["the bank"], tokenizer, 40, 0)
    i, j = mark_answer(window, 5, 7)  # "an"
    assert i == j and tuple(window.spans[i]) == (4, 8)


def test_a_long_question_leaves_room(tokenizer):
    question, context = "lee " * 500, "the bank of lee " * 40
    windows = answer_windows([question], [context], tokenizer, 128, 16)
    asked = [sum(t == 0 for t in w["token_type_ids"]) for w in windows]
    assert set(asked) == {LONGEST_QUESTION + 2}
    assert sum(window.own.sum() for window in windows) == 160


@pytest.mark.parametrize("length, asked", [(64, 40), (80, 56), (25, 1)])
def test_a_long_question_is_cut_until_windows_move(
    tokenizer, length, asked
):
    question, context = "lee " * 80, "the bank of lee " * 40
    windows = answer_windows([question], [context], tokenizer, length, 20)
    lengths = {sum(t == 0 for t in w["token_type_ids"]) for w in windows}
    assert lengths == {asked + 2}
    assert sum(window.own.sum() for window in windows) == 160


@pytest.mark.parametrize("length, stride", [(40, 32), (40, 36), (13, 9)])
def test_a_question_stays_whole_beside_a_context_that_fits(
    tokenizer, length, stride
):
    pair = ["lee " * 6], ["the bank of lee"]
    (window,) = answer_windows(*pair, tokenizer, length, stride)
    assert sum(kind == 0 for kind in window["token_type_ids"]) == 6 + 2
    assert window.inside.sum() == 4


def test_examples_keep_their_numbers(tokenizer):
    contexts = ["the bank " * 30, "", "lee", "of " * 50]
    windows = answer_windows(["who"] * 4, contexts, tokenizer, 20, 4)
    numbers = [window.example for window in windows]
    assert sorted(set(numbers)) == [0, 1, 2, 3] and numbers == sorted(
        numbers
    )
    for window in windows:
        for start, end in window.spans[window.inside]:
            assert contexts[window.example][start:end].strip()


def test_windows_that_cannot_move_are_refused(tokenizer):
    with pytest.raises(ValueError, match="stride"):
        answer_windows(["who"], ["lee " * 30], tokenizer, 10, 8)
    with pytest.raises(ValueError, match="max_length"):
        answer_windows(["who"], ["lee " * 30], tokenizer, 4, 8)
    with pytest.raises(ValueError, match="stride=-2 would leave out text"):
        answer_windows(["who"], ["lee " * 30], tokenizer, 10, -2)


# Spans


def all_spans(start, end, may_start, may_end, longest):
    """Every span there is, the best first."""
    size = len(start)
    spans = [
        (start[i] + end[j], i, j)
        for i in range(size)
        for j in range(i, min(size, i + longest))
        if may_start[i] and may_end[j]
    ]
    return sorted(spans, reverse=True)


@given(
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 14),
    st.integers(1, 8),
    st.integers(0, 10**6),
)
@settings(max_examples=300, deadline=None)
def test_the_best_spans_are_the_best(rows, seq, longest, count, seed):
    draw = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, rows, seq, generator=draw).double()
    may_start, may_end = torch.rand(2, rows, seq, generator=draw) < 0.7
    found = best_spans(start, end, may_start, may_end, longest, count)
    for row in range(rows):
        parts = start[row], end[row], may_start[row], may_end[row]
        expected = all_spans(*(part.tolist() for part in parts), longest)
        scores, first, last = (each[row].tolist() for each in found)
        kept = [
            (score, i, j)
            for score, i, j in zip(scores, first, last)
            if score > -torch.inf
        ]
        assert [span[1:] for span in kept] == [
            span[1:] for span in expected[:count]
        ]
        assert [span[0] for span in kept] == pytest.approx(
            [span[0] for span in expected[:count]]
        )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    return BertForQuestionAnswering(config).eval()


QUESTIONS = ["who", "of the bank", "lee", "who of the lee"]
CONTEXTS = [
    "The bank of Lee, banking.  " * 6,
    "Lee £5",
    "",
    "O'Lee of the bank. " * 3,
]


def test_answers_are_those_of_an_exhaustive_search(tokenizer, model):
    """Each window alone, every span by hand, and the best of all."""
    windows = answer_windows(QUESTIONS, CONTEXTS, tokenizer, 24, 5)
    read = read_answers(model, windows, CONTEXTS, 4, 3, batch_size=5)
    for number, context in enumerate(CONTEXTS):
        spans, silence = [], []
        for window in windows:
            if window.example != number:
                continue
            row = {name: torch.tensor([window[name]]) for name in INPUTS}
            with torch.no_grad():
                out = model(**row)
            start, end = (
                each[0].tolist()
                for each in (out.start_logits, out.end_logits)
            )
            silence.append(start[0] + end[0])
            masks = window.own, window.inside
            for score, i, j in all_spans(start, end, *masks, 4):
                place = int(window.spans[i][0]), int(window.spans[j][1])
                spans.append((score, *place))
        spans = sorted(spans, reverse=True)[:3]
        guesses = read[number]
        if not spans:
            assert guesses == [("", 0, 0, NO_SPAN)]
            continue
        assert [(g.start, g.end) for g in guesses] == [s[1:] for s in spans]
        for guess, span in zip(guesses, spans):
            assert context[guess.start : guess.end] == guess.text
            margin = span[0] - min(silence)
            assert guess.margin == pytest.approx(margin, abs=1e-4)


def test_company_changes_no_answer(tokenizer, model):
    windows = answer_windows(QUESTIONS, CONTEXTS, tokenizer, 24, 5)
    together = read_answers(model, windows, CONTEXTS)
    for number, context in enumerate(CONTEXTS):
        alone = answer_windows(
            [QUESTIONS[number]], [context], tokenizer, 24, 5
        )
        (one,), many = (
            read_answers(model, alone, [context])[0],
            together[number][0],
        )
        assert one[:3] == many[:3]
        assert one.margin == pytest.approx(many.margin, abs=1e-4)
    assert not model.training
    model.train()
    read_answers(model, windows, CONTEXTS)
    assert model.training  # as it was found
    model.eval()


def test_the_order_of_the_windows_does_not_matter(tokenizer, model):
    """Window by window, and last to first, the guesses are the same."""
    windows = answer_windows(QUESTIONS, CONTEXTS, tokenizer, 24, 5)
    read = read_answers(model, windows, CONTEXTS, 4, 3)
    for number, context in enumerate(CONTEXTS):
        found = []
        for window in reversed(windows):
            if window.example == number:
                row = {n: torch.tensor([window[n]]) for n in INPUTS}
                with torch.no_grad():
                    out = model(**row)
                scores = out.start_logits, out.end_logits
                found += window_spans([window], *scores, 4, 3)
        guesses = rank_guesses(context, found, 3)
        for one, many in zip(guesses, read[number], strict=True):
            assert one[:3] == many[:3]
            assert one.margin == pytest.approx(many.margin, abs=1e-4)


def test_of_equal_spans_the_first_in_the_text_is_best():
    found = [(1.0, [(2.0, 5, 9)]), (3.0, [(2.0, 0, 4), (2.0, 0, 2)])]
    guesses = rank_guesses("abcdefghi", found, 3)
    assert [(g.start, g.end) for g in guesses] == [(0, 2), (0, 4), (5, 9)]
    assert {guess.margin for guess in guesses} == {1.0}
    nothing = [("", 0, 0, NO_SPAN)]
    assert rank_guesses("abc", []) == nothing
    assert rank_guesses("abc", [(1.0, []), (2.0, [])]) == nothing
