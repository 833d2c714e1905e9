"""Smaller and faster

Makes a trained classifier smaller or faster on a CPU: weights in bfloat16,
matrix products in eight bits, and a file in ONNX that runs without PyTorch.

The page: https://bertbook.github.io/bertbook/book/smaller.html
"""

# Tangled from book/smaller.md (861161d6): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Agreement",
    "OnnxClassifier",
    "agreement",
    "export_onnx",
    "in_bfloat16",
    "in_int8",
    "weight_bytes",
]


# %% book/smaller.md#what-is-compared 109e9877
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Agreement(NamedTuple):
    """How close one model's scores are to another's on the same texts."""

    same: float  # the share of texts with the same class
    furthest: float  # the largest difference of a probability


def agreement(
    logits: Float[Tensor, "texts classes"],
    reference: Float[Tensor, "texts classes"],
) -> Agreement:
    """How close `logits` are to those of a model that is trusted."""
    same = logits.argmax(-1) == reference.argmax(-1)
    moved = logits.double().softmax(-1) - reference.double().softmax(-1)
    return Agreement(same.double().mean().item(), moved.abs().max().item())


# %% book/smaller.md#what-is-compared 9901ae58
def weight_bytes(model: nn.Module) -> int:
    """The bytes of all weights of `model`, those in eight bits included."""
    from torch.ao.nn.quantized.dynamic import Linear as Int8Linear

    total = sum(each.nbytes for each in model.parameters())
    for module in model.modules():
        if isinstance(module, Int8Linear):
            weight, bias = module.weight(), module.bias()
            scales = weight.q_per_channel_scales()
            total += weight.numel() + scales.nbytes
            total += 0 if bias is None else bias.nbytes
    return total


# %% book/smaller.md#half-the-bits-bfloat16 4438ee52
import copy


def in_bfloat16(model: nn.Module) -> nn.Module:
    """A copy of `model` with all weights in bfloat16, for inference."""
    return copy.deepcopy(model).eval().to(torch.bfloat16)


# %% book/smaller.md#on-the-whole-model 47f471a9
import warnings


def in_int8(model: nn.Module) -> nn.Module:
    """A copy of `model` whose linear layers compute in eight bits.

    Each row of a weight matrix has a scale (Jacob et al., 2018); inputs get
    theirs when they are seen. For inference on a CPU, from float32.
    """
    from torch.ao.quantization import (
        per_channel_dynamic_qconfig,
        quantize_dynamic,
    )

    with warnings.catch_warnings():
        # It announces its removal; versions are pinned here.
        warnings.simplefilter("ignore")
        small = quantize_dynamic(
            copy.deepcopy(model).float().cpu(),
            {nn.Linear: per_channel_dynamic_qconfig},
            inplace=True,
        )
    return small.eval()


# %% book/smaller.md#another-engine-onnx 5e06e90e
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Logits(nn.Module):
    """A model as a function from three tensors to one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        given = input_ids, attention_mask, token_type_ids
        return self.model(*given).logits


# %% book/smaller.md#another-engine-onnx 9c859bf5
from importlib.util import find_spec


def _need(*packages):
    for name in packages:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"{name} is not installed, and this needs it; run: "
                "pip install onnx onnxscript onnxruntime"
            )


# %% book/smaller.md#another-engine-onnx f94f9698
import logging
from contextlib import contextmanager

import jaxtyping


@contextmanager
def _tracing():
    """No shape check, which would fix the axes, and no idle warnings."""
    shapes = jaxtyping.config
    off = shapes.jaxtyping_disable
    usual = logging.getLogger("torch.onnx._internal.exporter._registration")
    usual.disabled, before = True, usual.disabled  # of torchvision
    shapes.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        usual.disabled = before
        shapes.update("jaxtyping_disable", off)


# %% book/smaller.md#another-engine-onnx 93098a9f
from dataclasses import replace
from pathlib import Path

from bertbook.heads import BertWithHead
from bertbook.reproducibility import write_atomically

_TRACE = "pkg.torch.onnx.stack_trace"


def export_onnx(model: BertWithHead, path: str | Path) -> None:
    """Write `model`, a text or token classifier, as one ONNX file.

    The file takes `input_ids`, `attention_mask` and `token_type_ids`, int64
    of (batch, seq), and gives `logits`, as `model` does in float32. Raises
    ModuleNotFoundError without the packages `onnx` and `onnxscript`.
    """
    _need("onnx", "onnxscript")
    plain = copy.deepcopy(model).float().cpu()
    plain.bert.config = replace(plain.bert.config, remove_padding=False)
    size = 2, min(8, plain.config.max_position_embeddings)
    ones = torch.ones(size, dtype=torch.int64)
    alike = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    with _tracing():
        program = torch.onnx.export(
            _Logits(plain).eval(),
            (ones, ones.clone(), torch.zeros_like(ones)),
            input_names=_INPUTS,
            output_names=["logits"],
            dynamic_shapes=({0: "batch", 1: "seq"}, alike, alike),
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.pop(_TRACE, None)  # paths on this machine
    write_atomically(path, program.model_proto.SerializeToString())


# %% book/smaller.md#another-engine-onnx e9d299f1
from bertbook.heads import HeadOutput


def _session(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has a type for each cause
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is no ONNX file that onnxruntime can run ({reason}); "
            "write it again by export_onnx"
        ) from None


# %% book/smaller.md#another-engine-onnx 3224ff55
class OnnxClassifier(nn.Module):
    """The model in a file of `export_onnx`, run by onnxruntime on a CPU.

    `threads` is by default what PyTorch uses. Raises FileNotFoundError,
    ValueError for a file that cannot be run, and ModuleNotFoundError.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__()
        _need("onnxruntime")
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} is no file; write one by export_onnx"
            )
        self.session = _session(path, threads or torch.get_num_threads())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> HeadOutput:
        """The logits of rows of ids, (batch, seq), and nothing else."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        given = input_ids, attention_mask, token_type_ids
        rows = {
            name: column.cpu().long().numpy()
            for name, column in zip(_INPUTS, given)
        }
        (logits,) = self.session.run(["logits"], rows)
        return HeadOutput(None, torch.from_numpy(logits), None, None)
