"""Many texts at once

Runs a model over any number of texts: reads ahead, puts texts of similar
length into one batch, and gives results back in the order of the texts.

The page: https://bertbook.github.io/bertbook/book/batching.html
"""

# Tangled from book/batching.md (0baff164): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Loaded",
    "OneDnnLinear",
    "Predictor",
    "check_text",
    "count_positions",
    "encode_rows",
    "load_whole",
    "own_rows",
    "plan_batches",
    "read_ahead",
    "use_onednn",
]


# %% book/batching.md#a-plan-of-batches a76b3b71
from collections.abc import Sequence


def plan_batches(
    lengths: Sequence[int], batch_tokens: int
) -> list[list[int]]:
    """The numbers of rows, batch by batch, similar lengths together.

    A batch has at most `batch_tokens` positions, padding included; a row
    that is longer is alone. Longest first, equal ones in their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    for i in order:
        if batches:
            width = lengths[batches[-1][0]]  # the first is the longest
        if not batches or (len(batches[-1]) + 1) * width > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


# %% book/batching.md#a-plan-of-batches 586c3d2b
def count_positions(
    lengths: Sequence[int], batches: list[list[int]]
) -> int:
    """How many positions a model computes for a plan, padding included."""
    return sum(len(b) * max(lengths[i] for i in b) for b in batches)


# %% book/batching.md#reading-ahead 12231a0b
from collections.abc import Iterable, Iterator
from itertools import islice


def read_ahead(items: Iterable, window: int) -> Iterator[list]:
    """Lists of `window` items; nothing is read before it is asked for."""
    items = iter(items)
    while part := list(islice(items, window)):
        yield part


# %% book/batching.md#one-text-a-pair-or-something-else 9a285c09
_WANTED = {
    False: "a str is expected; pass one text, or a list of texts",
    True: "a tuple of two texts is expected; pass one, or a list of them",
}


def check_text(text, number: int, pair: bool) -> None:
    """Refuse what is no text, or no `pair` of texts, or empty.

    Raises TypeError or ValueError with the `number` of the text.
    """
    parts = text if isinstance(text, tuple) else (text,)
    fits = isinstance(text, tuple) == pair and len(parts) == 1 + pair
    if not fits or not all(isinstance(part, str) for part in parts):
        raise TypeError(
            f"text {number} is {text!r:.40} ({type(text).__name__}), and "
            f"{_WANTED[pair]}"
        )
    if not all(part.strip() for part in parts):
        raise ValueError(
            f"text {number} is empty ({text!r:.40}), and there is nothing "
            "to read; leave it out"
        )


# %% book/batching.md#rows 13777050
def own_rows(rows: list[dict], owners: Iterable[int]) -> list[dict]:
    """The rows, each with its `owner`, and whether its text `begins`."""
    before = None
    for row, owner in zip(rows, owners):
        row["owner"], row["begins"] = owner, owner != before
        before = owner
    return rows


def encode_rows(
    tokenizer,
    texts: list,
    max_length: int,
    truncation: bool | str = True,
    stride: int | None = None,
) -> list[dict]:
    """The rows of texts or pairs, with the number of their `owner`.

    With a `stride` a long text has several; `begins` is true for its
    first.
    """
    pair = isinstance(texts[0], tuple)
    found = tokenizer(
        *(map(list, zip(*texts)) if pair else (texts,)),
        truncation=truncation,
        max_length=max_length,
        stride=stride or 0,
        return_overflowing_tokens=stride is not None,
    )
    owners = found.pop("overflow_to_sample_mapping", range(len(texts)))
    rows = [dict(zip(found, row)) for row in zip(*found.values())]
    return own_rows(rows, owners)


# %% book/batching.md#the-right-checkpoint 6dc61c27
import logging


def load_whole(model_class, source, **changes):
    """`model_class.from_pretrained`, with nothing drawn at random.

    Raises ValueError where the checkpoint does not hold all of the model.
    """
    log = logging.getLogger("bertbook.checkpoints")
    level = log.level
    log.setLevel(logging.ERROR)  # what is left out is no loss here
    try:
        model = model_class.from_pretrained(source, **changes)
    finally:
        log.setLevel(level)
    report = model.loading_report
    names = (name.removeprefix("bert.") for name in report.missing)
    if parts := sorted({name.partition(".")[0] for name in names}):
        raise ValueError(
            f"{source} was saved without {' and '.join(parts)}, which "
            f"{model_class.__name__} needs; name a checkpoint that was "
            "trained for this task"
        )
    if report.problems.keys() - {"left_out"}:
        log.warning(report)
    return model


# %% book/batching.md#the-loop e099e9d1
_INPUTS = "input_ids", "token_type_ids", "attention_mask"


def _limit(name, value, least, most):
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"{name}={value!r} is no whole number from {least} to {most}; "
            "give one"
        )
    return value


def _check_model(predictor, model):
    if not isinstance(model, predictor.model_class):
        raise TypeError(
            f"{type(predictor).__name__} was given a "
            f"{type(model).__name__}, and needs a "
            f"{predictor.model_class.__name__}; load one by "
            f"{type(predictor).__name__}.from_pretrained"
        )


# %% book/batching.md#the-loop 53e4ad7b
import torch

from bertbook.classification import collate
from bertbook.training_loop import evaluating


def _compute(predictor, rows, options):
    """The scores of the rows of one batch."""
    pad_id = predictor.tokenizer.pad_token_id
    inputs = [{n: row[n] for n in _INPUTS if n in row} for row in rows]
    device = next(predictor.model.parameters()).device
    batch = collate(inputs, pad_id)
    batch = {name: values.to(device) for name, values in batch.items()}
    with evaluating(predictor.model), torch.inference_mode():
        return predictor.scores(batch, rows, **options)


def _answers(predictor, texts, bar, options):
    """The results of one window of texts, in order."""
    rows = predictor.rows(texts)
    lengths = [len(row["input_ids"]) for row in rows]
    found = [None] * len(rows)
    for numbers in plan_batches(lengths, predictor.batch_tokens):
        chosen = [rows[i] for i in numbers]
        for i, scores in zip(numbers, _compute(predictor, chosen, options)):
            found[i] = scores
        bar.update(sum(row["begins"] for row in chosen))
    parts = [([], []) for _ in texts]
    for row, scores in zip(rows, found):
        parts[row["owner"]][0].append(row)
        parts[row["owner"]][1].append(scores)
    return [predictor.result(t, *part) for t, part in zip(texts, parts)]


# %% book/batching.md#the-loop 6ed96fd4
from tqdm import tqdm


def _stream(predictor, texts, show_progress, options):
    done = 0
    total = len(texts) if hasattr(texts, "__len__") else None
    hidden = not show_progress
    with tqdm(total=total, unit=" texts", disable=hidden) as bar:
        for part in read_ahead(texts, predictor.window):
            pair = predictor.pairs
            if pair is None:  # either, but not both in one window
                pair = isinstance(part[0], tuple)
            for number, text in enumerate(part, done):
                check_text(text, number, pair)
            yield from _answers(predictor, part, bar, options)
            done += len(part)


# %% book/batching.md#the-loop 224dd7cf
import torch.nn.functional as F
from torch import Tensor, nn

from bertbook.reproducibility import describe_machine


class OneDnnLinear(nn.Module):
    """A linear layer in float32 on a CPU, computed by oneDNN.

    From (..., in_features) to (..., out_features), without a gradient.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight.detach().to_mkldnn()
        bias = linear.bias
        self.bias = None if bias is None else bias.detach().to_mkldnn()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name in ("weight", "bias"):
            if (each := getattr(self, name)) is not None:
                destination[prefix + name] = each.to_dense()


# %% book/batching.md#the-loop 27a1c0de
def use_onednn(model: nn.Module) -> None:
    """Let oneDNN compute the linear layers in float32 of `model`.

    Not on Intel's processors, where the usual way is faster.
    """
    intel = "Intel" in describe_machine()["processor"]
    if intel or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            if child.weight.dtype == torch.float32:
                setattr(module, name, OneDnnLinear(child))


# %% book/batching.md#the-loop 3a2a433b
from bertbook.tokenizer import BertTokenizer


class Loaded:
    """A model and its tokenizer, and how much is read at once.

    `max_length` tokens of a row are read, by default as many as the model
    has positions. A batch has at most `batch_tokens` positions, and
    `window` texts are read ahead.
    """

    model_class: type  # what a task needs
    changes = {}  # further arguments for the model's `from_pretrained`

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_length: int | None = None,
        batch_tokens: int = 4096,
        window: int = 1024,
    ):
        _check_model(self, model)
        self.model, self.tokenizer = model, tokenizer
        most, large = model.config.max_position_embeddings, 2**40
        max_length = most if max_length is None else max_length
        self.max_length = _limit("max_length", max_length, 4, most)
        self.batch_tokens = _limit("batch_tokens", batch_tokens, 1, large)
        self.window = _limit("window", window, 1, large)

    @classmethod
    def from_pretrained(
        cls, source, *, device="cpu", remove_padding=None, **options
    ):
        """From a checkpoint, a folder or a name; `options` are those of
        the class.

        `remove_padding` is that of the model, by default on a CPU only.
        Raises ValueError where the checkpoint lacks the head of this task.
        """
        if remove_padding is None:
            remove_padding = torch.device(device).type == "cpu"
        changes = {"device": device, "remove_padding": remove_padding}
        model = load_whole(
            cls.model_class, source, **changes, **cls.changes
        )
        if torch.device(device).type == "cpu":
            use_onednn(model)
        return cls(model, BertTokenizer.from_pretrained(source), **options)


# %% book/batching.md#the-loop d54a01c3
class Predictor(Loaded):
    """Called on one text or on any number of them.

    A task defines `rows(texts)`, `scores(batch, rows, **options)`, which
    returns one for each row, and `result(text, rows, scores)`.
    """

    pairs = False  # True: pairs of texts only; None: either

    def stream(
        self, texts: Iterable, *, show_progress: bool = False, **options
    ) -> Iterator:
        """The result of each text, in order; `options` go to `scores`.

        Only `window` texts are in memory. Raises what `check_text` raises.
        """
        if isinstance(texts, (str, tuple)) or not hasattr(
            texts, "__iter__"
        ):
            raise TypeError(
                f"{texts!r:.40} ({type(texts).__name__}) is no stream of "
                "texts; pass a list, or call this object on one text"
            )
        return _stream(self, texts, show_progress, options)

    def __call__(
        self, texts: object, *, show_progress: bool = False, **options
    ):
        """The result of one text, or the list of those of many."""
        one = isinstance(texts, (str, tuple))
        texts = [texts] if one else texts
        found = self.stream(texts, show_progress=show_progress, **options)
        return list(found)[0] if one else list(found)
