"""Record fine-tuned classifiers beside their controls, over seeds.

    python benchmarks/finetuning.py --start "an hour=runs/hour" \
        "ten minutes=runs/ten"

Each folder after `--start` is a model of `python -m bertbook pretrain`;
all-MiniLM-L6-v2 is always there, and each shape also with weights drawn
anew. The parts are, and `--only` names some of them:

    full      Rotten Tomatoes, all of its training sentences
    muon      the same by Muon, which pretrained our models, and by AdamW
    labels    the same from fewer sentences
    recipe    the recipe with one thing changed, from 1,000 sentences
    topics    BBC News, whole articles: cut short, and read in windows
    folds     all articles in three parts, each examined by what was
              trained on the other two
    pairs     are two excerpts from the same article of BBC News?
    tried     other recipes for the first model, and the usual one for the
              others, on the validation sentences: is a choice better?

What was tried includes a model that reads the task's sentences first:

    python -m bertbook pretrain --corpus rotten_tomatoes \
        --initial runs/hour --tokens 1500000 --seq-length 128 \
        --batch-size 32 --learning-rate 5e-4 --muon-learning-rate 5e-3 \
        --out runs/sentences
    python benchmarks/finetuning.py --only tried --start \
        "an hour=runs/hour" "the sentences=runs/sentences"

Which optimizer fine-tunes better is asked of a model of its own:

    python benchmarks/pretraining.py \
        book/results/pretraining_second_hour.json --corpus imdb \
        --minutes 60 --seq-length 64 --batch-size 64 \
        --evaluate-every 1000 --out runs/second
    python benchmarks/finetuning.py --only muon \
        --start "a second hour=runs/second"

Writes book/results/finetuning_PART.json after each run, and goes on with
what it lacks.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import concatenate_datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline

from bertbook.checkpoint_files import find_checkpoint
from bertbook.classification import Classification
from bertbook.finetuning import Finetuning, finetune
from bertbook.heads import BertForSequenceClassification
from bertbook.inference import Classifier, Embedder
from bertbook.labelled_data import read_labelled
from bertbook.reproducibility import read_run, record_run
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "book" / "results"
MINILM = "all-MiniLM-L6-v2"
SEEDS = 0, 1, 2
SPLITS = "train", "validation", "test"
COUNTS = 100, 300, 1000, 3000
PARTS = "full muon labels recipe topics folds pairs tried".split()
MEMORY = {}


def read(source, task):
    """The three splits, read once."""
    if (source, task) not in MEMORY:
        MEMORY[source, task] = {
            split: read_labelled(source, task, split) for split in SPLITS
        }
    return MEMORY[source, task]


def fewer(data, count, seed):
    """The same data with `count` training rows, drawn by the seed."""
    rows = data["train"].rows.shuffle(seed=seed).select(range(count))
    return data | {"train": data["train"]._replace(rows=rows)}


def in_folds(data):
    """The same data cut anew: each third examines the other two."""
    rows = concatenate_datasets([data[split].rows for split in SPLITS])
    for rest, third in StratifiedKFold(len(SEEDS)).split(
        rows, rows["label"][:]
    ):
        parts = rows.select(rest), rows.select(third), rows.select(third)
        yield {
            split: data[split]._replace(rows=part)
            for split, part in zip(SPLITS, parts)
        }


def right_share(data, said):
    return float(np.mean(np.array(data["test"].rows["label"][:]) == said))


def by_words(data):
    """Test accuracy of TF-IDF and logistic regression."""

    def texts(split):
        rows = data[split].rows
        if "text_pair" not in rows.column_names:
            return rows["text"][:]
        both = zip(rows["text"][:], rows["text_pair"][:])
        return [f"{one} {other}" for one, other in both]

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=3, max_iter=1000),
    )
    model.fit(texts("train"), data["train"].rows["label"][:])
    return right_share(data, model.predict(texts("test")))


def by_cosine(data, vectors):
    """Test accuracy of one number a pair: the cosine of its two texts.

    `vectors` gives a row for each of some texts.
    """

    def cosines(split):
        rows = data[split].rows
        sides = rows["text"][:], rows["text_pair"][:]
        return 1 - paired_cosine_distances(*map(vectors, sides))[:, None]

    model = LogisticRegression(C=1e6)  # one number: no need to hold it back
    model.fit(cosines("train"), data["train"].rows["label"][:])
    return right_share(data, model.predict(cosines("test")))


def common_words(data):
    """The vectors of TF-IDF, as `by_cosine` wants them."""
    rows = data["train"].rows
    words = TfidfVectorizer(sublinear_tf=True, min_df=2)
    words.fit(rows["text"][:] + rows["text_pair"][:])
    return words.transform


def by_model(settings, data, pooling="mean", windows=False):
    """Test accuracy of one run, its validation accuracy and its seconds.

    With `windows` also the accuracy of the mean over windows of each text.
    """
    tokenizer = BertTokenizer.from_pretrained(settings.initial)
    task = Classification(data["train"].labels, pooling=pooling)
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "run", time.perf_counter()
        held_out = data["validation"]
        run = finetune(
            settings, task, data["train"], held_out, tokenizer, out
        )
        if run.done() < 1:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - start
        model = BertForSequenceClassification.from_pretrained(out)
        log = read_log(out / "log.jsonl")
    test = data["test"]
    features = task.features(test, tokenizer, settings.max_length)
    found = {
        "accuracy": task.evaluate(model, features, test)["accuracy"],
        "seconds": round(seconds, 1),
        "last_loss": next(r["loss"] for r in log[::-1] if "loss" in r),
        "validation": log[-1]["held_out_accuracy"],
    }
    if windows:
        classify = Classifier(
            model, tokenizer, long="average", max_length=settings.max_length
        )
        said = [each["label"] for each in classify(test.rows["text"][:])]
        numbers = np.array([test.labels.index(label) for label in said])
        found["windows"] = right_share(data, numbers)
    return found


LAST = 10**6  # no evaluation before the end: the last model is the one


def usual(initial, task="classify", **changes):
    settings = Finetuning(task, str(initial), evaluate_every=LAST)
    if initial != MINILM:  # smaller: the better rate on the validation set
        higher = replace(settings.optimization, learning_rate=3e-4)
        settings = replace(settings, optimization=higher)
    return replace(settings, **changes)


RECIPES = {
    "the recipe": {},
    "the best epoch": dict(evaluate_every=None),
    "no bias correction": dict(optimizer="bert_adam"),
    "no warm-up": dict(warmup=0.0),
    "rate 2e-5": dict(learning_rate=2e-5),
    "rate 5e-4": dict(learning_rate=5e-4),
    "one epoch": dict(epochs=1),
    "six epochs": dict(epochs=6),
    "two new layers": dict(reinitialised=2),
    "the pooler": dict(pooling="pooler"),
}


def changed(initial, data, changes, seed):
    """A run from `initial` with one thing changed."""
    settings, changes = usual(initial, seed=seed), dict(changes)
    pooling = changes.pop("pooling", "mean")
    direct = {k: v for k, v in changes.items() if hasattr(settings, k)}
    rest = {k: v for k, v in changes.items() if k not in direct}
    optimization = replace(settings.optimization, **rest)
    settings = replace(settings, optimization=optimization, **direct)
    return by_model(settings, data, pooling)


MUON = dict(optimizer="muon")  # the optimizer of pretraining

TRIED = {
    "rate 1e-4": dict(learning_rate=1e-4),
    "rate 6e-4": dict(learning_rate=6e-4),
    "dropout 0.1": dict(dropout=0.1),
}


def own(starts):
    """The names of the models that this book pretrained."""
    return [name for name in starts if starts[name] != MINILM]


def plan(starts):
    """Every run as (part, name, labels, seed) and a function."""
    films = read("rotten_tomatoes", "classify")
    yield ("full", "TF-IDF", None, 0), lambda: {"accuracy": by_words(films)}
    shapes = {
        (find_checkpoint(initial) / "config.json").read_text(): name
        for name, initial in starts.items()
    }
    anew = [(name, True) for name in reversed(shapes.values())]
    for name, fresh in [(name, False) for name in starts] + anew:
        label = f"{name}, drawn anew" if fresh else name
        for seed in SEEDS:
            settings = usual(starts[name], seed=seed, fresh=fresh)
            yield (
                ("full", label, None, seed),
                lambda s=settings: by_model(s, films),
            )
    for count in COUNTS:
        for seed in SEEDS:
            some = fewer(films, count, seed)
            key = "labels", "TF-IDF", count, seed
            yield key, lambda d=some: {"accuracy": by_words(d)}
            for name, initial in starts.items():
                epochs = 10 if count < 1000 else 3
                settings = usual(initial, seed=seed, epochs=epochs)
                yield (
                    ("labels", name, count, seed),
                    lambda s=settings, d=some: by_model(s, d),
                )
    for name, changes in RECIPES.items():
        for seed in SEEDS:
            yield (
                ("recipe", name, 1000, seed),
                lambda c=changes, s=seed: changed(
                    MINILM, fewer(films, 1000, s), c, s
                ),
            )
    yield from plan_muon(starts)
    yield from plan_tried(starts)
    yield from plan_articles()


def plan_muon(starts):
    films = read("rotten_tomatoes", "classify")
    for name in own(starts):
        for how, changes in ("Muon", MUON), ("AdamW", {}):
            for seed in SEEDS:
                yield (
                    ("muon", f"{name}, {how}", None, seed),
                    lambda i=starts[name], c=changes, s=seed: changed(
                        i, films, c, s
                    ),
                )


def plan_tried(starts):
    films = read("rotten_tomatoes", "classify")
    films = films | {"test": films["validation"]}
    yield (
        ("tried", "TF-IDF", None, 0),
        lambda: {"accuracy": by_words(films)},
    )
    runs = [(name, starts[name], {}) for name in own(starts)]
    if runs:
        first = runs[0][1]
        runs += [(name, first, changes) for name, changes in TRIED.items()]
    for name, initial, changes in runs:
        for seed in SEEDS:
            yield (
                ("tried", name, None, seed),
                lambda i=initial, c=changes, s=seed: changed(
                    i, films, c, s
                ),
            )


def plan_articles():
    news = read("bbc_news", "classify")
    yield (
        ("topics", "TF-IDF", None, 0),
        lambda: {"accuracy": by_words(news)},
    )
    whole = partial(usual, MINILM, batch_size=16, epochs=2)
    for length in 128, 512:
        for seed in SEEDS:
            settings = whole(seed=seed, max_length=length)
            yield (
                ("topics", f"cut to {length}", None, seed),
                lambda s=settings: by_model(s, news, windows=True),
            )
    for seed, fold in zip(SEEDS, in_folds(news)):
        yield (
            ("folds", "TF-IDF", None, seed),
            lambda f=fold: {"accuracy": by_words(f)},
        )
        settings = whole(seed=seed, max_length=128)
        yield (
            ("folds", "cut to 128", None, seed),
            lambda s=settings, f=fold: by_model(s, f, windows=True),
        )
    pairs = read("bbc_pairs", "pairs")
    for name, run in (
        ("TF-IDF of both", lambda: by_words(pairs)),
        ("words in common", lambda: by_cosine(pairs, common_words(pairs))),
        (
            "cosine of MiniLM",
            lambda: by_cosine(pairs, Embedder.from_pretrained(MINILM)),
        ),
    ):
        yield ("pairs", name, None, 0), lambda r=run: {"accuracy": r()}
    for seed in SEEDS:
        settings = usual(MINILM, "pairs", seed=seed)
        yield (
            ("pairs", "MiniLM", None, seed),
            lambda s=settings: by_model(s, pairs),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--start", nargs="*", default=[], help="NAME=FOLDER"
    )
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    starts = {"MiniLM": MINILM}
    starts |= dict(each.split("=", 1) for each in options.start)
    rows = {part: [] for part in options.only}
    for part in rows:
        if (record := options.results / f"finetuning_{part}.json").exists():
            rows[part] = read_run(record)["metrics"]["rows"]
    names = "part", "name", "labels", "seed"
    for key, run in plan(starts):
        part = rows.get(key[0])
        if part is None or key in [
            tuple(r[n] for n in names) for r in part
        ]:
            continue
        part.append(dict(zip(names, key)) | run())
        print(*key, part[-1]["accuracy"], flush=True)
        record = options.results / f"finetuning_{key[0]}.json"
        record_run(record, {"rows": part})


if __name__ == "__main__":
    main()
