"""Lines in, lines out

The options of seven commands in one table, the task that a model was
trained for, the texts that a command reads, and the answers that it prints.

The page: https://bertbook.github.io/bertbook/book/use_options.html
"""

# Tangled from book/use_options.md (0d2d4529): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "SHOWN",
    "add_options",
    "decode_text",
    "facts_in",
    "length_of",
    "task_of",
    "tell",
    "texts_of",
]


# %% book/use_options.md#options-in-a-table 3e5cb7d1
_READING = """
TEXT               what to read; without it the lines of --file
--file FILE        a text a line (default: standard input)
--model FOLDER     with a trained model; or a published name
--task NAME        classify, pairs, tag or answer; a trained model knows its
--max-length N     pieces of a row (default: {max_length})
--batch-tokens N   pieces in a batch (default: {batch_tokens})
--window N         texts read ahead (default: {window})
--long NAME        truncate or average long texts (default: {long})
--stride NUMBER    pieces that neighbouring windows share
--top-k N          guesses for a [MASK] (default: {top_k})
--context FILE     the text that is asked; each TEXT is a question
--threshold X      a score that answers exceed (default: as trained)
--longest N        pieces of an answer (default: {longest})
--pooling NAME     what stands for a text (default: {pooling})
--index FOLDER     that embed --out wrote
--count N          texts to find (default: {k})
--device NAME      cpu or cuda (default: cuda where there is one)
--json             print one JSON object a line
--quiet            no progress on stderr
"""


# %% book/use_options.md#options-in-a-table 3487af8c
_TRAINING = """
--data SOURCE            an embedded corpus, a file, or a name on the hub
--column COLUMN=NAME     what a column of the task is called there
--split NAME             of the data (default: test; a file is one split)
--held-out SOURCE        to choose the best model (default: the validation
                         split of --data)
--initial FOLDER         a pretrained model; or a published name
--balanced               give all classes the same weight
--fresh                  draw all weights anew: a control
--reinitialised NUMBER   top layers that are drawn anew
--epochs X               passes over the texts (default: {epochs})
--batch-size N           rows in a step (default: {batch_size})
--optimizer NAME         adamw, bert_adam or muon (default: {optimizer})
--learning-rate X        its peak (default: {learning_rate})
--muon-learning-rate X   muon's, of matrices (default: {muon_learning_rate})
--warmup X               share of the run in which it rises
                         (default: {warmup})
--dropout X              share of values (default: as in --initial)
--dtype NAME             float32 or bfloat16 (default: by the device)
--evaluate-every N       steps (default: once an epoch)
--patience N             evaluations without progress, and it ends
--seed NUMBER            decides weights, order and dropout
--out FOLDER             gets the run of finetune, or the index of embed
--resume                 go on; give the same options again
--save-every N           steps between states (default: {save_every})
"""


# %% book/use_options.md#options-in-a-table afaefa2b
_READS = {
    "the texts": "TEXT --file --max-length",
    "the work": "--json --quiet --device --batch-tokens --window",
}
_GROUPS = {
    "finetune": {
        "the task": "--task! --data! --column --held-out",
        "the model": "--initial! --pooling --max-length --balanced "
        "--fresh --reinitialised",
        "the recipe": "--epochs --batch-size --optimizer --learning-rate "
        "--muon-learning-rate --warmup --dropout --dtype --evaluate-every "
        "--patience --seed",
        "the folder": "--out! --resume --save-every",
        "the work": "--json --quiet --device",
    },
    "evaluate": {
        "the model": "--model! --task --max-length",
        "the data": "--data! --split --column",
        "the work": "--json --quiet --device",
    },
    "predict": {"the model": "--model! --task --long --stride"} | _READS,
    "fill-mask": {"the model": "--model! --top-k"} | _READS,
    "answer": {
        "the model": "--model! --threshold --longest --stride",
        "the context": "--context",
    }
    | _READS,
    "embed": {"the model": "--model! --pooling --out"} | _READS,
    "search": {
        "the model": "--model! --index! --count --pooling",
        "the texts": _READS["the texts"],
        "the work": "--json --device",
    },
}


# %% book/use_options.md#options-in-a-table 659c5f0c
def _defaults(command):
    """What is taken for an option that is not given, by its name."""
    from dataclasses import asdict
    from inspect import signature

    from bertbook.batching import Loaded
    from bertbook.finetuning import Finetuning, finetune
    from bertbook.inference import (
        Classifier,
        Embedder,
        FillMask,
        QuestionAnswerer,
    )
    from bertbook.search import Index

    settings, usual = Finetuning("classify", "none"), {}
    for each in (
        finetune,
        Loaded,
        Classifier,
        Embedder,
        QuestionAnswerer,
        FillMask.scores,
        Index.search,
    ):
        for parameter in signature(each).parameters.values():
            usual[parameter.name] = parameter.default
    usual |= asdict(settings) | asdict(settings.optimization)
    if command != "finetune":  # by `length_of`
        usual["max_length"] = "as trained, or all positions of the model"
    return usual


# %% book/use_options.md#options-in-a-table c02f961b
import math
from argparse import ArgumentTypeError

from bertbook.run_options import _positive


def _natural(text):
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r}; give a whole number from 0 on")
    return int(text)


def _number(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):  # "nan" too is no number
        raise ArgumentTypeError(f"{text!r}; give a number such as 0.1")
    return value


_TYPES = {"N": _positive, "NUMBER": _natural, "X": _number}


# %% book/use_options.md#options-in-a-table 0658bdb2
import re


def _sentences():
    """What stands behind each flag: the word for its value, the text."""
    lines = re.sub(r"\n +", " ", _READING + _TRAINING).split("\n")
    for line in filter(None, lines):
        words, text = re.split(" {2,}", line, maxsplit=1)
        flag, _, value = words.partition(" ")
        yield flag, (value, text)


def _how(flag, value):
    """What `add_argument` is told of an option."""
    if flag == "TEXT":
        return {"nargs": "*", "metavar": flag}
    if not value:
        return {"action": "store_true"}
    how = {"metavar": value}
    if value in _TYPES:
        how["type"] = _TYPES[value]
    if flag == "--column":
        how |= {"action": "append", "default": []}
    return how


# %% book/use_options.md#options-in-a-table 39c47c57
from argparse import ArgumentParser


def add_options(command: str, parser: ArgumentParser) -> None:
    """Add the options of `command`, in groups, and its usage."""
    sentences, usual, needed = dict(_sentences()), _defaults(command), []
    for group, words in _GROUPS[command].items():
        part = parser.add_argument_group(group)
        for word in words.split():
            flag = word.removesuffix("!")
            value, text = sentences[flag]
            how = _how(flag, value) | {"help": text.format_map(usual)}
            if flag != word:
                how["required"] = True
                needed.append(f"{flag} {value}")
            part.add_argument("texts" if flag == "TEXT" else flag, **how)
    rest = "[OPTION ...]"
    if "the texts" in _GROUPS[command]:
        rest += " [TEXT ...]"
    parser.usage = f"%(prog)s {' '.join(needed)}\n{' ' * 7}{rest}"


# %% book/use_options.md#as-it-was-trained 1f69a210
from pathlib import Path

from bertbook.tokenizer_files import read_object

_HEADS = {
    "BertForSequenceClassification": "classify",
    "BertForTokenClassification": "tag",
    "BertForQuestionAnswering": "answer",
}


def facts_in(path: Path) -> dict:
    """As `read_object`, but an empty dict where there is no file."""
    return read_object(path) if path.is_file() else {}


# %% book/use_options.md#as-it-was-trained 3682aa22
def task_of(model: str) -> str:
    """The task of a trained model, by its folder or name.

    Raises ValueError where it has none or a file of it is damaged, and
    what `find_checkpoint` raises.
    """
    from bertbook.checkpoint_files import find_checkpoint

    if task := facts_in(Path(model, "run.json")).get("task"):
        return str(task)
    facts = facts_in(find_checkpoint(model) / "config.json")
    heads = facts.get("architectures")
    for head, task in _HEADS.items():
        if isinstance(heads, list) and head in heads:
            return task
    raise ValueError(
        f"{model} was not trained for a task; train it by finetune, or "
        "give --task"
    )


# %% book/use_options.md#as-it-was-trained 1f0378e1
def length_of(model: str) -> int:
    """The pieces of a row, by the folder or name of a trained model.

    Raises ValueError for a damaged file, and what `find_checkpoint` raises.
    """
    from bertbook.checkpoint_files import find_checkpoint
    from bertbook.checkpoint_files import read_configuration as read

    most = read(find_checkpoint(model))[0].max_position_embeddings
    path = Path(model, "run.json")
    facts = facts_in(path)
    length = facts.get("max_length", facts.get("seq_length", most))
    if type(length) is not int or not 1 <= length <= most:
        raise ValueError(
            f"{path}: rows of {length!r:.40} pieces, and a whole number "
            f"from 1 to {most} is expected; give --max-length"
        )
    return length


# %% book/use_options.md#a-text-is-a-line 44d2742d
def decode_text(place: str, data: bytes, pair: bool = False):
    """The text that stands at a place; of a `pair` a tuple of two.

    Raises ValueError, with the place, for what is empty, is not UTF-8, or
    lacks the tab of a pair.
    """
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError(
            f"{place} is not UTF-8; convert it, for example by iconv -f "
            "windows-1252 -t utf-8"
        ) from None
    parts = text.split("\t", 1) if pair else [text]
    if len(parts) < 1 + pair:
        raise ValueError(
            f"{place} has no tab; write the two texts of a pair on one "
            "line, with a tab between them"
        )
    if not all(part.strip() for part in parts):
        raise ValueError(f"{place} has no text to read; leave it out")
    return tuple(parts) if pair else text


# %% book/use_options.md#a-text-is-a-line c805731a
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext


def _lines(options):
    """The place and the bytes of each text."""
    if options.texts and options.file:
        raise ValueError("give TEXT or --file, and not both")
    if options.texts:
        for number, text in enumerate(options.texts, 1):
            yield f"text {number}", os.fsencode(text)
        return
    name = options.file or "standard input"
    usual = nullcontext(sys.stdin.buffer)
    with open(name, "rb") if options.file else usual as file:
        number = 0
        for number, line in enumerate(file, 1):
            yield f"{name}:{number}", line.rstrip(b"\r\n")
    if number == 0:
        raise ValueError(f"{name} is empty; give a text a line")


def texts_of(options: Namespace, pair: bool = False) -> Iterator:
    """The texts of a command, or its pairs, each read when it is needed.

    Raises ValueError for the first that is empty, not UTF-8 or no pair,
    where there is none, and where both TEXT and --file are given; OSError
    for a file that cannot be opened.
    """
    for place, data in _lines(options):
        yield decode_text(place, data, pair)


# %% book/use_options.md#an-answer-is-a-line ed5fd0e8
def _class(text, found):
    names = "text", "text_pair"
    texts = text if isinstance(text, tuple) else (text,)
    line = f"{found['label']}\t{found['score']:.2f}"
    return dict(zip(names, texts)) | found, line


def _entities(text, found):
    line = "; ".join(
        f"{each['entity']}: {' '.join(each['text'].split())}"
        for each in found
    )
    return {"text": text, "entities": found}, line


def _guesses(text, found):
    masks = found if isinstance(found[0], list) else [found]
    line = " | ".join(
        ", ".join(f"{each['token']} {each['score']:.2f}" for each in mask)
        for mask in masks
    )
    return {"text": text, "guesses": masks}, line


def _answer(text, found):
    line = " ".join(found["answer"].split())
    return {"question": text[0]} | found, line


def _vector(text, found):
    line = " ".join(f"{each:.6f}" for each in found.tolist())
    return {"text": text, "vector": found.tolist()}, line


# %% book/use_options.md#an-answer-is-a-line e5840d81
import json

SHOWN = {
    "Classifier": _class,
    "Tagger": _entities,
    "FillMask": _guesses,
    "QuestionAnswerer": _answer,
    "Embedder": _vector,
}


def tell(options: Namespace, answers) -> int:
    """Print pairs of a record and a line as they come; the exit status."""
    try:
        for record, line in answers:
            print(json.dumps(record) if options.json else line, flush=True)
    except BrokenPipeError:  # `head`, for example, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
