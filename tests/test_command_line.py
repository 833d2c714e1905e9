"""The command `python -m bertbook`, as a shell runs it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bertbook.command_line import COMMANDS, Command, main, make_parser
from bertbook.commands import COMMANDS as EVERY_COMMAND
from bertbook.config import PRESETS, BertConfig
from bertbook.heads import BertForMaskedLM, BertForPreTraining
from bertbook.objectives import Pretraining
from bertbook.optimization import Length
from bertbook.run_folder import settings_of, small_budget
from bertbook.run_options import (
    add_pretrain_arguments,
    chosen_settings,
    default_settings,
    settings_from,
)
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k != "BERTBOOK_TRACEBACK"},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "80",
}
SMALL = (
    "--vocab-size 300 --preset tiny --dtype float32 --seq-length 16 "
    "--batch-size 8 --evaluate-every 4 --save-every 3"
)


def bertbook(line, folder, **options):
    return subprocess.run(
        [sys.executable, "-m", "bertbook", *shlex.split(line)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def refused(done, *words, status=1):
    """One sentence on stderr, no traceback, nothing on stdout."""
    assert done.returncode == status, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert status == 2 or len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[-1], done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text of 300 documents."""
    folder = tmp_path_factory.mktemp("command")
    draw = np.random.default_rng(0)
    words = [
        "".join(draw.choice(list("aeiourstln"), 4)) for _ in range(150)
    ]
    documents = [
        ". ".join(
            " ".join(draw.choice(words, 6)).capitalize() for _ in range(4)
        )
        + "."
        for _ in range(300)
    ]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A finished run of ten steps, in the folder `whole`."""
    line = f"pretrain --corpus text.txt --steps 10 {SMALL} --out whole"
    done = bertbook(line, folder)
    assert done.returncode == 0, done.stderr
    return done


def without_clock(path):
    return [
        {name: value for name, value in each.items() if name != "seconds"}
        for each in read_log(path)
    ]


def same_weights(one, two, kind=BertForMaskedLM):
    ours, theirs = (
        kind.from_pretrained(each).state_dict() for each in (one, two)
    )
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_fills_its_folder(run, folder):
    out = folder / "whole"
    names = {path.name for path in out.iterdir()}
    assert names >= {
        *("model.safetensors", "config.json", "vocab.txt", "log.jsonl"),
        *("checkpoints", "run.json", "data"),
    }
    model = BertForMaskedLM.from_pretrained(out)
    assert not model.loading_report.problems
    tokenizer = BertTokenizer.from_pretrained(out)
    assert len(tokenizer.get_vocab()) == model.config.vocab_size <= 300
    assert model.config.hidden_size == PRESETS["tiny"].hidden_size
    assert model.config.hidden_dropout_prob == 0
    for line in (out / "log.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)
    assert [each["step"] for each in read_log(out / "log.jsonl")][-1] == 10


def test_what_is_said_at_the_end(run, folder):
    """The result goes to stdout, progress and notes to stderr."""
    result, following = run.stdout.splitlines()
    log = read_log(folder / "whole/log.jsonl")
    last = [each for each in log if "held_out_loss" in each][-1]
    loss = last["held_out_loss"]
    assert result.startswith("step 10, 1,280 tokens, ")
    assert f"held-out loss {loss:.2f} nats a piece" in result
    assert f"accuracy {last['held_out_accuracy']:.1%}" in result
    index = json.loads(
        (folder / "whole/data/validation/index.json").read_text()
    )
    tokens, documents, characters = (
        sum(shard[name] for shard in index["shards"])
        for name in ("tokens", "documents", "characters")
    )
    pieces = tokens - documents  # a [SEP] ends each document
    said = float(re.search(r"([\d.]+) a character", result)[1])
    assert said == pytest.approx(loss * pieces / characters, abs=0.006)
    assert "--initial whole" in following and "--seq-length 32" in following
    steps = re.findall(r"^step (\d+)  ", run.stderr, re.M)
    assert steps == ["0", "4", "8", "10"]
    assert "note: the training part has" in run.stderr


def test_quiet_says_only_the_end(folder):
    line = (
        f"pretrain --corpus text.txt --steps 1 {SMALL} --out quiet --quiet"
    )
    done = bertbook(line, folder)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
    lines = done.stderr.splitlines()
    assert all(line.startswith("note: ") for line in lines)


def test_the_next_line_works(run, folder):
    """Longer rows, from the weights and the vocabulary of the first run."""
    line = run.stdout.splitlines()[1].partition("-m bertbook ")[2]
    line = line.replace("--corpus …", "--corpus text.txt")
    line = line.replace(
        "--minutes …", "--steps 2 --batch-size 8 --dtype float32"
    )
    done = bertbook(line, folder)
    assert done.returncode == 0, done.stderr
    first = BertTokenizer.from_pretrained(folder / "whole")
    second = BertTokenizer.from_pretrained(folder / "whole-32")
    assert first.get_vocab() == second.get_vocab()
    before, after = (
        [
            r
            for r in read_log(folder / each / "log.jsonl")
            if "held_out_loss" in r
        ]
        for each in ("whole", "whole-32")
    )
    learned = before[-1]["held_out_loss"]
    assert abs(after[0]["held_out_loss"] - learned) < 0.2
    assert before[0]["held_out_loss"] - learned > 0.2


INTERRUPT = """
import os, signal, sys
from bertbook.command_line import main
from bertbook.run_loop import Reporter

tell = Reporter.__call__

def press(report, record, done):
    tell(report, record, done)
    if record["step"] == 5:
        os.kill(os.getpid(), int(sys.argv[1]))

Reporter.__call__ = press
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued(run, folder, kind):
    """Status 130, a line to paste, and in the end the same run."""
    name = f"stopped {kind.name}"
    line = f"pretrain --corpus text.txt --steps 10 {SMALL} --out '{name}'"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            INTERRUPT,
            str(int(kind)),
            *shlex.split(line),
        ],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130 and done.stdout == "", done.stderr
    last = done.stderr.splitlines()[-1]
    wanted = f"python -m bertbook pretrain --resume --out '{name}'"
    assert last.endswith(f"stopped at step 5; continue with: {wanted}")
    assert read_log(folder / name / "log.jsonl")[-1]["step"] == 5
    again = bertbook(wanted.partition("-m bertbook ")[2], folder)
    assert again.returncode == 0, again.stderr
    assert same_weights(folder / "whole", folder / name)
    logs = (
        without_clock(folder / each / "log.jsonl")
        for each in ("whole", name)
    )
    assert next(logs) == next(logs)


def test_stopped_before_it_began(folder):
    """Ctrl-C while the text is read leaves no traceback."""
    code = (
        "import sys\nfrom bertbook import command_line\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "command_line.write_text = stop\n"
        "sys.exit(command_line.main(sys.argv[1:]))\n"
    )
    line = "pretrain --corpus text.txt --steps 1 --out early"
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    refused(
        done,
        "stopped; begin again, or give --resume if it trained",
        status=130,
    )


def test_a_finished_run_is_not_begun_again(run, folder):
    line = f"pretrain --corpus text.txt --steps 10 {SMALL} --out whole"
    before = sorted((folder / "whole").rglob("*"))
    refused(bertbook(line, folder), "holds a run", "--resume", "--out")
    other = line.replace("--corpus text.txt", "--corpus rotten_tomatoes")
    refused(bertbook(other, folder), "holds a run")
    assert sorted((folder / "whole").rglob("*")) == before


@pytest.mark.parametrize(
    "words, named",
    [
        ("--steps 20", "length.steps is 10 there and 20 here"),
        ("--minutes 1", "length.minutes"),
        ("--learning-rate 1", "optimization.learning_rate"),
        ("--preset mini", "model.hidden_size is 128 there and 256 here"),
        ("--dropout 0.1", "model.hidden_dropout_prob"),
        ("--mask-rate 0.15", "last_rate"),
        ("--objective mlm+nsp", "objective is 'mlm' there"),
        ("--corpus imdb", "corpus is"),
        ("--vocab-size 301", "vocab_size is 300 there and 301 here"),
    ],
)
def test_a_changed_option_refuses_to_resume(
    run, folder, words, named, capsys, monkeypatch
):
    monkeypatch.chdir(folder)
    data = sorted((folder / "whole/data").rglob("*"))
    line = f"pretrain --resume --out whole {words}"
    assert main(shlex.split(line)) == 1
    said = capsys.readouterr()
    assert named in said.err and "whole holds a run" in said.err
    assert said.out == "" and said.err.count("\n") == 1
    assert sorted((folder / "whole/data").rglob("*")) == data


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 200_000, '{"a": 1}', '{"model": 1}', "\xff"],
    ids=range(7),
)
def test_damaged_settings_are_named(tmp_path, text, capsys):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    assert main(["pretrain", "--resume", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run.json'} " in said and said.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "[" * 200_000], ids=range(3))
def test_a_damaged_note_of_the_text_is_named(
    run, folder, tmp_path, text, capsys
):
    shutil.copytree(folder / "whole", tmp_path / "whole")
    path = tmp_path / "whole/data/text.json"
    path.write_text(text)
    line = ["pretrain", "--resume", "--out", str(tmp_path / "whole")]
    assert main(line) == 1
    said = capsys.readouterr().err
    assert f"{path} " in said and said.count("\n") == 1


def test_the_same_options_resume(run, folder):
    """A finished run is told again, and nothing is computed."""
    before = (folder / "whole/log.jsonl").read_bytes()
    line = f"pretrain --corpus text.txt --steps 10 {SMALL} --out whole"
    done = bertbook(line + " --resume --workers 2 --quiet", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 10, 1,280 tokens")
    assert (folder / "whole/log.jsonl").read_bytes() == before


WRONG = {
    "no such file": ("--corpus no.txt", ["no.txt", "there is no file"]),
    "no such name": ("--corpus nobody/nothing", ["nobody/nothing", "imdb"]),
    "not UTF-8": (
        "--corpus latin.txt",
        ["latin.txt:2 is not UTF-8", "iconv"],
    ),
    "empty": ("--corpus empty.txt", ["empty.txt", "blank line"]),
    "one document": ("--corpus one.txt", ["one.txt", "held out"]),
    "folder without text": ("--corpus nothing", ["nothing holds no .txt"]),
    "out is in a file": (
        "--corpus text.txt --vocab-size 300 --out text.txt/run",
        ["text.txt/run", "Not a directory"],
    ),
    "vocabulary too small": (
        "--corpus text.txt --vocab-size 4",
        ["4", "raise"],
    ),
    "no vocabulary": (
        "--corpus text.txt --vocabulary here/no.txt",
        ["here/no.txt"],
    ),
    "no config": ("--corpus text.txt --config no.json", ["no.json"]),
    "bad config": (
        "--corpus text.txt --config bad.json",
        ["bad.json", "hidden_size='wide'"],
    ),
    "heads": (
        "--corpus text.txt --config heads.json",
        ["heads.json", "num_attention_heads=3"],
    ),
    "objective": ("--corpus text.txt --objective nsp", ["objective='nsp'"]),
    "optimizer": ("--corpus text.txt --optimizer sgd", ["'sgd'", "muon"]),
    "type": ("--corpus text.txt --dtype int8", ["dtype='int8'"]),
    "unit": ("--corpus text.txt --masking line", ["unit='line'", "word"]),
    "rate": ("--corpus text.txt --mask-rate 1.5", ["rate=1.5"]),
    "norm": ("--corpus text.txt --layer-norm both", ["layer_norm='both'"]),
    "rows": (
        "--corpus text.txt --seq-length 600",
        ["seq_length=600", "512"],
    ),
    "short rows": ("--corpus text.txt --seq-length 2", ["seq_length=2"]),
    "no steps": ("--corpus text.txt --steps 0", ["steps=0", "above 0"]),
    "parts": (
        "--corpus text.txt --batch-size 4 --accumulation 8",
        ["batch_size=4"],
    ),
    "GPU": ("--corpus text.txt --device cuda", ["--device cuda", "no GPU"]),
    "no initial": (
        "--corpus text.txt --initial gone/model",
        ["gone/model"],
    ),
    "Muon's rate": (
        "--corpus text.txt --optimizer adamw --muon-learning-rate 0.01",
        ["--muon-learning-rate", "adamw", "--learning-rate"],
    ),
    "nothing to resume": ("--resume --out empty", ["empty holds no run"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence(folder, kind, call_line):
    if kind == "GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (folder / "latin.txt").write_bytes("so\nêtre".encode("latin-1"))
    (folder / "empty.txt").write_text("\n \n")
    (folder / "one.txt").write_text("All in one document.\n")
    (folder / "nothing").mkdir(exist_ok=True)
    (folder / "bad.json").write_text('{"hidden_size": "wide"}')
    (folder / "heads.json").write_text(
        '{"num_attention_heads": 3, "hidden_size": 128}'
    )
    words, said = WRONG[kind]
    length = (
        "" if "--steps" in words or "--resume" in words else " --steps 1"
    )
    out = "" if "--out" in words else " --out never"
    line = f"pretrain {words}{length}{out}"
    refused(call_line(line, folder), *said)
    if kind in ("no such file", "no initial"):
        refused(bertbook(line, folder), *said)
    assert not (folder / "never/run.json").exists()


def test_the_vocabulary_of_the_first_phase_stays(run, folder):
    """A second phase must read with the pieces of the first."""
    (folder / "vocab.txt").write_text(
        "\n".join("[PAD] [UNK] [CLS] [SEP] [MASK] a b".split())
    )
    line = (
        "pretrain --corpus text.txt --steps 1 --initial whole --out never"
    )
    for words, *said in (
        (" --vocab-size 300", "whole has a vocabulary", "--vocab-size 300"),
        (" --vocabulary vocab.txt", "not the vocabulary of whole"),
    ):
        refused(bertbook(line + words, folder), *said)
    assert not (folder / "never/run.json").exists()


@pytest.mark.skipif(not Path("/sys").exists(), reason="no /sys here")
def test_a_folder_that_must_not_be_written(folder):
    line = f"pretrain --corpus text.txt --steps 1 {SMALL} --out /sys/never"
    done = bertbook(line, folder)
    refused(done, "/sys/never")
    assert re.search("denied|permitted|Read-only", done.stderr)


USAGE = {
    "no command": ("", "COMMAND"),
    "no such command": ("train", "invalid choice: 'train'"),
    "no folder": ("pretrain --corpus imdb --steps 1", "--out"),
    "no text": ("pretrain --steps 1 --out x", "--corpus"),
    "no length": ("pretrain --corpus imdb --out x", "--minutes"),
    "two lengths": (
        "pretrain --corpus imdb --out x --steps 1 --minutes 1",
        "not allowed with argument --steps",
    ),
    "two sizes": (
        "pretrain --corpus imdb --out x --preset tiny --config c.json",
        "not allowed",
    ),
    "preset": ("pretrain --corpus imdb --out x --preset huge", "'huge'"),
    "number": ("pretrain --corpus imdb --out x --steps ten", "'ten'"),
    "none of them": (
        "pretrain --corpus imdb --out x --steps 1 --save-every 0",
        "'0'; give a whole number from 1 on",
    ),
    "rates": (
        "pretrain --corpus imdb --out x --steps 1 --mask-rate 1,2,3",
        "'1,2,3'; give a share, or two",
    ),
    "shortened": ("pretrain --corpus imdb --out x --step 1", "--step"),
}


@pytest.mark.parametrize("kind", USAGE)
def test_a_line_that_cannot_be_read(tmp_path, kind, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line, said = USAGE[kind]
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    assert end.value.code == 2
    usage, *_, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: python -m bertbook") and said in error
    assert not list(tmp_path.iterdir())


def test_status_2_reaches_the_shell(tmp_path):
    done = bertbook("pretrain --steps 1 --out x", tmp_path)
    refused(done, "give --corpus, or --resume", status=2)


def test_two_processes_are_one(run, folder):
    """torchrun, with a text to prepare; then one process goes on."""
    begin = [sys.executable, "-m", "torch.distributed.run"]
    begin += ["--standalone", "--nproc_per_node", "2", "-m", "bertbook"]
    line = f"pretrain --corpus text.txt --steps 10 {SMALL} --out two"
    done = subprocess.run(
        [*begin, *line.split()],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2  # the first one speaks
    assert done.stdout.startswith("step 10, 1,280 tokens")
    assert "torchrun --nproc_per_node 2 -m bertbook" in done.stdout
    one, two = (
        [
            r["loss"]
            for r in read_log(folder / name / "log.jsonl")
            if "loss" in r
        ]
        for name in ("whole", "two")
    )
    assert two == pytest.approx(one, abs=1e-4)
    again = subprocess.run(
        [*begin, *line.split()],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode != 0
    assert again.stderr.count("two holds a run") == 1
    few = line.replace("--batch-size 8", "--batch-size 1").replace(
        "two", "few"
    )
    done = subprocess.run(
        [*begin, *few.split()],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert done.stderr.count("batch_size=1 in 1 parts for 2 processes") == 1


def test_sentence_pairs_and_pre_norm(folder):
    """What the published format cannot hold goes into the book's own."""
    line = (
        f"pretrain --corpus text.txt --steps 2 {SMALL} --out pairs "
        "--objective mlm+nsp --layer-norm pre --masking word --workers 2"
    )
    done = bertbook(
        line.replace("--seq-length 16", "--seq-length 64"), folder
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "pairs/bertbook.safetensors").exists()
    model = BertForPreTraining.from_pretrained(folder / "pairs")
    assert not model.loading_report.problems
    log = read_log(folder / "pairs/log.jsonl")
    assert all("nsp_loss" in each for each in log if "loss" in each)


def test_a_vocabulary_and_a_config_of_ones_own(run, folder):
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.1,
    )
    config.to_json_file(folder / "own.json")
    line = (
        "pretrain --corpus text.txt --tokens 300 --config own.json "
        "--vocabulary whole/vocab.txt --seq-length 16 --batch-size 8 "
        "--dtype float32 "
        "--out own"
    )
    done = bertbook(line, folder)
    assert done.returncode == 0, done.stderr
    model = BertForMaskedLM.from_pretrained(folder / "own")
    vocab = BertTokenizer.from_pretrained(folder / "whole").get_vocab()
    assert model.config.vocab_size == len(vocab)
    assert model.config.hidden_size == 32
    assert model.config.hidden_dropout_prob == 0.1
    assert json.loads((folder / "own/run.json").read_text())["length"] == {
        "steps": None,
        "tokens": 300,
        "minutes": None,
    }
    assert bertbook("pretrain --resume --out own", folder).returncode == 0


# Help


def test_help_is_quick_and_complete(tmp_path):
    done = bertbook("--help", tmp_path)
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert re.search(
            rf"^\s+{name}\s+{command.summary}", done.stdout, re.M
        )
    code = (
        "import sys\nfrom bertbook.command_line import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(any(m in sys.modules for m in "
        "('torch', 'numpy', 'datasets', 'tokenizers')))\n"
    )
    quick = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT)
    assert quick.returncode == 0


def test_pretrain_help_says_every_option_and_default(tmp_path):
    done = bertbook("pretrain --help", tmp_path)
    parser = make_parser(COMMANDS, ["pretrain"])
    (parts,) = (a for a in parser._actions if a.dest == "command")
    text = " ".join(done.stdout.split())
    for action in parts.choices["pretrain"]._actions:
        assert action.help, action.option_strings
        for flag in action.option_strings:
            assert flag in done.stdout
    recipe = Pretraining(small_budget("mini", 100), Length(steps=1))
    for flag, value in (
        ("--batch-size", recipe.batch_size),
        ("--optimizer", recipe.optimization.optimizer),
        ("--learning-rate", recipe.optimization.learning_rate),
        ("--muon-learning-rate", recipe.optimization.muon_learning_rate),
        ("--mask-rate", f"{recipe.masking.rate},{recipe.last_rate}"),
        ("--layer-norm", recipe.model.layer_norm),
        ("--dropout", recipe.model.hidden_dropout_prob),
        ("--seed", recipe.seed),
    ):
        assert re.search(rf"{flag} [^(]*\(default: {value}\)", text), flag
    widths = [len(line) for line in done.stdout.splitlines()]
    assert sorted(widths)[-2] <= 80


def read(line):
    words = shlex.split(line)
    return make_parser(COMMANDS, words).parse_args(words)


def test_the_lines_of_the_readme_can_be_read():
    text = (ROOT / "README.md").read_text("utf-8")
    lines = re.findall(
        r"^(?:python|torchrun) .*-m bertbook (.*)$", text, re.M
    )
    assert any("--minutes" in line for line in lines)
    assert any("--resume" in line for line in lines)
    kinds = {"pretrain", "finetune", "predict", "answer"}
    assert {line.split()[0] for line in lines} == kinds
    for line in lines:
        words = shlex.split(line)
        parser = make_parser(EVERY_COMMAND, words)
        assert parser.parse_args(words).command == words[0]


def test_the_example_of_the_help_can_be_read(tmp_path):
    text = bertbook("pretrain --help", tmp_path).stdout
    example = text.partition("for example:")[2].replace("\\\n", " ")
    words = shlex.split(example)[3:]
    options = make_parser(COMMANDS, words).parse_args(words)
    data = chosen_settings(options, default_settings())
    assert settings_from(data).length == Length(minutes=10)


# Words and settings


def test_without_options_the_settings_are_the_recipe():
    options = read("pretrain --corpus imdb --steps 7 --out x")
    data = chosen_settings(options, default_settings())
    data["model"]["vocab_size"] = 8192
    recipe = Pretraining(small_budget("mini", 8192), Length(steps=7))
    assert settings_from(data) == recipe
    assert chosen_settings(read("pretrain --resume --out x"), data) == data
    assert settings_from(settings_of(recipe)) == recipe


def test_every_field_option_changes_its_field():
    from bertbook.run_options import _OPTIONS, field_of

    values = {int: "3", float: "0.25", str: "changed"}
    before = default_settings()
    for rows in _OPTIONS.values():
        for flag, field, _ in rows:
            old = field_of(before, field)
            kind = int if old is None else type(old)
            value = "" if kind is bool else values[kind]
            if field == "initial":
                value = "all-MiniLM-L6-v2"
            line = f"pretrain --resume --out x {flag} {value}"
            after = chosen_settings(read(line), before)
            assert field_of(after, field) != old, flag
            if field != "initial":
                want = True if kind is bool else kind(value)
                assert field_of(after, field) == want
    assert before == default_settings()


# The table


def test_a_command_is_a_row_in_a_table(capsys):
    said = []

    def add(parser):
        parser.add_argument("--loud", action="store_true")

    table = {
        "hello": Command("Greet", add, lambda o: said.append(o.loud) or 0),
        "other": Command("Nothing", lambda parser: 1 / 0, lambda o: 0),
    }
    assert main(["hello", "--loud"], table) == 0 and said == [True]
    with pytest.raises(SystemExit) as end:
        main(["--help"], table)
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "hello" in text and "Greet" in text and "--loud" not in text


@pytest.mark.parametrize(
    "error, sentence",
    [
        (ValueError("give 1 or more"), "give 1 or more"),
        (
            FileNotFoundError(2, "No such file", "a.txt"),
            "a.txt: No such file",
        ),
        (
            OSError(28, "step-3 could not be written; make room"),
            "make room",
        ),
        (ConnectionError("no hub"), "no hub"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_error_becomes_a_sentence(error, sentence, capsys, monkeypatch):
    def fail(options):
        raise error

    table = {"fail": Command("Fail", lambda parser: None, fail)}
    monkeypatch.delenv("BERTBOOK_TRACEBACK", raising=False)
    assert main(["fail"], table) == 1
    said = capsys.readouterr().err
    assert said.startswith("python -m bertbook: ") and sentence in said
    monkeypatch.setenv("BERTBOOK_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["fail"], table)


def test_a_bug_keeps_its_traceback():
    def fail(options):
        return options.nothing

    table = {"fail": Command("Fail", lambda parser: None, fail)}
    with pytest.raises(AttributeError):
        main(["fail"], table)


def test_importing_main_runs_nothing():
    import importlib

    module = importlib.import_module("bertbook.__main__")
    assert module.main is main


def test_the_parser_stands_alone():
    """`add_pretrain_arguments` needs nothing of the table."""
    from argparse import ArgumentParser

    parser = ArgumentParser("pretrain")
    add_pretrain_arguments(parser)
    options = parser.parse_args(["--out", "x", "--resume"])
    assert options.resume and not hasattr(options, "seed")
