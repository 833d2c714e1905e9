"""The commands that use trained models, as a shell runs them."""

import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_command_line import ENVIRONMENT

from bertbook.batching import Loaded
from bertbook.classification import Classification
from bertbook.command_line import make_parser
from bertbook.commands import COMMANDS, _answers, _settings
from bertbook.config import BertConfig
from bertbook.finetuning import Finetuning
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
)
from bertbook.labelled_data import read_labelled
from bertbook.model import BertModel
from bertbook.objectives import fast_dtype
from bertbook.search import load_index
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log
from bertbook.use_options import _GROUPS, _sentences, task_of, texts_of

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES += "the film was a slow and quiet drama with good bad actors".split()
NAMES += "who met anna in lab team ? . ##s ##ly".split()
TOKENIZER = BertTokenizer({name: i for i, name in enumerate(NAMES)})
SIZES = dict(
    vocab_size=len(NAMES),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    initializer_range=0.3,  # clear preferences
)
LABELS = ("bad", "fair", "good")
TAGS = ("O", "B-person", "I-person")
TEXTS = [
    "the film was good .",
    "anna met a quiet team in the lab .",
    "bad",
    "a slow and quiet drama with bad actors . " * 4,
]


def save(kind, folder, run=None, **options):
    torch.manual_seed(0)
    model = kind(BertConfig(**SIZES, **options))
    form = "published" if model.config.is_published else "bertbook"
    model.save_pretrained(folder, tokenizer=TOKENIZER, format=form)
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model for each command, and files of texts."""
    place = tmp_path_factory.mktemp("commands")
    kind, options = BertForSequenceClassification, {"num_labels": 3}
    options |= {"labels": LABELS, "classifier_pooling": "mean"}
    save(kind, place / "classify", **options)
    short = {"task": "classify", "max_length": 8}
    save(kind, place / "short", short, **options)
    save(kind, place / "pairs", {"task": "pairs"}, **options)
    tags = {"num_labels": 3, "labels": TAGS}
    save(BertForTokenClassification, place / "tag", **tags)
    save(BertForQuestionAnswering, place / "ask")
    save(BertForMaskedLM, place / "fill")
    save(BertModel, place / "encoder")
    lines = "".join(f"{text}\n" for text in TEXTS)
    (place / "texts.txt").write_text(lines)
    return place


@pytest.fixture
def shell(place, call_line, monkeypatch):
    """Call a line in the folder; its status and what it said."""
    monkeypatch.chdir(place)

    def call(line, typed=b""):
        done = call_line(line, place, typed)
        return SimpleNamespace(
            status=done.returncode, out=done.stdout, err=done.stderr
        )

    return call


@pytest.fixture
def records(shell):
    """The records of a line."""

    def call(line, typed=b""):
        done = shell(f"{line} --json", typed)
        assert done.status == 0, done.err
        return [json.loads(each) for each in done.out.splitlines()]

    return call


def bytes_of(texts):
    return "".join(f"{text}\n" for text in texts).encode()


# What is printed is what the class says


def test_classes(place, shell, records):
    classify = Classifier.from_pretrained(place / "classify")
    found = records("predict --model classify", bytes_of(TEXTS))
    assert [each.pop("text") for each in found] == TEXTS
    for one, two in zip(found, classify(TEXTS)):
        assert one["label"] == two["label"]
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-5)
    done = shell("predict --model classify", bytes_of(TEXTS))
    assert done.out.splitlines() == [
        f"{each['label']}\t{each['score']:.2f}" for each in found
    ]
    assert done.err == ""


def test_wherever_the_texts_come_from(place, shell):
    (place / "dos.txt").write_bytes(
        b"\xef\xbb\xbf" + bytes_of(TEXTS).replace(b"\n", b"\r\n")
    )
    (place / "cut.txt").write_bytes(bytes_of(TEXTS)[:-1])
    expected = shell("predict --model classify", bytes_of(TEXTS)).out
    for words in (
        shlex.join(TEXTS),
        "--file texts.txt",
        "--file dos.txt",
        "--file cut.txt",
    ):
        assert shell(f"predict --model classify {words}").out == expected
    before = shell(f"predict {shlex.join(TEXTS)} --model classify --quiet")
    assert before.out == expected


def test_a_row_is_as_long_as_in_training(place, records):
    long, line = TEXTS[3], f"predict --model short {shlex.quote(TEXTS[3])}"
    model = place / "short"
    for words, size in ("", 8), (" --max-length 64", 64):
        (found,) = records(line + words)
        expected = Classifier.from_pretrained(model, max_length=size)(long)
        assert found["scores"] == pytest.approx(expected["scores"])
    (average,) = records(f"{line} --long average --stride 2")
    reads = Classifier.from_pretrained(
        model, max_length=8, long="average", stride=2
    )
    assert average["scores"] == pytest.approx(reads(long)["scores"])


@pytest.mark.parametrize("model", ["classify", "short"])
def test_a_model_answers_as_it_was_scored(place, records, model):
    """In rows of one length, wherever that comes from."""
    long = "the slow drama was good . " * 30
    (place / "long.csv").write_text(f"text,label\n{long},good\n")
    (found,) = records(f"evaluate --model {model} --data long.csv")
    (said,) = records(f"predict --model {model} {shlex.quote(long)}")
    chance = said["scores"]["good"]
    assert found["loss"] == pytest.approx(-np.log(chance), abs=1e-4)


def test_pairs_have_a_tab(place, records):
    pairs = [("who met anna ?", "the team ."), ("a film", "a b \t c")]
    classify = Classifier.from_pretrained(place / "pairs")
    typed = bytes_of("\t".join(pair) for pair in pairs)
    found = records("predict --model pairs", typed)
    for one, two, expected in zip(found, pairs, classify(pairs)):
        assert (one["text"], one["text_pair"]) == two
        assert one["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    again = records("predict --model classify --task pairs", typed)
    assert [each["label"] for each in again] == [
        each["label"] for each in found
    ]


def test_entities(place, shell, records):
    tagger = Tagger.from_pretrained(place / "tag")
    found = records("predict --model tag", bytes_of(TEXTS))
    for one, text, expected in zip(found, TEXTS, tagger(TEXTS)):
        assert one["text"] == text
        spans = [(e["start"], e["end"], e["entity"]) for e in expected]
        assert [
            (e["start"], e["end"], e["entity"]) for e in one["entities"]
        ] == spans
    lines = shell("predict --model tag", bytes_of(TEXTS)).out.splitlines()
    assert len(lines) == len(TEXTS)
    for line, one in zip(lines, found):
        assert line == "; ".join(
            f"{each['entity']}: {each['text']}" for each in one["entities"]
        )


def test_a_text_of_two_lines_has_one_line(place, shell, records):
    text = shlex.quote("anna\nmet\nanna\nlab\n" * 4)
    found = records(f"predict --model tag {text}")[0]["entities"]
    assert any("\n" in each["text"] for each in found)
    assert shell(f"predict --model tag {text}").out.count("\n") == 1


def test_masks(place, shell, records):
    fill = FillMask.from_pretrained(place / "fill")
    texts = ["the [MASK] was good", "[MASK] met [MASK]"]
    one, two = records("fill-mask --model fill --top-k 3", bytes_of(texts))
    assert [g["token"] for g in one["guesses"][0]] == [
        g["token"] for g in fill(texts[0], top_k=3)
    ]
    assert len(two["guesses"]) == 2 and len(two["guesses"][0]) == 3
    assert (
        len(records("fill-mask --model fill", b"[MASK]\n")[0]["guesses"][0])
        == 5
    )
    line = shell("fill-mask --model fill --top-k 2", b"[MASK] or [MASK]\n")
    assert re.fullmatch(
        r"\S+ [\d.]+, \S+ [\d.]+ \| \S+ [\d.]+, \S+ [\d.]+\n", line.out
    )


def test_answers(place, shell, records):
    context = "anna met the quiet team in the lab .\nthe film was good ."
    (place / "news.txt").write_text(context)
    asked = ["who met anna ?", "who was in the lab ?"]
    ask = QuestionAnswerer.from_pretrained(place / "ask", longest=3)
    expected = ask([(question, context) for question in asked])
    line = "answer --model ask --longest 3"
    from_file = records(f"{line} --context news.txt", bytes_of(asked))
    flat = context.replace("\n", " ")
    from_tabs = records(line, bytes_of(f"{q}\t{flat}" for q in asked))
    for found in from_file, from_tabs:
        for one, two, question in zip(found, expected, asked):
            assert one["question"] == question
            assert (one["start"], one["end"]) == (two["start"], two["end"])
            assert one["score"] == pytest.approx(two["score"], abs=1e-4)
    done = shell(f"{line} --context news.txt", bytes_of(asked))
    assert done.out.splitlines() == [
        " ".join(each["answer"].split()) for each in expected
    ]


def test_the_threshold_of_the_folder(place, shell, tmp_path):
    folder = shutil.copytree(place / "ask", tmp_path / "ask")
    pair = b"who met anna ?\tanna met the team .\n"
    (folder / "held_out.json").write_text('{"threshold": 1e9}')
    assert shell(f"answer --model {folder}", pair).out == "\n"
    bold = shell(f"answer --model {folder} --threshold=-1e9", pair)
    assert bold.out.strip() and bold.status == 0


def test_vectors_and_a_search_among_them(place, shell, records):
    embed = Embedder.from_pretrained(place / "encoder")
    found = records("embed --model encoder", bytes_of(TEXTS))
    vectors = [each["vector"] for each in found]
    np.testing.assert_allclose(vectors, embed(TEXTS), atol=1e-5)
    lines = shell("embed --model encoder", bytes_of(TEXTS)).out.splitlines()
    numbers = [[float(word) for word in line.split()] for line in lines]
    np.testing.assert_allclose(numbers, vectors, atol=1e-5)
    done = shell("embed --model encoder --file texts.txt --out index")
    assert done.out == "4 texts are in index\n"
    index = load_index(place / "index", embed)
    assert index.texts == TEXTS
    queries = ["good film", "who met anna ?"]
    line = "search --model encoder --index index --count 2"
    for one, query in zip(records(line, bytes_of(queries)), queries):
        hits = index.search(query, 2)
        assert one["query"] == query
        assert [hit["number"] for hit in one["hits"]] == [
            hit.number for hit in hits
        ]
        assert one["hits"][0]["text"] == TEXTS[hits[0].number]
    lines = shell(line, bytes_of(queries)).out.splitlines()
    assert len(lines) == 4
    assert all(re.match(r"-?\d\.\d\d\t\S", each) for each in lines)
    all_of_them = records("search --model encoder --index index x")
    assert len(all_of_them[0]["hits"]) == 4
    other = "search --model encoder --pooling cls --index index x"
    assert shell(other).status == 1


# Streams


def parsed(line):
    words = shlex.split(line)
    return make_parser(COMMANDS, words).parse_args(words)


def test_only_a_window_is_read_ahead(place, monkeypatch):
    pulled = []

    def endless():
        while True:
            pulled.append(0)
            yield f"film {len(pulled)}\n".encode()

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=endless()))
    monkeypatch.chdir(place)
    options = parsed("predict --model classify --window 3")
    stream = _answers(options, "Classifier", texts_of(options))
    assert pulled == []
    for number in range(1, 8):
        record, _ = next(stream)
        assert record["text"] == f"film {number}"
        assert len(pulled) == 3 * ((number + 2) // 3)
    stream.close()


def test_head_may_leave(place):
    """No traceback, and no complaint of Python when it ends."""
    line = "-m bertbook predict --model classify --window 1 --file many.txt"
    (place / "many.txt").write_bytes(bytes_of(TEXTS) * 500)
    with subprocess.Popen(
        [sys.executable, *line.split()],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().split("\t")[0] in LABELS
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]))
        .map(lambda text: re.sub(r"[\r\n\ufeff]", " ", text))
        .filter(lambda text: text.strip()),
        min_size=1,
        max_size=5,
    )
)
def test_every_line_is_a_text(texts):
    data = "\n".join(texts).encode()
    options = SimpleNamespace(texts=[], file=None)
    usual = sys.stdin
    try:
        sys.stdin = io.TextIOWrapper(io.BytesIO(data))
        assert list(texts_of(options)) == texts
    finally:
        sys.stdin = usual
    options.texts = [text for text in texts if "\0" not in text]
    if options.texts:
        assert list(texts_of(options)) == options.texts


# Training


@pytest.fixture(scope="module")
def data(place):
    """A file for each task, and others to hold out."""
    draw = np.random.default_rng(0)

    def sentence():
        return " ".join(draw.choice(NAMES[5:17], draw.integers(3, 9)))

    for part, count in ("train", 40), ("rest", 16):
        texts = [sentence() for _ in range(count)]
        marks = ["yes" if "good" in text else "no" for text in texts]
        marks[:2] = "yes", "no"
        rows = [
            {"text": text, "text_pair": sentence(), "label": mark}
            for text, mark in zip(texts, marks)
        ]
        answers = [
            {
                "id": str(number),
                "question": "who met anna ?",
                "context": f"the {text}",
                "answers": {"text": ["the"], "answer_start": [0]},
            }
            for number, text in enumerate(texts)
        ]
        for name, each in ("rows", rows), ("answers", answers):
            lines = "".join(json.dumps(row) + "\n" for row in each)
            (place / f"{part}_{name}.jsonl").write_text(lines)
        tags = ["anna\tB-person\nfilm\tI-person\nwas\tO\n\n"] * count
        (place / f"{part}.conll").write_text("".join(tags))
    return place


SMALL = "--initial fill --batch-size 8 --max-length 16 --quiet"
FILES = "--data train_rows.jsonl --held-out rest_rows.jsonl"


def test_train_score_and_predict(data, shell, records):
    line = f"finetune --task classify {FILES} {SMALL} --out ours"
    (best,) = records(f"{line} --epochs 2 --learning-rate 1e-3")
    log = read_log(data / "ours/log.jsonl")
    assert log[-1]["step"] == 10
    scores = [
        each["held_out_accuracy"]
        for each in log
        if "held_out_accuracy" in each
    ]
    assert best["accuracy"] == max(scores) and best["steps"] == 10
    assert task_of(str(data / "ours")) == "classify"
    score = "evaluate --model ours --data rest_rows.jsonl"
    (found,) = records(score)
    assert found["accuracy"] == pytest.approx(max(scores))
    assert found["texts"] == 16
    model = BertForSequenceClassification.from_pretrained(data / "ours")
    task = Classification(("no", "yes"))
    held_out = read_labelled(
        data / "rest_rows.jsonl", "classify", labels=task.labels
    )
    features = task.features(held_out, TOKENIZER, 16)
    expected = task.evaluate(model, features, held_out)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5)
    lines = dict(each.split("\t") for each in shell(score).out.splitlines())
    assert lines.keys() == found.keys() and lines["texts"] == "16"
    (said,) = records("predict --model ours", b"a good film\n")
    assert said["scores"].keys() == {"no", "yes"}
    again = shell(f"{line} --epochs 2 --learning-rate 1e-3")
    assert again.status == 1 and "--resume" in again.err


@pytest.mark.parametrize(
    ("task", "files", "command"),
    [
        ("pairs", FILES, "predict"),
        ("tag", "--data train.conll --held-out rest.conll", "predict"),
        (
            "answer",
            "--data train_answers.jsonl --held-out rest_answers.jsonl",
            "answer",
        ),
    ],
)
def test_every_task_goes_all_the_way(
    data, shell, records, task, files, command
):
    out = f"out-{task}"
    line = f"finetune --task {task} {files} {SMALL} --out {out}"
    done = shell(line + " --epochs 0.4")
    assert done.status == 0, done.err
    assert done.out.splitlines()[1] == (
        f"next: python -m bertbook {command} --model {out}"
    )
    held_out = files.rpartition(" ")[2]
    (found,) = records(f"evaluate --model {out} --data {held_out}")
    assert found["texts"] == 16
    typed = b"a film\tthe good drama\n"
    (said,) = records(f"{command} --model {out}", typed)
    key = {"tag": "entities", "pairs": "label", "answer": "answer"}[task]
    assert key in said


def test_options_are_fields(place, data, monkeypatch):
    monkeypatch.chdir(place)
    line = f"finetune --task classify {FILES} --initial fill --out x"
    assert _settings(parsed(line)) == Finetuning("classify", "fill")
    words = {
        "epochs": 0.5,
        "batch_size": 7,
        "max_length": 9,
        "dropout": 0.25,
        "reinitialised": 1,
        "dtype": "float32",
        "evaluate_every": 3,
        "patience": 2,
        "seed": 5,
        "learning_rate": 0.5,
        "optimizer": "muon",
        "muon_learning_rate": 0.25,
        "warmup": 0.75,
    }
    given = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in words.items()
    )
    found = _settings(parsed(f"{line} {given} --fresh"))
    assert found.fresh and found.data == ""
    for name, value in words.items():
        where = found if hasattr(found, name) else found.optimization
        assert getattr(where, name) == value, name
    flags = _GROUPS["finetune"]["the recipe"].split()
    assert {flag[2:].replace("-", "_") for flag in flags} <= words.keys()


def test_classes_can_be_balanced(data, shell, monkeypatch):
    import bertbook.finetuning

    tasks = []

    @functools.wraps(bertbook.finetuning.finetune)  # the help reads it
    def stop(settings, task, *rest, **options):
        tasks.append(task)
        raise ValueError("enough")

    monkeypatch.setattr(bertbook.finetuning, "finetune", stop)
    line = f"finetune --task classify {FILES} {SMALL} --out no"
    for words in "", " --balanced", " --pooling pooler":
        assert shell(line + words).status == 1
    plain, balanced, pooled = tasks
    assert plain == Classification(("no", "yes"))
    rows = read_labelled(data / "train_rows.jsonl", "classify").rows
    counts = np.bincount(rows["label"][:])
    np.testing.assert_allclose(balanced.weights, 20 / counts)
    assert pooled.pooling == "pooler"


INTERRUPT = """
import os, signal, sys
from bertbook.command_line import main
from bertbook.commands import COMMANDS
from bertbook.run_loop import Reporter

tell = Reporter.__call__

def press(report, record, done):
    tell(report, record, done)
    if record["step"] == 4:
        os.kill(os.getpid(), signal.SIGINT)

Reporter.__call__ = press
sys.exit(main(sys.argv[1:], COMMANDS))
"""


def test_stopped_and_continued(data, shell, monkeypatch):
    """Status 130, what to do, and in the end the same run, anywhere."""
    line = f"finetune --task classify {FILES} {SMALL} --epochs 2"
    assert shell(f"{line} --out whole").status == 0
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, *line.split(), "--out", "halves"],
        cwd=data,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130 and done.stdout == "", done.stderr
    assert "stopped at step 4; go on by the same line with --resume" in (
        done.stderr
    )
    other = shell(f"{line} --seed 3 --out halves --resume")
    assert other.status == 1 and "seed is 0 there and 3 here" in other.err
    elsewhere = {"avx512_bf16": fast_dtype() == "float32"}
    with monkeypatch.context() as patch:
        patch.setattr("torch.cpu.get_capabilities", lambda: elsewhere)
        again = shell(f"{line} --out halves --resume")
    assert again.status == 0, again.err
    assert (
        again.out.splitlines()[0]
        == (shell(f"{line} --out whole --resume").out.splitlines()[0])
    )
    one, two = (
        BertForSequenceClassification.from_pretrained(
            data / each
        ).state_dict()
        for each in ("whole", "halves")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


# Wrong lines


WRONG = {
    "no head": ("fill-mask --model encoder '[MASK]'", ["mlm_head"]),
    "another head": ("answer --model tag 'a\tb'", ["span_head"]),
    "no task": ("predict --model encoder x", ["encoder", "--task"]),
    "a reader": ("predict --model ask x", ["'answer'", "answer"]),
    "an unknown task": ("predict --model tag --task guess x", ["'guess'"]),
    "no mask": ("fill-mask --model fill 'a film'", ["[MASK]", "a film"]),
    "not UTF-8": (
        "predict --model classify --file latin.txt",
        ["latin.txt:2 is not UTF-8", "iconv"],
    ),
    "an empty line": (
        "predict --model classify --file gap.txt",
        ["gap.txt:2 has no text"],
    ),
    "an empty file": (
        "predict --model classify --file empty.txt",
        ["empty.txt is empty"],
    ),
    "nothing typed": ("embed --model encoder", ["standard input is empty"]),
    "nothing to index": (
        "embed --model encoder --out never",
        ["standard input is empty"],
    ),
    "no file": ("predict --model tag --file no.txt", ["no.txt", "No such"]),
    "no context": ("answer --model ask --context no.txt x", ["no.txt"]),
    "two sources": (
        "predict --model classify --file texts.txt x",
        ["TEXT or --file"],
    ),
    "no tab": ("predict --model pairs 'a film'", ["text 1 has no tab"]),
    "half a pair": ("predict --model pairs 'a film\t '", ["text 1 has no"]),
    "no model": ("predict --model no/such x", ["no/such"]),
    "a folder without": ("predict --model index0 x", ["index0"]),
    "a damaged run": ("predict --model torn x", ["run.json is not JSON"]),
    "a length that is none": (
        "predict --model wordy --task classify x",
        ["run.json: rows of 'long' pieces", "--max-length"],
    ),
    "a length that is none, to score": (
        "evaluate --model wordy --task classify --data great.csv",
        ["run.json: rows of 'long' pieces"],
    ),
    "a length that is too long": (
        "evaluate --model longer --task classify --data great.csv",
        ["run.json: rows of 65 pieces", "to 64"],
    ),
    "a long row": (
        "predict --model classify --max-length 65 x",
        ["max_length=65", "64"],
    ),
    "a way of cutting": (
        "predict --model classify --long middle x",
        ["long='middle'", "average"],
    ),
    "tags are not cut": (
        "predict --model tag --long average x",
        ["--long"],
    ),
    "a stride of no windows": (
        "predict --model classify --stride 2 x",
        ["--stride 2", "--long average"],
    ),
    "pooling": ("embed --model encoder --pooling sum x", ["pooling='sum'"]),
    "no index": (
        "search --model encoder --index classify x",
        ["classify", "save_index"],
    ),
    "a label that it does not know": (
        "evaluate --model classify --data great.csv",
        ["great.csv:3", "'great'", "bad, fair, good"],
    ),
    "a column": (
        "evaluate --model classify --data names.csv",
        ["names.csv", "no column text", "review"],
    ),
    "half a column": (
        "evaluate --model classify --data names.csv --column text",
        ["--column text", "COLUMN=NAME"],
    ),
    "a column of another task": (
        "evaluate --model classify --data names.csv --column tags=review",
        ["'tags'"],
    ),
    "an empty table": (
        "evaluate --model classify --data empty.csv",
        ["empty.csv is empty"],
    ),
    "a table in Latin": (
        "evaluate --model classify --data latin.csv",
        ["latin.csv:2 is not UTF-8"],
    ),
    "a split of a file": (
        "evaluate --model classify --data great.csv --split test",
        ["great.csv", "'test'"],
    ),
    "one file": (
        "finetune --task classify --data great.csv --initial fill "
        "--out never",
        ["great.csv is one file", "--held-out"],
    ),
    "a task to learn": (
        "finetune --task guess --data great.csv --held-out great.csv "
        "--initial fill --out never",
        ["'guess'", "classify"],
    ),
    "a recipe": (
        "finetune --task classify --data great.csv --held-out great.csv "
        "--initial fill --out never --epochs 0",
        ["epochs=0", "above 0"],
    ),
    "a rate of no optimizer": (
        "finetune --task classify --data great.csv --held-out great.csv "
        "--initial fill --out never --muon-learning-rate 0.1",
        ["--muon-learning-rate with adamw", "--optimizer muon"],
    ),
    "weights of tags": (
        "finetune --task tag --data wnut --initial fill --out never "
        "--balanced",
        ["--balanced", "tag"],
    ),
    "a folder in use": (
        "finetune --task classify --data great.csv --held-out great.csv "
        "--initial fill --out classify",
        ["classify holds", "--out"],
    ),
    "no run": (
        "finetune --task classify --data great.csv --held-out great.csv "
        "--initial fill --max-length 16 --out never --resume",
        ["never holds no run"],
    ),
}


LEARN = "finetune --task classify --data great.csv --held-out great.csv"


@pytest.mark.parametrize(
    "line", ["predict --task classify --model {} x", LEARN]
)
@pytest.mark.parametrize(
    "text", ['{"hidden_size": "24"}', "[]", "[" * 10**5]
)
def test_a_damaged_folder_is_named(place, shell, tmp_path, line, text):
    (place / "great.csv").write_text("text,label\na,bad\nb,great\n")
    folder = shutil.copytree(place / "classify", tmp_path / "model")
    (folder / "config.json").write_text(text)
    line += f" --initial {folder} --out never" if line is LEARN else ""
    done = shell(line.format(folder))
    assert done.status == 1 and done.err.count("\n") == 1, done.err
    assert f"{folder}/config.json" in done.err
    assert not (place / "never").exists()


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence(place, shell, kind):
    (place / "latin.txt").write_bytes("so\nêtre\n".encode("latin-1"))
    (place / "latin.csv").write_bytes(
        "text,label\nêtre,good\n".encode("latin-1")
    )
    (place / "gap.txt").write_text("so\n \nto\n")
    (place / "empty.txt").write_text("")
    (place / "empty.csv").write_text("text,label\n")
    (place / "great.csv").write_text("text,label\na,bad\nb,great\n")
    (place / "names.csv").write_text("review,label\na,bad\nb,good\n")
    for name in "index0", "torn":
        (place / name).mkdir(exist_ok=True)
    (place / "torn/run.json").write_text('{"task": ')
    for name, length in ("wordy", '"long"'), ("longer", "65"):
        folder = place / name
        shutil.copytree(place / "classify", folder, dirs_exist_ok=True)
        (folder / "run.json").write_text(f'{{"max_length": {length}}}')
    line, said = WRONG[kind]
    done = shell(line)
    assert done.status == 1 and done.out == "", done.out
    assert done.err.count("\n") == 1 and "Traceback" not in done.err
    for words in said:
        assert words in done.err
    assert not (place / "never").exists()


def test_bytes_of_the_line_are_checked_too():
    options = SimpleNamespace(
        texts=["fine", os.fsdecode(b"s\xe9")], file=None
    )
    with pytest.raises(ValueError, match="text 2 is not UTF-8"):
        list(texts_of(options))


@pytest.mark.parametrize(
    "line",
    [
        "predict x",
        "search --model encoder x",
        "evaluate --model classify",
        "finetune --task classify --data x.csv --out y",
        "predict --model classify --window 0 x",
        "fill-mask --model fill --top-k none x",
        "predict --model tag --stride -1 x",
        "answer --model ask --stride -1 'a\tb'",
        "answer --model ask --threshold nan 'a\tb'",
        "answer --model ask --threshold x 'a\tb'",
        "search --model encoder --index index --window 2 x",
        "search --model encoder --index index --batch-tokens 2 x",
        "search --model encoder --index index --quiet x",
    ],
)
def test_a_line_that_cannot_be_read(shell, line):
    with pytest.raises(SystemExit) as end:
        shell(line)
    assert end.value.code == 2


# Help


def test_help_is_quick():
    code = (
        "import sys\nfrom bertbook.command_line import main\n"
        "from bertbook.commands import COMMANDS\n"
        "try: main(['--help'], COMMANDS)\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(any(m in sys.modules for m in "
        "('torch', 'numpy', 'datasets', 'tokenizers', 'tqdm')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, command in COMMANDS.items():
        assert re.search(
            rf"^\s+{name}\s+{command.summary}$", done.stdout, re.M
        )


@pytest.mark.parametrize("name", _GROUPS)
def test_help_says_every_option_and_default(name, shell, capfd):
    with pytest.raises(SystemExit):
        shell(f"{name} --help")
    text = capfd.readouterr().out
    widths = sorted(len(line) for line in text.splitlines())
    assert widths[-2] <= 80
    flat = " ".join(text.split())
    for words in _GROUPS[name].values():
        for word in words.split():
            assert word.rstrip("!") in flat
    for flag in re.findall(
        r"(--[\w-]+)!", " ".join(_GROUPS[name].values())
    ):
        assert flag in text.partition("options:")[0]
    if "--window" in flat:
        usual = Loaded.__init__.__kwdefaults__["window"]
        assert f"(default: {usual})" in flat
    if "--max-length" in flat:
        length = "as trained, or all positions of the model"
        if name == "finetune":
            length = Finetuning("classify", "none").max_length
        assert f"pieces of a row (default: {length})" in flat


def test_the_table_has_each_option_once_and_uses_all():
    flags = [flag for flag, _ in _sentences()]
    assert len(flags) == len(set(flags))
    used = {
        word.rstrip("!")
        for groups in _GROUPS.values()
        for words in groups.values()
        for word in words.split()
    }
    assert used == set(flags)
    assert COMMANDS.keys() == {"pretrain", *_GROUPS}


def test_the_module_runs_all_commands(place):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bertbook",
            *"predict --model tag anna".split(),
        ],
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stderr == ""
