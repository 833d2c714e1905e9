"""Many texts at once: plans, order, streams, and one-sentence errors."""

import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.batching import (
    OneDnnLinear,
    Predictor,
    check_text,
    count_positions,
    encode_rows,
    load_whole,
    plan_batches,
    read_ahead,
    use_onednn,
)
from bertbook.config import BertConfig
from bertbook.heads import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertbook.model import BertModel
from bertbook.tokenizer import BertTokenizer

TOKENIZER = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
SIZES = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
)
LENGTHS = st.lists(st.integers(1, 60), max_size=40)
WORDS = ("the", "film", "was", "unwatchable", "München", "!", "über", "a")
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join),
    min_size=1,
    max_size=14,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES)).train()  # dropout would show


class Reader(Predictor):
    """The ids that were read, and the last state of [CLS]."""

    model_class = BertModel

    def rows(self, texts):
        return encode_rows(self.tokenizer, texts, self.max_length)

    def scores(self, batch, rows, factor=1):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ids.numel() <= self.batch_tokens or len(ids) == 1
        assert torch.is_inference_mode_enabled()
        states = self.model(**batch).last_hidden_state[:, 0]
        return [
            (row[real.bool()].tolist(), factor * state)
            for row, real, state in zip(ids, mask, states)
        ]

    def result(self, text, rows, scores):
        return text, *scores[0]


# Plans


@given(LENGTHS, st.integers(1, 200))
def test_a_plan_holds_each_row_once_and_keeps_the_budget(lengths, tokens):
    batches = plan_batches(lengths, tokens)
    numbers = [i for batch in batches for i in batch]
    assert sorted(numbers) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * width <= tokens
    widths = [lengths[i] for i in numbers]
    assert widths == sorted(widths, reverse=True)
    assert plan_batches(lengths, tokens) == batches


@given(LENGTHS, st.integers(1, 200))
def test_no_two_neighbouring_batches_would_fit_into_one(lengths, tokens):
    batches = plan_batches(lengths, tokens)
    for one, two in itertools.pairwise(batches):
        assert (len(one) + 1) * lengths[one[0]] > tokens, (one, two)


@given(LENGTHS, st.integers(1, 8), st.randoms())
def test_sorting_never_costs(lengths, size, random):
    # All batches full: a rest that is alone may be better elsewhere.
    lengths = lengths[: len(lengths) // size * size]

    def chunked(numbers):
        return [numbers[i : i + size] for i in range(0, len(numbers), size)]

    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    other = list(range(len(lengths)))
    random.shuffle(other)
    best = count_positions(lengths, chunked(order))
    assert sum(lengths) <= best
    assert best <= count_positions(lengths, chunked(other))


@given(st.lists(st.integers(), max_size=30), st.integers(1, 9))
def test_read_ahead_loses_nothing(items, window):
    parts = list(read_ahead(iter(items), window))
    assert [each for part in parts for each in part] == items
    assert all(len(part) == window for part in parts[:-1])
    assert all(parts)


# Rows


@settings(max_examples=25, deadline=None)
@given(TEXTS, st.integers(8, 20), st.integers(0, 4))
def test_windows_of_a_text_hold_all_of_it(texts, length, stride):
    rows = encode_rows(TOKENIZER, texts, length, stride=stride)
    assert [row["owner"] for row in rows if row["begins"]] == list(
        range(len(texts))
    )
    for number, text in enumerate(texts):
        own = [r["input_ids"] for r in rows if r["owner"] == number]
        ids = own[0][1:-1]
        for each in own[1:]:
            assert each[1 : 1 + stride] == ids[len(ids) - stride :]
            ids = ids + each[1 + stride : -1]
        assert ids == TOKENIZER.encode(text)[1:-1]


def test_a_pair_is_one_row_of_two_segments():
    (row,) = encode_rows(TOKENIZER, [("Who won?", "She won twice.")], 60)
    expected = TOKENIZER("Who won?", "She won twice.")
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert row[name] == expected[name]
    assert row["owner"] == 0 and row["begins"]


# Results


@settings(max_examples=12, deadline=None)
@given(TEXTS, st.integers(1, 300), st.integers(1, 6), st.booleans())
def test_company_changes_nothing(model, texts, tokens, window, packed):
    config = BertConfig(**SIZES, remove_padding=packed)
    twin = BertModel(config)
    twin.load_state_dict(model.state_dict())
    reader = Reader(twin, TOKENIZER, batch_tokens=tokens, window=window)
    alone = Reader(model, TOKENIZER)
    found = reader(texts)
    assert [text for text, *_ in found] == texts
    for (_, ids, state), text in zip(found, texts):
        _, expected_ids, expected = alone(text)
        assert (
            ids
            == expected_ids
            == TOKENIZER.encode(text, truncation=True, max_length=64)
        )
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)
    assert model.training, "the mode is put back"


def test_a_stream_reads_only_a_window_and_is_not_held(model):
    pulled = []

    def endless():
        for number in itertools.count():
            pulled.append(number)
            yield f"text {number}"

    stream = Reader(model, TOKENIZER, window=5).stream(endless())
    assert pulled == []
    for number in range(12):
        text, *_ = next(stream)
        assert text == f"text {number}"
        assert len(pulled) == 5 * (number // 5 + 1)
    stream.close()


def test_results_before_a_bad_text_are_given_out(model):
    stream = Reader(model, TOKENIZER, window=2).stream(["a", "b", "c", ""])
    assert [next(stream)[0] for _ in range(2)] == ["a", "b"]
    with pytest.raises(ValueError, match="text 3 is empty"):
        next(stream)


def test_options_go_to_the_scores_and_unknown_ones_are_refused(model):
    reader = Reader(model, TOKENIZER)
    once, twice = reader("a film"), reader("a film", factor=2)
    torch.testing.assert_close(2 * once[2], twice[2])
    with pytest.raises(TypeError, match="top_k"):
        reader("a film", top_k=3)


def test_progress_counts_texts(model, capsys):
    Reader(model, TOKENIZER)(["a", "b", "c"], show_progress=True)
    told = capsys.readouterr().err
    assert "3/3" in told and "texts" in told
    Reader(model, TOKENIZER)(["a", "b", "c"])
    assert capsys.readouterr().err == ""


def test_an_empty_list_and_a_generator(model):
    reader = Reader(model, TOKENIZER)
    assert reader([]) == []
    assert len(reader(each for each in "abc")) == 3


# Refusals


@pytest.mark.parametrize(
    ("text", "pair", "error"),
    [
        (None, False, TypeError),
        (b"bytes", False, TypeError),
        (["words"], False, TypeError),
        (("a", "b"), False, TypeError),
        ("a", True, TypeError),
        (("a", None), True, TypeError),
        (("a", "b", "c"), True, TypeError),
        ("", False, ValueError),
        (" \n\t", False, ValueError),
        (("a", " "), True, ValueError),
        (("a",), True, TypeError),
    ],
)
def test_what_is_no_text_is_named(text, pair, error):
    with pytest.raises(error, match="^text 41 is ") as caught:
        check_text(text, 41, pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["a film", ("a", "b"), None, 3])
def test_one_text_is_no_stream(model, given):
    with pytest.raises(TypeError, match="is no stream of texts"):
        Reader(model, TOKENIZER).stream(given)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 65},
        {"max_length": 0},
        {"max_length": 8.0},
        {"batch_tokens": 0},
        {"window": 0},
        {"window": True},
    ],
)
def test_limits_are_checked(model, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Reader(model, TOKENIZER, **options)


def test_another_model_is_refused(model):
    with pytest.raises(TypeError, match="needs a BertModel"):
        Reader(BertForMaskedLM(BertConfig(**SIZES)), TOKENIZER)


@pytest.mark.parametrize(
    ("saved", "wanted", "part"),
    [
        (BertModel, BertForMaskedLM, "mlm_head"),
        (BertForMaskedLM, BertForSequenceClassification, "classifier"),
        (BertForMaskedLM, BertModel, "pooler"),
        (BertForPreTraining, BertForTokenClassification, "classifier"),
    ],
)
def test_a_checkpoint_without_the_head_is_refused(
    tmp_path, caplog, saved, wanted, part
):
    saved(BertConfig(**SIZES)).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        with pytest.raises(ValueError, match=part) as caught:
            load_whole(wanted, tmp_path)
    assert "\n" not in str(caught.value) and not caplog.records


def test_what_is_not_needed_is_left_out_in_silence(tmp_path, caplog):
    BertForPreTraining(BertConfig(**SIZES)).save_pretrained(tmp_path)
    log = logging.getLogger("bertbook.checkpoints")
    level = log.level
    with caplog.at_level(logging.WARNING):
        model = load_whole(BertModel, tmp_path, add_pooling_layer=False)
    assert not caplog.records and log.level == level
    assert not model.loading_report.missing


@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_by_onednn_is_the_same(shape, bias):
    torch.manual_seed(0)
    plain, x = torch.nn.Linear(24, 48, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        found, wanted = OneDnnLinear(plain)(x), plain(x)
    assert torch.allclose(found, wanted, atol=1e-6)


def on_processor(monkeypatch, name):
    monkeypatch.setattr(
        "bertbook.batching.describe_machine", lambda: {"processor": name}
    )


def test_every_linear_layer_goes_to_onednn(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    before = {n: each.clone() for n, each in model.state_dict().items()}
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.inference_mode():
        wanted = model(ids).logits
    on_processor(monkeypatch, "Intel(R) Xeon(R)")
    use_onednn(model)
    on_processor(monkeypatch, "AMD EPYC")
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", bool)
        use_onednn(model)
    kinds = [type(module) for module in model.modules()]
    assert OneDnnLinear not in kinds, "not there, nothing changes"
    use_onednn(model)
    kinds = [type(module) for module in model.modules()]
    assert torch.nn.Linear not in kinds and OneDnnLinear in kinds
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, wanted, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(
        tmp_path
    ).state_dict()
    assert again.keys() == before.keys()
    for name, each in again.items():
        assert torch.equal(each, before[name]), name


def test_doubles_stay_as_they_are(monkeypatch):
    on_processor(monkeypatch, "AMD EPYC")
    model = BertForSequenceClassification(BertConfig(**SIZES)).double()
    use_onednn(model)
    model(torch.tensor([[2, 7, 9, 3]]))
