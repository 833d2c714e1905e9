"""Five tasks beside the pipelines of transformers and sentence-transformers.

The oracles are randomly initialised tiny models that both sides load from
one folder. `transformers` 5 has no pipeline for question answering; there
the oracle is the search over all spans.
"""

from functools import cache

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.checkpoint_files import find_checkpoint
from bertbook.config import BertConfig
from bertbook.heads import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertbook.inference import (
    Classifier,
    Embedder,
    FillMask,
    QuestionAnswerer,
    Tagger,
    fill_in,
    mean_states,
    probabilities,
    saved_threshold,
)
from bertbook.model import BertModel
from bertbook.question_answering import read_answers
from bertbook.tokenizer import BertTokenizer

TOKENIZER = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
SIZES = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    initializer_range=0.3,  # clear preferences
)
LABELS = ("O", "B-person", "I-person", "B-place")
# Plain words between blanks: both sides cut them into the same words.
WORDS = "anna met the unwatchable gainesville team in a photosynthesis lab"
TEXTS = [
    "anna met the team",
    "a lab",
    "the unwatchable team in gainesville met anna in a photosynthesis lab",
    "team " * 30 + "anna",
]
SENTENCES = st.lists(
    st.sampled_from(WORDS.split()), min_size=1, max_size=40
).map(" ".join)


def saved(model_class, folder, **options):
    torch.manual_seed(0)
    model = model_class(BertConfig(**SIZES, **options))
    with torch.no_grad():  # biases are drawn as 0
        for name, each in model.named_parameters():
            if name.endswith("bias"):
                each.normal_(0, 0.1)
    model.save_pretrained(folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    labels = {"num_labels": 4, "labels": LABELS}
    classes = {"num_labels": 3, "labels": ("bad", "fair", "good")}
    return {
        "embed": saved(BertModel, place / "embed"),
        "classify": saved(
            BertForSequenceClassification, place / "classify", **classes
        ),
        "tag": saved(BertForTokenClassification, place / "tag", **labels),
        "fill": saved(BertForMaskedLM, place / "fill"),
        "ask": saved(BertForQuestionAnswering, place / "ask"),
    }


@cache
def pipeline(task, folder, **options):
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 64
    return transformers.pipeline(
        task,
        model=str(folder),
        tokenizer=tokenizer,
        device="cpu",
        **options,
    )


# Beside the pipelines


def test_classes_are_the_pipelines(folders):
    mine = Classifier.from_pretrained(folders["classify"], batch_tokens=64)
    theirs = pipeline("text-classification", folders["classify"])
    expected = theirs(TEXTS, top_k=None, truncation=True)
    for one, two in zip(mine(TEXTS), expected):
        scores = {each["label"]: each["score"] for each in two}
        assert one["scores"].keys() == scores.keys()
        for label, score in scores.items():
            assert one["scores"][label] == pytest.approx(score, abs=1e-5)
        assert one["label"] == max(scores, key=scores.get)
        assert one["score"] == one["scores"][one["label"]]
        assert sum(one["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_pairs_are_the_pipelines(folders):
    mine = Classifier.from_pretrained(folders["classify"])
    theirs = pipeline("text-classification", folders["classify"])
    pairs = [("a lab", "the team"), ("anna met", "the lab in gainesville")]
    for (first, second), one in zip(pairs, mine(pairs)):
        two = theirs({"text": first, "text_pair": second})
        two = two[0] if isinstance(two, list) else two
        assert one["label"] == two["label"]
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        assert mine((first, second))["label"] == one["label"]


@settings(max_examples=20, deadline=None)
@given(st.lists(SENTENCES, min_size=1, max_size=4))
def test_entities_are_the_pipelines(folders, both, texts):
    texts = [" ".join(text.split()[:12]) for text in texts]  # one window
    mine = next(p for p, _ in both[0] if isinstance(p, Tagger))
    theirs = pipeline(
        "token-classification", folders["tag"], aggregation_strategy="first"
    )
    for text, found in zip(texts, mine(texts)):
        # An I without its B begins an entity, there as here.
        expected = [
            (each["entity_group"], each["start"], each["end"])
            for each in theirs(text)
        ]
        assert [
            (each["entity"], each["start"], each["end"]) for each in found
        ] == expected
        for each in found:
            assert text[each["start"] : each["end"]] == each["text"]
            assert 0 < each["score"] <= 1


def test_filled_masks_are_the_pipelines(folders):
    mine = FillMask.from_pretrained(folders["fill"])
    theirs = pipeline("fill-mask", folders["fill"])
    texts = ["anna met the [MASK].", "[MASK] in a lab of [MASK]"]
    one, two = mine(texts, top_k=4)
    expected_one, expected_two = (theirs(text, top_k=4) for text in texts)
    for found, expected in zip([one, *two], [expected_one, *expected_two]):
        names = TOKENIZER.convert_ids_to_tokens(
            [each["token"] for each in expected]
        )
        assert [guess["token"] for guess in found] == names
        for guess, other in zip(found, expected):
            assert guess["score"] == pytest.approx(other["score"], abs=1e-5)
    assert len(mine(texts[0])) == 5
    assert len(mine(texts[0], top_k=10**6)) == len(TOKENIZER)
    with pytest.raises(ValueError, match="top_k=0 is no guess; give 1"):
        mine(texts[0], top_k=0)


def test_spare_rows_of_the_table_are_no_guesses(tmp_path):
    size = len(TOKENIZER) + 8
    folder = saved(BertForMaskedLM, tmp_path, vocab_size=size)
    model = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.mlm_head.bias[-8:] = 20.0
    found = FillMask(model, TOKENIZER)("anna met the [MASK].", top_k=10**6)
    assert len(found) == len(TOKENIZER)


def test_ids_may_have_gaps_and_the_table_an_end(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "anna", "met"]
    vocab = {word: 2 * number for number, word in enumerate(words)}
    model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=12)).eval()
    with torch.no_grad():
        model.mlm_head.bias[10] = 20.0  # "anna"; "met" has no row
        model.mlm_head.bias[11] = 30.0  # no token
    fill = FillMask(model, BertTokenizer(vocab))
    found = fill("anna [MASK]", top_k=100)
    assert len(found) == 6 and found[0]["token"] == "anna"


def test_vectors_are_those_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    source = find_checkpoint("all-MiniLM-L6-v2")
    library = SentenceTransformer(str(source), device="cpu")
    library.max_seq_length = 64
    mine = Embedder.from_pretrained("all-MiniLM-L6-v2", max_length=64)
    texts = [*TEXTS, "Über the hill! " * 40, "?"]
    expected = library.encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(mine(texts), expected, atol=1e-5)


# Vectors


def test_a_mean_leaves_padding_out():
    states = torch.randn(3, 7, 5)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] + [0] * 6])
    changed = states.masked_fill(~mask[..., None].bool(), 1e6)
    expected = torch.stack(
        [one[: m.sum()].mean(0) for one, m in zip(states, mask)]
    )
    for each in (states, changed):
        torch.testing.assert_close(
            mean_states(each, mask), expected, rtol=1e-5, atol=1e-5
        )


def test_vectors_have_the_promised_form(folders):
    embed = Embedder.from_pretrained(folders["embed"])
    found = embed(TEXTS)
    assert found.dtype == np.float32 and found.shape == (4, 24)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert embed(TEXTS[0]).shape == (24,)
    assert embed([]).shape == (0, 24)
    plain = Embedder(embed.model, TOKENIZER, normalize=False, pooling="cls")
    batch = TOKENIZER(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        first = embed.model(**batch).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(plain(TEXTS[0]), first, atol=1e-5)
    headed = BertForMaskedLM.from_pretrained(folders["fill"])
    assert Embedder(headed, TOKENIZER)(TEXTS).shape == (4, 24)


# Classes


def test_probabilities_follow_the_problem():
    logits = torch.tensor([[2.0, 0.0], [-1.0, 3.0]])
    torch.testing.assert_close(probabilities(logits), logits.softmax(-1))
    torch.testing.assert_close(
        probabilities(logits, "multi_label_classification"),
        1 / (1 + (-logits).exp()),
    )
    assert torch.equal(probabilities(logits[:, :1]), logits[:, :1])


def test_averaging_weighs_windows_by_their_tokens(folders):
    options = {"max_length": 12, "long": "average"}
    classify = Classifier.from_pretrained(folders["classify"], **options)
    text = TEXTS[3]
    ids = TOKENIZER.encode(text)[1:-1]
    parts = [ids[i : i + 10] for i in range(0, len(ids), 10)]
    assert len(parts) > 2 and len(parts[-1]) < 10
    total = torch.zeros(3)
    edges = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id
    for part in parts:
        row = torch.tensor([[edges[0], *part, edges[1]]])
        with torch.no_grad():
            total += row.shape[1] * classify.model(row).logits[0].softmax(
                -1
            )
    expected = total / sum(len(part) + 2 for part in parts)
    found = list(classify(text)["scores"].values())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    short = TEXTS[1]
    cut = Classifier(classify.model, TOKENIZER, max_length=12)
    assert cut(short)["scores"] == pytest.approx(
        classify(short)["scores"], abs=1e-6
    )
    assert cut(text)["scores"] != pytest.approx(
        classify(text)["scores"], abs=1e-6
    )


# Masks


@given(
    st.lists(st.text("ab ", max_size=5), min_size=2, max_size=5),
    st.data(),
)
def test_filling_in_touches_one_mask(parts, data):
    text = "[MASK]".join(parts)
    place = data.draw(st.integers(0, len(parts) - 2))
    filled = fill_in(text, "[MASK]", place, "X")
    assert filled.count("[MASK]") == len(parts) - 2
    assert filled.replace("X", "[MASK]") == text
    joined = fill_in(text, "[MASK]", place, "##X")
    assert joined.replace(" ", "") == filled.replace(" ", "")
    assert " X" not in joined


# Entities over windows


@settings(max_examples=10, deadline=None)
@given(SENTENCES.map(lambda text: (text + " ") * 4), st.integers(0, 5))
def test_windows_give_every_word_a_tag(folders, text, stride):
    options = {"max_length": 16, "stride": stride}
    tagger = Tagger.from_pretrained(folders["tag"], **options)
    rows = tagger.rows([text])
    words = [w for row in rows for w in row["words"] if w != -100]
    assert sorted(words) == list(range(len(text.split())))
    for each in tagger(text):
        assert text[each["start"] : each["end"]] == each["text"]


# Answers


def every_span(model, row, longest):
    """Score, characters and margin of the best span, by trying all."""
    with torch.no_grad():
        output = model(
            torch.tensor([row["input_ids"]]),
            token_type_ids=torch.tensor([row["token_type_ids"]]),
        )
    start, end = output.start_logits[0], output.end_logits[0]
    inside = np.flatnonzero(row.inside).tolist()
    score, i, j = max(
        (float(start[i] + end[j]), i, j)
        for i in inside
        for j in inside
        if i <= j < i + longest
    )
    place = slice(int(row.spans[i, 0]), int(row.spans[j, 1]))
    return place, score - float(start[0] + end[0])


@settings(max_examples=20, deadline=None)
@given(SENTENCES)
def test_answers_are_the_best_of_all_spans(folders, context):
    context = " ".join(context.split()[:14])
    ask = QuestionAnswerer.from_pretrained(folders["ask"], longest=5)
    pair = "who met anna", context
    found = ask(pair)
    (row,) = ask.rows([pair])
    place, margin = every_span(ask.model, row, 5)
    assert context[found["start"] : found["end"]] == found["answer"]
    assert found["answer"] == context[place]
    assert found["score"] == pytest.approx(margin, abs=1e-4)
    for threshold, silent in ((margin - 0.1, False), (margin + 0.1, True)):
        ask.threshold = threshold
        assert (ask(pair)["answer"] == "") == silent


def test_answers_over_windows_are_those_of_the_chapter(folders):
    ask = QuestionAnswerer.from_pretrained(folders["ask"], max_length=20)
    contexts = [" ".join(f"word{n}" for n in range(k)) for k in (60, 3, 25)]
    pairs = [("who", context) for context in contexts]
    windows = ask.rows(pairs)
    assert [w["begins"] for w in windows].count(True) == 3 < len(windows)
    expected = read_answers(ask.model, windows, contexts)
    for context, found, (guess, *_) in zip(contexts, ask(pairs), expected):
        assert context[found["start"] : found["end"]] == found["answer"]
        assert found["answer"] == guess.text
        assert found["score"] == pytest.approx(guess.margin, abs=1e-4)


def test_the_threshold_lies_beside_the_weights(folders, tmp_path):
    model = BertForQuestionAnswering.from_pretrained(folders["ask"])
    model.save_pretrained(tmp_path, tokenizer=TOKENIZER)
    pair, path = ("who met anna", TEXTS[2]), tmp_path / "held_out.json"
    assert saved_threshold(tmp_path) == -np.inf
    bold = QuestionAnswerer.from_pretrained(tmp_path)(pair)
    assert bold["answer"]
    for change, silent in ((0.1, True), (-0.1, False)):
        threshold = bold["score"] + change
        path.write_text(f'{{"f1": 0.5, "threshold": {threshold}}}')
        assert saved_threshold(tmp_path) == threshold
        found = QuestionAnswerer.from_pretrained(tmp_path)(pair)
        assert (found["answer"] == "") == silent
        assert found["score"] == pytest.approx(bold["score"], abs=1e-5)
    given = QuestionAnswerer.from_pretrained(tmp_path, threshold=-np.inf)
    assert given(pair)["answer"] == bold["answer"]
    path.write_text('{"accuracy": 0.5}')  # of another task
    assert saved_threshold(tmp_path) == -np.inf
    deep = "[" * 10**5
    for damaged in ("", "{", "[]", '{"threshold": "high"}', "\xff", deep):
        path.write_bytes(damaged.encode("latin-1"))
        with pytest.raises(ValueError, match="held_out.json") as caught:
            QuestionAnswerer.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


# All of them


def predictors(folders, **options):
    return [
        (Embedder.from_pretrained(folders["embed"], **options), str),
        (Classifier.from_pretrained(folders["classify"], **options), str),
        (
            Classifier.from_pretrained(
                folders["classify"],
                max_length=16,
                long="average",
                **options,
            ),
            str,
        ),
        (Tagger.from_pretrained(folders["tag"], **options), str),
        (
            FillMask.from_pretrained(folders["fill"], **options),
            lambda text: "[MASK] " + text,
        ),
        (
            QuestionAnswerer.from_pretrained(folders["ask"], **options),
            lambda text: ("who met anna", text),
        ),
    ]


def flat(value):
    """The numbers in an answer, in order, and the strings."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [each for part in value for each in flat(part)]
    return (
        value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    )


def assert_close(one, two):
    one, two = flat(one), flat(two)
    assert len(one) == len(two)
    for a, b in zip(one, two):
        if isinstance(a, float):
            assert a == pytest.approx(b, abs=1e-5)
        else:
            assert a == b


@pytest.fixture(scope="module")
def both(folders):
    return predictors(folders), predictors(folders)


@pytest.mark.parametrize("packed", [False, True])
def test_alone_and_among_a_thousand_others(folders, packed):
    texts = [
        " ".join(WORDS.split()[n % 7 : n % 7 + 1 + n % 5]) + " x" * (n % 11)
        for n in range(1000)
    ]
    for predictor, form in predictors(folders, remove_padding=packed):
        asked = [form(text) for text in texts]
        together = predictor(asked)
        assert len(together) == 1000
        for number in range(0, 1000, 97):
            assert_close(predictor(asked[number]), together[number])


@settings(max_examples=10, deadline=None)
@given(
    st.lists(SENTENCES, min_size=1, max_size=6),
    st.integers(1, 200),
    st.integers(1, 4),
)
def test_batches_and_windows_change_nothing(both, texts, tokens, window):
    texts = [" ".join(text.split()[:14]) for text in texts]
    for (one, form), (two, _) in zip(*both):
        two.batch_tokens, two.window = tokens, window
        asked = [form(text) for text in texts]
        expected = one(asked)
        assert_close(expected, two(asked))
        assert_close(expected, list(two.stream(iter(asked))))


# Refusals


def test_errors_are_one_sentence_that_names_the_text(folders):
    embed, classify, _, tag, fill, ask = (
        predictor for predictor, _ in predictors(folders)
    )
    for predictor, asked, error, match in (
        (embed, ["a", ""], ValueError, "text 1 is empty"),
        (embed, ("a", "b"), TypeError, "text 0 is"),
        (classify, ["a", ("a", "b")], TypeError, "text 1 is"),
        (classify, [("a", "b"), "a"], TypeError, "text 1 is"),
        (tag, [None], TypeError, "text 0 is None"),
        (fill, "no mask", ValueError, r"holds no \[MASK\]"),
        (fill, "[MASK] " + "a " * 80, ValueError, "64 are read"),
        (ask, "who", TypeError, "a tuple of two texts"),
        (ask, [("who", " ")], ValueError, "text 0 is empty"),
    ):
        with pytest.raises(error, match=match) as caught:
            predictor(asked)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "source"),
    [
        (FillMask, "embed"),
        (Classifier, "fill"),
        (Tagger, "fill"),
        (QuestionAnswerer, "classify"),
    ],
)
def test_a_checkpoint_without_the_head(folders, made, source):
    with pytest.raises(ValueError, match="was saved without") as caught:
        made.from_pretrained(folders[source])
    assert "\n" not in str(caught.value)


def test_choices_are_checked(folders):
    with pytest.raises(ValueError, match="pooling='max'"):
        Embedder.from_pretrained(folders["embed"], pooling="max")
    with pytest.raises(ValueError, match="long='ignore'"):
        Classifier.from_pretrained(folders["classify"], long="ignore")
