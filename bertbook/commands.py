"""Commands for trained models

Fine-tunes, scores and calls models from a shell: seven commands of a few
lines each.

The page: https://bertbook.github.io/bertbook/book/commands.html
"""

# Tangled from book/commands.md (739bc988): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "COMMANDS",
    "run_answer",
    "run_embed",
    "run_evaluate",
    "run_fill_mask",
    "run_finetune",
    "run_predict",
    "run_search",
]


# %% book/commands.md#five-that-read 2400f7fc
import sys
from argparse import Namespace
from itertools import tee
from pathlib import Path

from bertbook.command_line import _device
from bertbook.use_options import (
    SHOWN,
    decode_text,
    facts_in,
    length_of,
    task_of,
    tell,
    texts_of,
)

_KEYWORDS = "batch_tokens window long stride threshold longest pooling"


def _predictor(options, name):
    """The class of `inference`, with the options that were given."""
    import bertbook.inference as inference

    words = vars(options)
    given = {
        word: words[word]
        for word in _KEYWORDS.split()
        if words.get(word) is not None
    }
    given["max_length"] = options.max_length or length_of(options.model)
    given["device"] = _device(options.device)
    return getattr(inference, name).from_pretrained(options.model, **given)


# %% book/commands.md#five-that-read b9a5ace4
def _shows(options):
    return not options.quiet and sys.stderr.isatty()


def _answers(options, name, texts, **call):
    """What a predictor says of each text, as a record and as a line."""
    predictor, (read, asked) = _predictor(options, name), tee(texts)
    shows = _shows(options) and not sys.stdout.isatty()
    results = predictor.stream(read, show_progress=shows, **call)
    for found, text in zip(results, asked):
        yield SHOWN[name](text, found)


# %% book/commands.md#five-that-read 41cc5d85
_LABELS = {"classify": "Classifier", "pairs": "Classifier", "tag": "Tagger"}


def run_predict(options: Namespace) -> int:
    """The command `predict`; the exit status.

    Raises ValueError for a task that is neither of classes nor of tags,
    for --long with a tagger, for --stride without windows, and what
    `task_of` and `texts_of` raise.
    """
    task = options.task or task_of(options.model)
    if task not in _LABELS:
        raise ValueError(
            f"{task!r} is no task of predict; give --task classify, pairs "
            "or tag, or call the command answer"
        )
    if task == "tag" and options.long:
        raise ValueError(
            f"--long {options.long}, but a tagger reads all of a text; "
            "leave it out"
        )
    cut = task != "tag" and options.long != "average"
    if cut and options.stride is not None:
        raise ValueError(
            f"--stride {options.stride}, but long texts are cut; give "
            "--long average to read them in windows"
        )
    texts = texts_of(options, task == "pairs")
    return tell(options, _answers(options, _LABELS[task], texts))


# %% book/commands.md#five-that-read c5482ae3
def run_fill_mask(options: Namespace) -> int:
    """The command `fill-mask`; the exit status."""
    call = {"top_k": options.top_k} if options.top_k else {}
    answers = _answers(options, "FillMask", texts_of(options), **call)
    return tell(options, answers)


def run_answer(options: Namespace) -> int:
    """The command `answer`; the exit status.

    Each text is a question to --context, or without it a pair.
    """
    texts = texts_of(options, options.context is None)
    if options.context is not None:
        data = Path(options.context).read_bytes()
        context = decode_text(options.context, data)
        texts = ((question, context) for question in texts)
    return tell(options, _answers(options, "QuestionAnswerer", texts))


# %% book/commands.md#five-that-read 6a2c6587
def run_embed(options: Namespace) -> int:
    """The command `embed`; the exit status."""
    from bertbook.search import Index, save_index

    if options.out is None:
        answers = _answers(options, "Embedder", texts_of(options))
        return tell(options, answers)
    embed, texts = _predictor(options, "Embedder"), list(texts_of(options))
    vectors = embed(texts, show_progress=_shows(options))
    save_index(Index(texts, embed, vectors), options.out)
    told = {"texts": len(texts), "index": options.out}
    line = f"{len(texts):,} texts are in {options.out}"
    return tell(options, [(told, line)])


# %% book/commands.md#five-that-read b335842e
def _hits(index, query, count):
    """What was found, nearest first, as a record and as lines."""
    hits = index.search(query, **count)
    found = [h._asdict() | {"text": index.texts[h.number]} for h in hits]
    lines = (
        f"{each['score']:.2f}\t{' '.join(each['text'].split())}"
        for each in found
    )
    return {"query": query, "hits": found}, "\n".join(lines)


def run_search(options: Namespace) -> int:
    """The command `search`; the exit status."""
    from bertbook.search import load_index

    index = load_index(options.index, _predictor(options, "Embedder"))
    count = {"k": options.count} if options.count else {}
    found = (_hits(index, each, count) for each in texts_of(options))
    return tell(options, found)


# %% book/commands.md#one-that-scores cf9c657c
def _make_task(name, length, labels, pooling, weights=None, **reader):
    """The task of a name, for rows of `length` pieces."""
    from bertbook.answering import Answering
    from bertbook.classification import Classification
    from bertbook.labelled_data import COLUMNS
    from bertbook.token_tagging import Tagging

    if name not in COLUMNS:
        raise ValueError(
            f"{name!r} is no task; give one of {', '.join(COLUMNS)}"
        )
    if name == "tag":
        return Tagging(labels, length // 4)
    if name == "answer":
        return Answering(length // 4, **reader)
    return Classification(labels, weights, pooling or "mean")


# %% book/commands.md#one-that-scores 2fc8c61f
def _trained_task(name, model, length):
    """The task of a trained model, as it was trained."""
    from bertbook.checkpoint_files import find_checkpoint
    from bertbook.checkpoint_files import read_configuration as read
    from bertbook.inference import saved_threshold

    config, _ = read(find_checkpoint(model))
    labels, pooling = config.id2label.values(), config.classifier_pooling
    reader = {"threshold": saved_threshold(model)}
    return _make_task(name, length, tuple(labels), pooling, **reader)


def _columns(options):
    """A dict of what `--column` says."""
    found = dict(each.partition("=")[::2] for each in options.column)
    for column, name in found.items():
        if not name:
            raise ValueError(
                f"--column {column} names no other; give COLUMN=NAME, as "
                "in text=review"
            )
    return found


# %% book/commands.md#one-that-scores 73f83f7d
from functools import partial


def _count_rows(bar, model, arguments, named, output):
    bar.update(len(named["input_ids"]))


def _evaluate(options, task, features, data):
    """The verdict of a task, with a bar."""
    from tqdm import tqdm

    from bertbook.batching import load_whole

    device, hidden = _device(options.device), not _shows(options)
    model = load_whole(task.head, options.model, device=device)
    with tqdm(total=len(features), unit=" rows", disable=hidden) as bar:
        count = partial(_count_rows, bar)
        model.register_forward_hook(count, with_kwargs=True)
        return task.evaluate(model, features, data)


# %% book/commands.md#one-that-scores fd09eb7e
import math


def _split_of(source, usual):
    """The split to ask for: a file has one only."""
    return "train" if Path(source).is_file() else usual


def run_evaluate(options: Namespace) -> int:
    """The command `evaluate`; the exit status.

    Raises what `task_of`, `read_labelled` and `load_whole` raise.
    """
    from bertbook.labelled_data import read_labelled
    from bertbook.tokenizer import BertTokenizer

    name = options.task or task_of(options.model)
    length = options.max_length or length_of(options.model)
    task = _trained_task(name, options.model, length)
    split = options.split or _split_of(options.data, "test")
    how = split, getattr(task, "labels", None), _columns(options)
    data = read_labelled(options.data, name, *how)
    tokenizer = BertTokenizer.from_pretrained(options.model)
    features = task.features(data, tokenizer, length)
    found = _evaluate(options, task, features, data)
    found = {k: v for k, v in found.items() if math.isfinite(v)}
    found |= {"texts": len(data.rows)}
    lines = (f"{k}\t{round(v, 4)}" for k, v in found.items())
    return tell(options, [(found, "\n".join(lines))])


# %% book/commands.md#one-that-trains c1fcebe5
def _training_data(options):
    """What is learned from, and what the best model is chosen by."""
    from bertbook.labelled_data import read_labelled

    if options.held_out is None and Path(options.data).is_file():
        raise ValueError(
            f"{options.data} is one file, and the best model is chosen on "
            "texts that it has not learned from; give others by --held-out"
        )
    task, columns = options.task, _columns(options)
    train = read_labelled(options.data, task, "train", None, columns)
    source = options.held_out or options.data
    split, labels = _split_of(source, "validation"), train.labels or None
    return train, read_labelled(source, task, split, labels, columns)


# %% book/commands.md#one-that-trains 9c86282c
def _settings(options):
    """The recipe: the fields that were given, the others as usual."""
    from dataclasses import fields, replace

    from bertbook.finetuning import Finetuning
    from bertbook.optimization import Optimization

    given = {n: v for n, v in vars(options).items() if v is not None}
    recipe, rates = (
        {each.name for each in fields(kind)} & given.keys()
        for kind in (Finetuning, Optimization)
    )
    settings = Finetuning(**{n: given[n] for n in recipe - {"data"}})
    optimization = replace(
        settings.optimization, **{name: given[name] for name in rates}
    )
    if "muon_learning_rate" in rates and optimization.optimizer != "muon":
        raise ValueError(
            f"--muon-learning-rate with {optimization.optimizer}; give "
            "--optimizer muon too, or --learning-rate"
        )
    return replace(settings, optimization=optimization)


# %% book/commands.md#one-that-trains 218cc4db
def _new_task(options, length, train):
    """The task to be learned. Refuses what it would ignore."""
    from bertbook.classification import balanced_weights

    classes = options.task in ("classify", "pairs")
    if not classes and (options.pooling or options.balanced):
        raise ValueError(
            "--pooling and --balanced are for classifiers, and the task is "
            f"{options.task}; leave them out"
        )
    weights = None
    if options.balanced:
        numbers = train.rows["label"][:]
        weights = tuple(balanced_weights(numbers, len(train.labels)))
    model = train.labels, options.pooling, weights
    return _make_task(options.task, length, *model)


# %% book/commands.md#one-that-trains 2854464f
def run_finetune(options: Namespace) -> int:
    """The command `finetune`; the exit status, 130 if it was stopped.

    Raises FileExistsError where --out holds something and --resume is not
    given, ValueError for options that do not fit, and what `finetune` of
    `bertbook.finetuning` raises.
    """
    from bertbook.finetuning import finetune
    from bertbook.objectives import fast_dtype
    from bertbook.run_folder import refuse_full
    from bertbook.tokenizer import BertTokenizer

    out, device = Path(options.out), _device(options.device)
    if not options.resume:
        refuse_full(out)
    begun = facts_in(out / "run.json") if options.resume else {}
    options.dtype = options.dtype or begun.get("dtype", fast_dtype(device))
    settings = _settings(options)
    data = _training_data(options)
    tokenizer = BertTokenizer.from_pretrained(options.initial)
    how = {"resume": options.resume, "device": device}
    how["show_progress"] = not options.quiet
    if options.save_every:
        how["save_every"] = options.save_every
    task = _new_task(options, settings.max_length, data[0])
    run = finetune(settings, task, *data, tokenizer, out, **how)
    return _tell_end(options, run, out)


# %% book/commands.md#one-that-trains aefd49cc
import shlex

from bertbook.command_line import complain


def _tell_end(options, run, out):
    """Say how good the best model is, or how to go on."""
    now, metric = run.progress, run.objective.task.metric
    if now.examined < now.step or run.done() < 1:
        complain(
            f"stopped at step {now.step}; go on by the same line with "
            "--resume"
        )
        return 130
    found = facts_in(out / "held_out.json")
    command = "answer" if options.task == "answer" else "predict"
    line = (
        f"{now.step} steps, held-out {metric} {found[metric]:.3f}\n"
        f"next: python -m bertbook {command} --model "
        f"{shlex.quote(str(out))}"
    )
    return tell(options, [(found | {"steps": now.step}, line)])


# %% book/commands.md#the-whole-table 0c89b130
from bertbook.command_line import COMMANDS as _BEFORE
from bertbook.command_line import Command
from bertbook.use_options import add_options


def _command(name, summary, run):
    return {name: Command(summary, partial(add_options, name), run)}


COMMANDS = (
    _BEFORE
    | _command("finetune", "Train a BERT on a task", run_finetune)
    | _command("evaluate", "Score a model on labelled texts", run_evaluate)
    | _command("predict", "Label texts, or find names in them", run_predict)
    | _command("fill-mask", "Guess masked words", run_fill_mask)
    | _command("answer", "Find answers in texts", run_answer)
    | _command("embed", "Turn texts into vectors", run_embed)
    | _command("search", "Find texts by their meaning", run_search)
)
