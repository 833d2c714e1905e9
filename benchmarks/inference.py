"""Texts a second of the inference classes beside transformers' pipelines.

    python benchmarks/inference.py
    python benchmarks/inference.py --texts 60 --rounds 3 --record ""

The same weights (all-MiniLM-L6-v2 with heads drawn at random, which costs
what trained ones cost) and the same ragged text: for each beginning of an
IMDb review a paragraph and four sentences of BBC News, up to 256 tokens, so
that neither side cuts.
Every contestant is called on all texts; results are compared before
anything is timed. The pipelines get batches of 1, 8 and 32, and their
fastest counts.
Vectors are measured beside sentence-transformers, which sorts by length
too. `transformers` 5 has no pipeline for question answering.

Writes book/results/inference_speed.json.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer

from bertbook.batching import count_positions, plan_batches
from bertbook.benchmark import compare, interleave
from bertbook.checkpoint_files import find_checkpoint
from bertbook.corpora import load_corpus
from bertbook.heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertbook.inference import Classifier, Embedder, FillMask, Tagger
from bertbook.reproducibility import record_run
from bertbook.tokenizer import BertTokenizer

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "inference_speed.json"
SOURCE = "all-MiniLM-L6-v2"
BATCHES = (1, 8, 32)
LONGEST = 256
TAGS = ("O", "B-name", "I-name")


def ragged_texts(tokenizer, count):
    """A paragraph and four sentences for each review, in any order."""
    part, draw = -(-count // 6), np.random.default_rng(0)
    news = load_corpus("bbc_news", "test")
    paragraphs = [p for each in news["paragraphs"] for p in each]
    sentences = [s for each in news["sentences"] for p in each for s in p]
    texts = load_corpus("imdb", "test")["text"][:part]
    for each, much in (paragraphs, part), (sentences, count - 2 * part):
        texts += [each[i] for i in draw.permutation(len(each))[:much]]
    texts = [texts[i] for i in draw.permutation(len(texts))]
    ends = tokenizer(
        texts,
        truncation=True,
        max_length=LONGEST - 2,  # a mask is put in, and room is left
        return_offsets_mapping=True,
    )["offset_mapping"]
    return [text[: places[-2][1]] for text, places in zip(texts, ends)]


def with_mask(text):
    """The text with its middle word hidden."""
    words = text.split()
    words[len(words) // 2] = "[MASK]"
    return " ".join(words)


def save_models(folder, tokenizer):
    """One checkpoint a task, which both sides read."""
    torch.manual_seed(0)
    models = {
        "classify": BertForSequenceClassification.from_pretrained(
            SOURCE, num_labels=5
        ),
        "tag": BertForTokenClassification.from_pretrained(
            SOURCE, num_labels=3, labels=TAGS
        ),
        "fill": BertForMaskedLM.from_pretrained(SOURCE),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name, tokenizer=tokenizer)
    return {name: folder / name for name in models}


def pipelines(folders):
    """A call of all texts and a batch size, for each task of theirs."""

    def make(task, folder, **options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.model_max_length = 512
        run = transformers.pipeline(
            task, model=str(folder), tokenizer=tokenizer, device="cpu"
        )
        return lambda texts, size: run(texts, batch_size=size, **options)

    return {
        "classify": make("text-classification", folders["classify"]),
        "tag": make(
            "token-classification",
            folders["tag"],
            aggregation_strategy="first",
        ),
        "fill": make("fill-mask", folders["fill"], top_k=5),
    }


def ours(folders, **options):
    """Our predictor for each task."""
    return {
        "classify": Classifier.from_pretrained(
            folders["classify"], **options
        ),
        "tag": Tagger.from_pretrained(folders["tag"], **options),
        "fill": FillMask.from_pretrained(folders["fill"], **options),
        "embed": Embedder.from_pretrained(SOURCE, **options),
    }


def check_equal(task, mine, theirs):
    """Raise AssertionError where the answers of the two sides differ."""
    if task == "embed":
        worst = np.abs(mine - theirs).max()
        assert worst < 1e-4, f"vectors differ by {worst}"
    elif task == "classify":
        for one, two in zip(mine, theirs):
            assert one["label"] == two["label"]
            assert abs(one["score"] - two["score"]) < 1e-4
    elif task == "fill":
        for one, two in zip(mine, theirs):
            for guess, other in zip(one, two):
                assert abs(guess["score"] - other["score"]) < 1e-4
    # Tags: the words differ (split_words beside the tokenizer's), and with
    # them the entities; tests compare them where the words agree.


def contestants(task, texts, folders, theirs, library):
    """The runs to be timed, by name."""
    runs = {}
    if task == "embed":
        for size in (8, 32):
            runs[f"sentence-transformers, {size}"] = lambda size=size: (
                library.encode(
                    texts, batch_size=size, show_progress_bar=False
                )
            )
    else:
        for size in BATCHES:
            runs[f"pipeline, batch {size}"] = lambda size=size: theirs[
                task
            ](texts, size)
    in_order = ours(
        folders,
        window=32,
        batch_tokens=32 * LONGEST,
        remove_padding=False,
    )[task]
    padded = ours(folders, remove_padding=False)[task]
    planned = ours(folders)[task]
    runs["ours, batch 32"] = lambda: in_order(texts)
    runs["ours, padded"] = lambda: padded(texts)
    runs["ours"] = lambda: planned(texts)
    return runs


def measure(task, runs, count, rounds):
    """One row of the table, and texts a second of every run."""
    seconds = interleave(runs, rounds=rounds, warmup=1)
    speeds = {
        name: count / float(np.median(each))
        for name, each in seconds.items()
    }
    rivals = [name for name in runs if not name.startswith("ours")]
    best = max(rivals, key=speeds.get)
    row = {"task": task, "best of theirs": best, "ours": speeds["ours"]}
    row |= {"theirs": speeds[best]}
    row |= compare(seconds[best], seconds["ours"])._asdict()
    return row, speeds


def budgets(texts, folders, rounds):
    """Texts a second of the classifier for several sizes of a batch."""
    runs = {}
    for tokens in (1024, 2048, 4096, 8192, 16384):
        predictor = ours(folders, batch_tokens=tokens)["classify"]
        runs[tokens] = lambda predictor=predictor: predictor(texts)
    seconds = interleave(runs, rounds=rounds, warmup=1)
    return {
        str(tokens): len(texts) / float(np.median(each))
        for tokens, each in seconds.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", default=RECORD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    tokenizer = BertTokenizer.from_pretrained(SOURCE)
    texts = ragged_texts(tokenizer, options.texts)
    lengths = tokenizer(texts, return_length=True)["length"]
    library = SentenceTransformer(
        str(find_checkpoint(SOURCE)), device="cpu"
    )
    library.max_seq_length = 512
    metrics = {
        "texts": len(texts),
        "tokens": sum(lengths),
        "positions": count_positions(lengths, plan_batches(lengths, 4096)),
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as place:
        folders = save_models(Path(place), tokenizer)
        theirs = pipelines(folders)
        for task in ("classify", "tag", "fill", "embed"):
            given = texts
            if task == "fill":
                given = [with_mask(text) for text in texts]
            runs = contestants(task, given, folders, theirs, library)
            answers = {name: run() for name, run in runs.items()}
            rival = next(iter(answers))
            for name in ("ours", "ours, padded", "ours, batch 32"):
                check_equal(task, answers[name], answers[rival])
            row, speeds = measure(task, runs, len(given), options.rounds)
            metrics["rows"].append(row)
            metrics[task] = speeds
            print(
                f"{task:10} {row['median']:.2f} times "
                f"({row['low']:.2f}-{row['high']:.2f}) beside "
                f"{row['best of theirs']}",
                flush=True,
            )
            for name, speed in speeds.items():
                print(f"  {name:28} {speed:8.1f} texts/s", flush=True)
        metrics["batch_tokens"] = budgets(texts, folders, options.rounds)
        print(metrics["batch_tokens"])
    if options.record:
        record_run(options.record, metrics)


if __name__ == "__main__":
    main()
