"""The command line

Trains a BERT by one line in a shell: sub-commands in a table, options whose
defaults are those of the settings, and errors of one sentence.

The page: https://bertbook.github.io/bertbook/book/command_line.html
"""

# Tangled from book/command_line.md (332a81ee): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "COMMANDS",
    "Command",
    "PROGRAM",
    "check_text",
    "complain",
    "describe_end",
    "main",
    "make_parser",
    "next_line",
    "open_text",
    "run_pretrain",
    "tell_end",
    "write_text",
]


# %% book/command_line.md#a-table-of-commands 10a3ec76
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple


class Command(NamedTuple):
    """A sub-command of `python -m bertbook`."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


# %% book/command_line.md#a-table-of-commands 42509e31
PROGRAM = "python -m bertbook"
_HINT = "`%(prog)s COMMAND --help` lists the options of a command."
_FORM = partial(RawDescriptionHelpFormatter, max_help_position=26, width=76)


def make_parser(
    commands: dict[str, Command], words: list[str]
) -> ArgumentParser:
    """The parser of all `commands`; those named in `words` have options."""
    parser = ArgumentParser(
        prog=PROGRAM,
        description="Train a BERT, and use it.",
        epilog=_HINT,
        formatter_class=_FORM,
        allow_abbrev=False,
    )
    parts = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name, command in commands.items():
        part = parts.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary}.",
            formatter_class=_FORM,
            allow_abbrev=False,
        )
        part.set_defaults(error=part.error)
        if name in words:
            command.add_arguments(part)
    return parser


# %% book/command_line.md#errors-are-sentences 2736caa5
_EXPECTED = ArithmeticError, ImportError, OSError, RuntimeError, ValueError


def _sentence(error: Exception) -> str:
    """What an error says; the system's own errors name their file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename is not None:
            text = f"{error.filename}: {text}"
    return text or type(error).__name__


# %% book/command_line.md#errors-are-sentences 679b908e
def complain(text: str) -> None:
    """Print to stderr; a process that is not the first gives its number."""
    number = os.environ.get("RANK", "0")
    who = PROGRAM if number == "0" else f"{PROGRAM} (process {number})"
    print(f"{who}: {text}", file=sys.stderr, flush=True)


# %% book/command_line.md#errors-are-sentences 80ac25d4
def main(
    arguments: list[str] | None = None,
    commands: dict[str, Command] | None = None,
) -> int:
    """Run the command that the words `arguments` name; the exit status.

    Without words, those of the shell; without `commands`, `COMMANDS`. 0 is
    success, 1 an error that was told in a sentence, 130 an interruption.
    Raises SystemExit(2) for a line that cannot be read, and SystemExit(0)
    after a help text. BERTBOOK_TRACEBACK=1 in the environment raises errors
    instead of telling them.
    """
    words = sys.argv[1:] if arguments is None else arguments
    commands = COMMANDS if commands is None else commands
    options = make_parser(commands, words).parse_args(words)
    try:
        return commands[options.command].run(options)
    except KeyboardInterrupt:
        complain("stopped; begin again, or give --resume if it trained")
        return 130
    except _EXPECTED as error:
        if os.environ.get("BERTBOOK_TRACEBACK"):
            raise
        complain(_sentence(error))
        return 1


# %% book/command_line.md#the-text-of-a-run 7a45c596
import json
from pathlib import Path

from bertbook.reproducibility import write_atomically
from bertbook.tokenizer_files import read_object


def _tokenizer(options, show):
    from bertbook.pretraining_text import learn_tokenizer
    from bertbook.tokenizer import BertTokenizer

    def load(name):
        if Path(name).is_file():
            return BertTokenizer(name)
        return BertTokenizer.from_pretrained(name)

    if initial := vars(options).get("initial"):
        found, other = load(initial), options.vocabulary
        if options.vocab_size:
            raise ValueError(
                f"--vocab-size {options.vocab_size}, but {initial} has a "
                "vocabulary; leave it out"
            )
        if other and load(other).get_vocab() != found.get_vocab():
            raise ValueError(
                f"{other} is not the vocabulary of {initial}; leave out "
                "--vocabulary"
            )
        return found
    if options.vocabulary:
        return load(options.vocabulary)
    size = {"vocab_size": options.vocab_size} if options.vocab_size else {}
    return learn_tokenizer(options.corpus, show_progress=show, **size)


# %% book/command_line.md#the-text-of-a-run 6908c1fa
def _text_of(options):
    """What a line says of the text; paths are absolute."""
    told = {"corpus": options.corpus, "vocabulary": options.vocabulary}
    for name, value in told.items():
        if value and Path(value).exists():
            told[name] = str(Path(value).resolve())
    told["vocab_size"] = options.vocab_size
    return {name: value for name, value in told.items() if value}


# %% book/command_line.md#the-text-of-a-run 4f03540b
def write_text(options: Namespace, out: Path) -> None:
    """Make the text of a new run; FileExistsError where there is one."""
    from bertbook.pretraining_text import prepare_text
    from bertbook.run_folder import refuse_full

    refuse_full(out)
    show = not options.quiet and sys.stderr.isatty()
    tokenizer = _tokenizer(options, show)
    tokenizer.save_pretrained(out / "data")
    prepare_text(
        options.corpus,
        out / "data",
        tokenizer,
        workers=options.workers,
        show_progress=show,
    )
    text = json.dumps(_text_of(options), indent=2)
    write_atomically(out / "data" / "text.json", text + "\n")


# %% book/command_line.md#the-text-of-a-run b6bef154
def check_text(options: Namespace, out: Path) -> None:
    """Refuse to continue a run on another text than its own."""
    from bertbook.training_state import differences

    before = read_object(out / "data" / "text.json")
    if found := differences(before, before | _text_of(options)):
        raise ValueError(
            f"{out} holds a run on another text: {'; '.join(found)}; leave "
            "these options out, or begin in another folder"
        )


# %% book/command_line.md#the-text-of-a-run 11a74a96
def open_text(out: Path):
    """The `Text` that `write_text` left."""
    from bertbook.pretraining_text import HELD_OUT, TRAIN, Text
    from bertbook.token_files import TokenFiles
    from bertbook.tokenizer import BertTokenizer

    data = out / "data"
    parts = (TokenFiles(data / split) for split in (TRAIN, HELD_OUT))
    return Text(BertTokenizer.from_pretrained(data), *parts)


# %% book/command_line.md#the-run 4bb67105
def _before(options, out):
    """The settings to start from: those of the run, or the defaults."""
    path = out / "run.json"
    if not options.resume:
        if options.corpus is None:
            options.error("give --corpus, or --resume")
        if not any(name.startswith("length.") for name in vars(options)):
            options.error("give --steps, --tokens or --minutes")
        return default_settings()
    if not path.is_file():
        raise FileNotFoundError(
            f"{out} holds no run (no run.json); leave out --resume"
        )
    before = read_object(path)
    try:
        settings_from(before)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or of another version of bertbook "
            f"({error}); mend it, or begin in another folder"
        ) from None
    return before


# %% book/command_line.md#the-run 7d69f7fd
def _device(name):
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError(
            "--device cuda, but PyTorch finds no GPU here; leave it out, "
            "or give cpu"
        )
    return name or ("cuda" if there else "cpu")


# %% book/command_line.md#the-run fa7a5550
def _note(sentences):
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr, flush=True)


def _ready_text(options, out, settings):
    """The text of a run; the first process makes it and looks at it."""
    from bertbook.diagnosis import diagnose_text
    from bertbook.ranks import check_shares, first_does

    def look():
        check_shares(settings.batch_size, settings.accumulation)
        if options.resume:
            check_text(options, out)
            return
        write_text(options, out)
        tokenizer, *parts = open_text(out)
        _note(diagnose_text(*parts, tokenizer, settings.seq_length))

    first_does(look)
    return open_text(out)


# %% book/command_line.md#the-run 77810822
from bertbook.run_options import (
    add_pretrain_arguments,
    chosen_settings,
    default_settings,
    settings_from,
)


def run_pretrain(options: Namespace) -> int:
    """The command `pretrain`."""
    from bertbook.objectives import fast_dtype, rows_of
    from bertbook.pretraining import pretrain
    from bertbook.ranks import together

    out, device = Path(options.out), _device(options.device)
    data = chosen_settings(options, _before(options, out))
    settings = settings_from(data)
    with together() as rank:
        text = _ready_text(options, out, settings)
        if not options.resume:
            size = len(text.tokenizer.get_vocab())
            least = data["model"]["vocab_size"]
            data["model"]["vocab_size"] = max(size, least)
            if device == "cuda":  # where the fused kernel is faster
                data["model"]["attn_implementation"] = "sdpa"
            data["dtype"] = vars(options).get("dtype", fast_dtype(device))
            settings = settings_from(data)
        run = pretrain(
            settings,
            rows_of(settings, text.train, text.tokenizer),
            rows_of(settings, text.held_out, text.tokenizer, held_out=True),
            text.tokenizer,
            out,
            resume=options.resume,
            save_every=options.save_every,
            device=device,
            show_progress=not options.quiet,
        )
        return tell_end(run, out, text, rank)


# %% book/command_line.md#the-run a5e35bc8
import shlex


def describe_end(run, text, records: list[dict]) -> str:
    """One line: how far the run is, and its last held-out loss."""
    now = run.progress
    last = [each for each in records if "held_out_loss" in each][-1]
    loss, right = last["held_out_loss"], last["held_out_accuracy"]
    per_character = loss * text.held_out.pieces / text.held_out.characters
    best = "" if loss <= now.best else f"; best {now.best:.2f}, kept"
    return (
        f"step {now.step:,}, {now.tokens:,} tokens, "
        f"{now.seconds / 60:.1f} minutes: held-out loss {loss:.2f} nats a "
        f"piece, {per_character:.2f} a character, accuracy {right:.1%}"
        f"{best}"
    )


# %% book/command_line.md#the-run b310b370
def next_line(run, out: Path, finished: bool, ranks: int = 1) -> str:
    """The line to type next: continue the run, or train on longer rows."""
    begin = "python" if ranks == 1 else f"torchrun --nproc_per_node {ranks}"
    here, longer = shlex.quote(str(out)), 2 * run.settings.seq_length
    if not finished:
        return f"{begin} -m bertbook pretrain --resume --out {here}"
    there = shlex.quote(f"{out}-{longer}")
    return (
        f"{begin} -m bertbook pretrain --initial {here} --corpus … "
        f"--seq-length {longer} --minutes … --out {there}"
    )


# %% book/command_line.md#the-run b7290043
def tell_end(run, out: Path, text, rank) -> int:
    """Say how the run ended; the exit status."""
    from bertbook.diagnosis import diagnose_run, expected_losses
    from bertbook.training_loop import read_log

    now, settings = run.progress, run.settings
    finished = now.examined == now.step and (
        settings.length.progress(now.step, now.tokens, now.seconds) >= 1
        or bool(settings.patience and now.waited >= settings.patience)
    )
    line = next_line(run, out, finished, rank.size)
    if rank.number == 0 and finished:
        records = read_log(out / "log.jsonl")
        if settings.initial:  # its first loss is no sign of a fault
            records = [each for each in records if each["step"] > 0]
        expected = expected_losses(text.train, text.tokenizer)
        _note(diagnose_run(records, expected))
        print(describe_end(run, text, records))
        if (
            2 * settings.seq_length
            <= settings.model.max_position_embeddings
        ):
            print(f"next, longer rows: {line}", flush=True)
    elif rank.number == 0:
        complain(f"stopped at step {now.step}; continue with: {line}")
    return 0 if finished else 130


# %% book/command_line.md#the-run 599f195f
COMMANDS = {
    "pretrain": Command(
        "Train a BERT from random weights on text",
        add_pretrain_arguments,
        run_pretrain,
    ),
}
