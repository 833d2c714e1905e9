"""What each way of making a classifier smaller costs and gains.

    python benchmarks/smaller.py [--rounds N] [--sentences N] [--threads N]

Reads test sentences of Rotten Tomatoes with the fine-tuned MiniLM of the
page, in float32, without padding, in bfloat16, in int8 and by onnxruntime,
all in one process and in turn, and writes sentences a second, ratios to
float32 with their quartiles, accuracy, agreement and size to
book/results/smaller.json. It trains the model first if no run is kept.
"""

import argparse
import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bertbook.benchmark import compare, interleave
from bertbook.finetuning import Finetuning, finetuned
from bertbook.heads import BertForSequenceClassification
from bertbook.labelled_data import read_labelled
from bertbook.reproducibility import record_run
from bertbook.smaller import (
    OnnxClassifier,
    agreement,
    export_onnx,
    in_bfloat16,
    in_int8,
    weight_bytes,
)
from bertbook.tokenizer import BertTokenizer

SHORT = "avx512_bf16", "amx_bf16", "avx_vnni", "avx512_vnni", "amx_int8"
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Finetuning(  # as on the page
    "classify", "all-MiniLM-L6-v2", epochs=1
)
BATCH = 32


def make_versions(model, folder, threads):
    """Each version and its size in bytes, by name."""
    path = Path(folder) / "classifier.onnx"
    export_onnx(model, path)
    packed = copy.deepcopy(model)  # takes the padding out
    packed.bert.config = replace(packed.bert.config, remove_padding=True)
    made = {
        "float32": model,
        "float32, no padding": packed,
        "bfloat16": in_bfloat16(model),
        "bfloat16, no padding": in_bfloat16(packed),
        "int8": in_int8(model),
        "int8, no padding": in_int8(packed),
    }
    versions = {n: (each, weight_bytes(each)) for n, each in made.items()}
    onnx = OnnxClassifier(path, threads), path.stat().st_size
    return versions | {"ONNX": onnx}


def make_batches(tokenizer, texts):
    """The texts in batches, as they come."""
    rules = dict(padding=True, truncation=True, max_length=128)
    return [
        tokenizer(texts[i : i + BATCH], return_tensors="pt", **rules)
        for i in range(0, len(texts), BATCH)
    ]


def reader(model, batches):
    """A call that reads all batches once; the tokenizer is not timed."""

    def run():
        with torch.inference_mode():
            found = [model(**batch).logits.float() for batch in batches]
        return torch.cat(found)

    return run


def instructions():
    """Which instructions for short numbers the processor has."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # only Linux tells
        flags = []
    return [name for name in SHORT if name in flags]


def measure(made, timed, batches, labels, rounds):
    """Speed on the `timed` batches, answers to all, by version."""
    readers = {
        name: reader(each, timed) for name, (each, _) in made.items()
    }
    seconds = interleave(readers, rounds)
    count = sum(len(batch["input_ids"]) for batch in timed)
    scores = {n: reader(each, batches)() for n, (each, _) in made.items()}
    versions = {}
    for name, (_, size) in made.items():
        close = agreement(scores[name], scores["float32"])
        right = (scores[name].argmax(1) == labels).double().mean().item()
        ratio = compare(seconds["float32"], seconds[name])
        versions[name] = {
            "sentences a second": count / statistics.median(seconds[name]),
            "times float32": ratio._asdict(),
            "bytes": size,
            "accuracy": right,
            "same decision": close.same,
            "furthest probability": close.furthest,
        }
        print(f"{name:22}", versions[name], flush=True)
    return {"versions": versions, "sentences": count}


def main():
    """Time all versions, and compare their answers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = finetuned(SETTINGS, "rotten_tomatoes")
    model = BertForSequenceClassification.from_pretrained(kept)
    tokenizer = BertTokenizer.from_pretrained(kept)
    rows = read_labelled("rotten_tomatoes", "classify", "test").rows
    texts, labels = list(rows["text"]), torch.tensor(list(rows["label"]))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = make_batches(tokenizer, [texts[i] for i in order])
    some = sorted(texts[: options.sentences], key=len)
    with tempfile.TemporaryDirectory() as folder:
        made = make_versions(model, folder, options.threads)
        metrics = measure(
            made,
            make_batches(tokenizer, some),
            batches,
            labels[order],
            options.rounds,
        )
    metrics |= {
        "rounds": options.rounds,
        "threads": options.threads,
        "instructions": instructions(),
        "quantized engine": torch.backends.quantized.engine,
    }
    record_run(ROOT / "book" / "results" / "smaller.json", metrics)


if __name__ == "__main__":
    main()
