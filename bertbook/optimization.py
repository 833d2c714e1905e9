"""Optimization

Turns gradients into steps: AdamW as BERT has it and as it is usual, Muon,
decay of matrices but not of vectors, clipping, and a learning rate that
rises and falls.

The page: https://bertbook.github.io/bertbook/book/optimization.html
"""

# Tangled from book/optimization.md (acc18b9f): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BertAdam",
    "Length",
    "OPTIMIZERS",
    "Optimization",
    "check_fields",
    "make_optimizers",
    "parameter_kinds",
    "set_rates",
    "take_step",
    "warmup_linear",
]


# %% book/optimization.md#adam-by-hand 7323759f
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BertAdam(torch.optim.Optimizer):
    """AdamW, with or without the correction of its early averages.

    `correct_bias=False` is what BERT was trained with (its code,
    optimization.py); True is Kingma and Ba (2015), algorithm 1, with the
    decay of Loshchilov and Hutter (2019), algorithm 2.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        correct_bias: bool = False,
    ):
        defaults = dict(lr=lr, betas=betas, eps=eps)
        defaults |= dict(
            weight_decay=weight_decay, correct_bias=correct_bias
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        """One step for every parameter with a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _adam(parameter, self.state[parameter], group)


# %% book/optimization.md#adam-by-hand 896820de
def _adam(parameter, state, group):
    """One step for one parameter, in place."""
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    first, second = group["betas"]
    mean.lerp_(parameter.grad, 1 - first)
    square.lerp_(parameter.grad.square(), 1 - second)
    state["step"] += 1
    size, root = group["lr"], square.sqrt()
    if group["correct_bias"]:
        steps = state["step"].item()
        size = size / (1 - first**steps)
        root = root / (1 - second**steps) ** 0.5
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.addcdiv_(mean, root + group["eps"], value=-size)


# %% book/optimization.md#what-decays 91962520
def parameter_kinds(model: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters of `model` as `matrices`, `tables` and `vectors`.

    Tables are embeddings; vectors are biases and the gains of norms. Each
    parameter appears once, even if two modules share it; what needs no
    gradient does not appear.
    """
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    kinds = {"matrices": [], "tables": [], "vectors": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            kinds["tables"].append(parameter)
        elif parameter.ndim >= 2:
            kinds["matrices"].append(parameter)
        else:
            kinds["vectors"].append(parameter)
    return kinds


# %% book/optimization.md#the-choice ed685a08
from collections.abc import Callable


def check_fields(
    settings, wanted: dict[str, tuple[Callable[..., bool], str]]
) -> None:
    """Refuse a field of `settings` that does not fit.

    `wanted` gives, for each name, a test and in words what passes it.
    Raises ValueError, which names the field, its value and these words.
    """
    for name, (fits, words) in wanted.items():
        value = getattr(settings, name)
        try:
            good = fits(value)
        except TypeError:  # of another type altogether
            good = False
        if not good:
            raise ValueError(f"{name}={value!r} does not fit; give {words}")


# %% book/optimization.md#the-choice fa352a03
import math

OPTIMIZERS = ("muon", "adamw", "bert_adam")


def _positive(value):
    return 0 < value < math.inf


def _two_shares(values):
    return len(values) == 2 and all(0 <= each < 1 for each in values)


_WANTED = {
    "optimizer": (OPTIMIZERS.__contains__, " or ".join(OPTIMIZERS)),
    "learning_rate": (_positive, "a number above 0, such as 0.002"),
    "muon_learning_rate": (_positive, "a number above 0, such as 0.02"),
    "betas": (_two_shares, "two numbers in [0, 1), such as (0.9, 0.98)"),
    "eps": (_positive, "a number above 0, such as 1e-8"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "0 or more"),
    "clip_norm": (
        lambda v: v is None or v > 0,
        "a number above 0, or None for no clipping",
    ),
    "warmup": (lambda v: 0 <= v < 1, "a share of the run, in [0, 1)"),
}


# %% book/optimization.md#the-choice d33e3cf2
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimization:
    """What decides a step, beside the gradient.

    `optimizer` is "muon" (matrices by Muon, the rest by AdamW), "adamw",
    or "bert_adam" (without correction, and tables decay, as BERT has it).
    Rates are the peaks of the schedule. Raises ValueError for a field that
    does not fit.
    """

    optimizer: str = "muon"
    learning_rate: float = 2e-3  # of all that Muon does not take
    muon_learning_rate: float = 0.02  # of matrices, under "muon"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01  # of matrices; BERT: of tables too
    clip_norm: float | None = 1.0  # the gradient's largest norm
    warmup: float = 0.05  # the share of the run in which rates rise

    def __post_init__(self):
        check_fields(self, _WANTED)


# %% book/optimization.md#the-choice 63a54f81
def make_optimizers(
    model: nn.Module, settings: Optimization
) -> list[torch.optim.Optimizer]:
    """One optimizer, or two where Muon takes the matrices.

    Each group remembers its peak rate in `peak`.
    """
    kinds = parameter_kinds(model)
    rate, decay = settings.learning_rate, settings.weight_decay
    of_tables = decay if settings.optimizer == "bert_adam" else 0.0
    groups = [
        {"params": kinds["matrices"], "weight_decay": decay},
        {"params": kinds["tables"], "weight_decay": of_tables},
        {"params": kinds["vectors"], "weight_decay": 0.0},
    ]
    options = dict(lr=rate, betas=settings.betas, eps=settings.eps)
    if settings.optimizer == "bert_adam":
        optimizers = [BertAdam(groups, **options)]
    elif settings.optimizer == "adamw":
        optimizers = [torch.optim.AdamW(groups, fused=True, **options)]
    else:
        muon = torch.optim.Muon(
            groups.pop(0)["params"],
            lr=settings.muon_learning_rate,
            weight_decay=decay,
        )
        adamw = torch.optim.AdamW(groups, fused=True, **options)
        optimizers = [muon, adamw]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


# %% book/optimization.md#clipping af2b87a6
def take_step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    clip_norm: float | None,
) -> float:
    """Clip the gradient, step, and forget it; returns its norm before.

    Raises FloatingPointError, before the step, if the norm is no number.
    """
    limit = math.inf if clip_norm is None else clip_norm
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit).item()
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the norm of the gradient is {norm}, so no step was taken; "
            "begin again in another folder with a lower learning rate"
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return norm


# %% book/optimization.md#a-rate-that-rises-and-falls e91b7645
def warmup_linear(progress: float, warmup: float) -> float:
    """The share of the peak rate after the share `progress` of a run.

    It rises from 0 to 1 in the share `warmup`, then falls to 0 (BERT,
    appendix A.2).
    """
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1 - progress) / (1 - warmup))


def set_rates(
    optimizers: list[torch.optim.Optimizer], factor: float
) -> None:
    """Give every group its peak rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


# %% book/optimization.md#when-is-the-end 87a17c4a
@dataclass(frozen=True)
class Length:
    """The end of a run: exactly one of three.

    `minutes` count by the clock, so that two runs of one length need not
    have the same steps. Raises ValueError unless one is given, above 0.
    """

    steps: int | None = None
    tokens: int | None = None  # with padding and special tokens
    minutes: float | None = None

    def __post_init__(self):
        every = self.steps, self.tokens, self.minutes
        given = [value for value in every if value is not None]
        if len(given) != 1 or not _positive(given[0]):
            raise ValueError(
                f"steps={self.steps}, tokens={self.tokens} and minutes="
                f"{self.minutes}; give exactly one of them, above 0"
            )

    def progress(self, steps: int, tokens: int, seconds: float) -> float:
        """The share of the run that is done, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        if self.tokens is not None:
            return min(1.0, tokens / self.tokens)
        return min(1.0, seconds / 60 / self.minutes)
