"""Fine-tuning: its batches, its model, its best, and runs that are killed.

What is compared after a kill: every parameter, the memory of the optimizer,
the log, what each step read, and the files of the model. Only `seconds` may
differ.
"""

import json
import logging
import math
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import finetuning_driver
import numpy as np
import pytest
import test_resume
import torch
import transformers
from finetuning_driver import (
    BATCH,
    EPOCHS,
    EVALUATE_EVERY,
    LABELS,
    SAVE_EVERY,
    STEPS,
    TEXTS,
    make_data,
    make_settings,
    make_start,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_resume import (
    LIMIT,
    assert_same,
    files_of,
    lines_in,
    log_of,
    newest,
    order_of,
    state_of,
)

from bertbook import finetuning, run_loop
from bertbook.classification import Classification, class_logits, collate
from bertbook.finetuning import bucketed, finetune, finetuned, new_model
from bertbook.heads import BertForSequenceClassification
from bertbook.optimization import Length, Optimization
from bertbook.ranks import Rank
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log

TASK = Classification(LABELS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The bits depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return make_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def tokenizer(start):
    return BertTokenizer.from_pretrained(start)


def tune(start, out, task=TASK, data=None, resume=False, **changes):
    """A run in this process."""
    return finetune(
        make_settings(start, **changes),
        task,
        data or make_data(TEXTS, 0),
        make_data(20, 1),
        BertTokenizer.from_pretrained(start),
        out,
        resume=resume,
        save_every=SAVE_EVERY,
    )


# Batches of like length


SIZES = st.lists(st.integers(1, 200), max_size=300)


@settings(deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(0, 99), st.integers(0, 99))
def test_every_row_stands_in_one_batch(sizes, batch_size, seed, epoch):
    batches = bucketed(sizes, batch_size, seed, epoch)
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(len(sizes)))
    counts = sorted((len(batch) for batch in batches), reverse=True)
    assert len(batches) == math.ceil(len(sizes) / batch_size)
    assert all(count == batch_size for count in counts[:-1])


@settings(deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(0, 99), st.integers(0, 99))
def test_batches_depend_on_seed_and_epoch_alone(
    sizes, batch_size, seed, epoch
):
    first = bucketed(sizes, batch_size, seed, epoch)
    np.random.seed(epoch)
    state = np.random.get_state()[1].tolist()
    again = bucketed(np.array(sizes, int), batch_size, seed, epoch)
    assert np.random.get_state()[1].tolist() == state
    assert len(first) == len(again)
    assert all(map(np.array_equal, first, again))


@settings(deadline=None)
@given(SIZES.filter(bool), st.integers(1, 4), st.integers(0, 99))
def test_batches_have_like_lengths(sizes, batch_size, seed):
    """In a pool of fifty batches no two overlap in their lengths."""
    sizes = np.array(sizes)
    spans = [
        sizes[batch].max() - sizes[batch].min()
        for batch in bucketed(sizes, batch_size, seed, 0)
    ]
    pools = math.ceil(len(sizes) / (50 * batch_size))
    assert sum(spans) <= pools * (sizes.max() - sizes.min())


def test_no_two_epochs_and_seeds_have_the_same_batches():
    sizes = np.random.default_rng(0).integers(5, 60, 640)
    seen = {
        tuple(bucketed(sizes, 32, seed, epoch)[0].tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(seen) == 16


def test_an_epoch_does_not_come_from_short_to_long():
    sizes = np.arange(3200)
    order = [sizes[batch].mean() for batch in bucketed(sizes, 32, 0, 0)]
    ranks = np.corrcoef(np.arange(len(order)), order)[0, 1]
    assert abs(ranks) < 0.3


# Settings


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("initial", "", "give a folder or a name"),
        ("initial", None, "give a folder or a name"),
        ("epochs", 0, "give a number above 0"),
        ("epochs", -1.5, "give a number above 0"),
        ("epochs", "3", "give a number above 0"),
        ("epochs", math.nan, "give a number above 0"),
        ("batch_size", 0, "give a whole number, 1 or more"),
        ("batch_size", 2.0, "give a whole number, 1 or more"),
        ("batch_size", True, "give a whole number, 1 or more"),
        ("max_length", 2, "give a whole number, 3 or more"),
        ("dropout", 1.0, "give a share such as 0.1, or None"),
        ("dropout", -0.1, "give a share such as 0.1, or None"),
        ("dropout", "0.1", "give a share such as 0.1, or None"),
        ("reinitialised", -1, "give a whole number, 0 or more"),
        ("reinitialised", None, "give a whole number, 0 or more"),
        ("fresh", 1, "give True or False"),
        ("dtype", "float16", "give bfloat16 or float32"),
        ("evaluate_every", 0, "give a whole number, 1 or more, or None"),
        ("patience", 0, "give a whole number, 1 or more, or None"),
        ("patience", 1.5, "give a whole number, 1 or more, or None"),
        ("seed", -1, "give a whole number, 0 or more"),
        ("seed", "0", "give a whole number, 0 or more"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(name, value, words):
    with pytest.raises(ValueError) as error:
        replace(make_settings("start"), **{name: value})
    message = str(error.value)
    assert message.startswith(f"{name}={value!r} does not fit; ")
    assert words in message and "\n" not in message


def test_the_usual_settings_are_the_recipe():
    found = finetuning.Finetuning("classify", "all-MiniLM-L6-v2")
    assert (found.epochs, found.batch_size, found.seed) == (3, 32, 0)
    assert found.optimization == Optimization(
        "adamw", 1e-4, 2e-3, betas=(0.9, 0.999), warmup=0.1
    )


# The model to begin with


def layers_of(model):
    return model.bert.encoder.layers


def same_weights(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_encoder_is_loaded_and_the_head_drawn(start):
    chosen = make_settings(start)
    loaded = BertForSequenceClassification.from_pretrained(
        start, **TASK.config
    )
    first, again = new_model(chosen, TASK), new_model(chosen, TASK)
    assert same_weights(first, again)
    assert same_weights(first.bert, loaded.bert)
    other = new_model(replace(chosen, seed=1), TASK)
    assert same_weights(first.bert, other.bert)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    torch.rand(5)
    assert same_weights(first, new_model(chosen, TASK))


def test_a_new_head_is_no_warning(start, caplog):
    with caplog.at_level(logging.DEBUG):
        new_model(make_settings(start), TASK)
        new_model(make_settings(start, fresh=True), TASK)
    assert not caplog.records
    BertForSequenceClassification.from_pretrained(start)
    assert caplog.records, "the loader itself still warns"


def test_a_lost_layer_is_a_warning(tmp_path, caplog):
    make_start(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        name: each
        for name, each in load_file(path).items()
        if ".layer.1." not in name
    }
    save_file(tensors, path, {"format": "pt"})
    new_model(make_settings(tmp_path), TASK)
    (record,) = caplog.records
    assert record.name == "bertbook.finetuning"
    assert "bert.encoder.layers.1." in record.getMessage()


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_the_top_is_drawn_anew(start, count, pooling):
    task = Classification(LABELS, pooling=pooling)
    chosen = make_settings(start)
    plain = new_model(chosen, task)
    changed = new_model(replace(chosen, reinitialised=count), task)
    same = [
        same_weights(*pair)
        for pair in zip(layers_of(plain), layers_of(changed))
    ]
    assert same == [True] * (2 - count) + [False] * count
    assert same_weights(plain.bert.embeddings, changed.bert.embeddings)
    if pooling == "pooler":
        kept = same_weights(plain.bert.pooler, changed.bert.pooler)
        assert kept == (count == 0)
    again = new_model(replace(chosen, reinitialised=count), task)
    assert same_weights(changed, again)
    for layer in layers_of(changed)[2 - count :]:
        assert not layer.attention.output.bias.any()
        assert (layer.feed_forward_norm.weight == 1).all()


def test_more_layers_than_there_are_is_refused(start, tmp_path):
    with pytest.raises(ValueError) as error:
        tune(start, tmp_path / "run", reinitialised=3)
    assert "reinitialised=3, and the model has 2 layers" in str(error.value)
    tune(start, tmp_path / "run", length=Length(steps=1))  # no run there


def test_more_pieces_than_positions_are_refused(start, tmp_path):
    with pytest.raises(ValueError) as error:
        tune(start, tmp_path / "run", max_length=17)
    message = "max_length=17, and the model has 16 positions; give at most"
    assert str(error.value) == f"{message} 16"
    assert not (tmp_path / "run").exists()


def test_a_fresh_model_has_the_sizes_and_no_weight(start):
    chosen = make_settings(start)
    plain = new_model(chosen, TASK)
    fresh = new_model(replace(chosen, fresh=True), TASK)
    assert fresh.config == plain.config
    for (name, a), b in zip(plain.named_parameters(), fresh.parameters()):
        drawn = a.ndim > 1 and name != "classifier.weight"
        assert not drawn or not torch.equal(a, b), name
    assert same_weights(fresh, new_model(replace(chosen, fresh=True), TASK))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_whole(start, tmp_path, kind):
    model = BertForSequenceClassification.from_pretrained(start)
    model.to(kind).save_pretrained(
        tmp_path, tokenizer=BertTokenizer.from_pretrained(start)
    )
    model = new_model(make_settings(tmp_path), TASK)
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_dropout_is_that_of_the_settings(start):
    def rates(model):
        config = model.config
        assert model.dropout.p == config.hidden_dropout_prob
        return (
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )

    assert rates(new_model(make_settings(start), TASK)) == (0.1, 0.1)
    for share in (0.0, 0.3):
        chosen = make_settings(start, dropout=share)
        assert rates(new_model(chosen, TASK)) == (share, share)


# A run


def test_what_is_left_out_is_once_an_epoch(start, tmp_path):
    run = tune(start, tmp_path / "run", evaluate_every=None)
    batches = math.ceil(TEXTS / BATCH)
    assert run.settings.evaluate_every == batches
    assert run.settings.length == Length(steps=math.ceil(EPOCHS * batches))
    log = log_of(tmp_path / "run")
    looks = [r["step"] for r in log if "held_out_accuracy" in r]
    assert looks == [0, batches, 2 * batches, STEPS]
    named = {
        name.removeprefix("held_out_") for name in log[0] if name != "step"
    }
    assert named == {"accuracy", "macro_f1", "loss"}
    assert run.progress.epoch == 2


@pytest.mark.parametrize(
    "length", [Length(steps=5), Length(tokens=400)], ids=str
)
def test_a_length_that_is_given_goes_before_the_epochs(
    start, tmp_path, length
):
    run = tune(start, tmp_path / "run", length=length)
    assert run.settings.length == length
    assert run.done() == 1
    if length.steps:
        assert run.progress.step == 5
    else:
        assert 400 <= run.progress.tokens < 400 + BATCH * 12


def test_tokens_are_what_was_computed(start, tokenizer, tmp_path):
    run = tune(start, tmp_path / "run", length=Length(steps=13))
    features = TASK.features(make_data(TEXTS, 0), tokenizer, 12)
    sizes = [len(row["input_ids"]) for row in features]
    wanted = sum(
        len(batch) * max(sizes[row] for row in batch)
        for batch in bucketed(sizes, BATCH, 0, 0)
    )
    assert run.progress.tokens == wanted


def by_hand(chosen, task, features):
    """The run again, with torch and a schedule of transformers alone."""
    model = new_model(chosen, task).train()
    tables = {
        f"bert.embeddings.{name}.weight"
        for name in ("tokens", "segments", "positions")
    }
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        plain_one = parameter.ndim < 2 or name in tables
        (plain if plain_one else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.01},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=chosen.optimization.learning_rate,
        betas=chosen.optimization.betas,
        eps=chosen.optimization.eps,
    )
    steps = chosen.length.steps
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, int(chosen.optimization.warmup * steps), steps
    )
    sizes = [len(row["input_ids"]) for row in features]
    batches = [
        batch
        for epoch in range(steps)
        for batch in bucketed(sizes, chosen.batch_size, chosen.seed, epoch)
    ]
    for batch in batches[:steps]:
        inputs = collate([features[row] for row in batch], 0)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_a_run_is_the_usual_loop(start, tokenizer, tmp_path, pooling):
    task = Classification(LABELS, pooling=pooling)
    # Keys have biases of no effect; `eps` is above their noise.
    chosen = dict(
        dtype="float32",
        dropout=0.0,
        length=Length(steps=20),
        optimization={"eps": 1e-4},
    )
    run = tune(start, tmp_path / "run", task, **chosen)
    features = task.features(make_data(TEXTS, 0), tokenizer, 12)
    theirs = by_hand(make_settings(start, **chosen), task, features)
    for (name, ours), other in zip(
        run.objective.model.named_parameters(), theirs.parameters()
    ):
        assert torch.allclose(ours, other, atol=1e-4), name


class Scripted(Classification):
    """A task whose verdicts are known beforehand."""

    def evaluate(self, model, features, labelled):
        self.seen.append(
            {k: v.clone() for k, v in model.state_dict().items()}
        )
        return {"accuracy": self.verdicts[len(self.seen) - 1], "loss": 0.5}


def scripted(verdicts):
    task = Scripted(LABELS)
    object.__setattr__(task, "seen", [])
    object.__setattr__(task, "verdicts", verdicts)
    return task


def assert_best(out, task, best):
    model = BertForSequenceClassification.from_pretrained(out, strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, task.seen[best][name]), name


def test_the_best_model_is_kept_the_first_of_equals(start, tmp_path):
    task = scripted([0.5, 0.4, 0.8, 0.6, 0.8, 0.7])
    run = tune(start, tmp_path / "run", task)
    assert len(task.seen) == 6
    assert_best(tmp_path / "run", task, 2)
    assert run.progress.best == 1 - 0.8 and run.progress.waited == 3
    found = [
        record["held_out_accuracy"]
        for record in read_log(tmp_path / "run" / "log.jsonl")
        if "held_out_accuracy" in record
    ]
    assert found == task.verdicts


def test_a_model_is_kept_with_what_was_measured(
    start, tmp_path, monkeypatch
):
    """A disk that is full after the weights: nothing of the new is there."""
    out, usual = tmp_path / "run", run_loop.write_atomically

    def full(path, text):
        if path.name == "held_out.json" and '"accuracy": 0.8' in text:
            raise OSError(28, "No space left on device")
        usual(path, text)

    task = scripted([0.5, 0.6, 0.8])
    monkeypatch.setattr(run_loop, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        tune(start, out, task)
    assert_best(out, task, 1)
    assert json.loads((out / "held_out.json").read_text()) == {
        "accuracy": 0.6,
        "loss": 0.5,
    }


def test_patience_ends_a_run_that_stands_still(start, tmp_path):
    task = scripted([0.5, 0.6, 0.6, 0.55, 0.9, 0.9])
    run = tune(start, tmp_path / "run", task, patience=2)
    assert len(task.seen) == 4 and run.progress.step == 3 * EVALUATE_EVERY
    assert run.done() == 1
    assert_best(tmp_path / "run", task, 1)


def test_what_is_kept_is_what_was_measured(start, tokenizer, tmp_path):
    out = tmp_path / "run"
    tune(start, out)
    model = BertForSequenceClassification.from_pretrained(out, strict=True)
    assert model.config.labels == LABELS
    kept = BertTokenizer.from_pretrained(out)
    assert kept.get_vocab() == tokenizer.get_vocab()
    held_out = make_data(20, 1)
    features = TASK.features(held_out, kept, 12)
    found = TASK.evaluate(model, features, held_out)
    best = max(r.get("held_out_accuracy", 0) for r in log_of(out))
    assert found["accuracy"] == best


def test_the_mean_is_saved_in_our_own_format(start, tokenizer, tmp_path):
    run = tune(start, tmp_path / "run", length=Length(steps=3))
    model = run.objective.model
    with pytest.raises(
        ValueError, match="classifier_pooling='mean' has no"
    ):
        model.save_pretrained(tmp_path / "published")
    assert not (tmp_path / "published").exists()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "bertbook.safetensors" in names
    assert "model.safetensors" not in names
    with pytest.raises((ValueError, OSError)):
        transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "run"
        )
    model.save_pretrained(tmp_path / "own", format="bertbook")
    back = BertForSequenceClassification.from_pretrained(
        tmp_path / "own", strict=True
    )
    assert back.config == model.config
    features = TASK.features(make_data(9, 5), tokenizer, 12)
    found, wanted = (class_logits(each, features) for each in (back, model))
    assert torch.equal(found, wanted)


def test_the_pooler_is_saved_for_transformers(start, tokenizer, tmp_path):
    task = Classification(LABELS, pooling="pooler")
    tune(start, tmp_path / "run", task)
    ours = BertForSequenceClassification.from_pretrained(tmp_path / "run")
    kind = transformers.AutoModelForSequenceClassification
    theirs = kind.from_pretrained(tmp_path / "run")
    assert theirs.config.id2label == dict(enumerate(LABELS))
    features = task.features(make_data(9, 5), tokenizer, 12)
    batch = collate(features, 0)
    batch.pop("labels")
    with torch.no_grad():
        wanted = theirs(**batch).logits
    assert torch.allclose(class_logits(ours, features), wanted, atol=1e-5)


def test_a_folder_with_a_run_is_not_touched(start, tmp_path):
    out = tmp_path / "run"
    tune(start, out, length=Length(steps=3))
    before = files_of(out), log_of(out), newest(out).read_bytes()
    with pytest.raises(FileExistsError, match="continue the run with"):
        tune(start, out, length=Length(steps=3))
    assert (files_of(out), log_of(out), newest(out).read_bytes()) == before


def test_nothing_is_made_where_the_data_does_not_fit(start, tmp_path):
    with pytest.raises(ValueError, match="the data has the labels"):
        tune(start, tmp_path / "run", Classification(("no", "yes")))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_not_resumed(start, tmp_path):
    with pytest.raises(FileNotFoundError, match="leave out --resume"):
        tune(start, tmp_path, resume=True)


@pytest.mark.parametrize("joined", [False, True])
def test_several_processes_are_refused(
    start, tmp_path, monkeypatch, joined
):
    if joined:
        monkeypatch.setattr(finetuning, "this_rank", lambda: Rank(0, 2))
    else:  # as torchrun begins them
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun began 2; start it by"):
        tune(start, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Trained once


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Runs are kept in a folder of the test, and made of its data."""

    def read(source, task, split):
        assert (source, task) == ("reviews", "classify")
        return make_data(
            *{"train": (TEXTS, 0), "validation": (20, 1)}[split]
        )

    monkeypatch.setattr(run_loop, "kept", lambda name: tmp_path / name)
    monkeypatch.setattr(finetuning, "read_labelled", read)
    return tmp_path


def test_a_classifier_is_trained_once(start, shelf, monkeypatch):
    chosen = make_settings(start, length=Length(steps=4))
    folder = finetuned(chosen, "reviews")
    model = BertForSequenceClassification.from_pretrained(folder)
    assert folder.is_relative_to(shelf) and model.config.labels == LABELS
    assert finetuned(replace(chosen, seed=1), "reviews") != folder
    monkeypatch.setattr(finetuning, "finetune", None)  # not called again
    assert finetuned(chosen, "reviews") == folder


def test_one_that_was_stopped_goes_on(start, shelf, monkeypatch):
    chosen, usual = make_settings(start), finetuning.finetuning_step

    def stopping(run, *rest):
        if run.progress.step == 10:
            signal.raise_signal(signal.SIGINT)
        return usual(run, *rest)

    monkeypatch.setattr(finetuning, "finetuning_step", stopping)
    with pytest.raises(KeyboardInterrupt, match="was stopped; call again"):
        finetuned(chosen, "reviews")
    monkeypatch.setattr(finetuning, "finetuning_step", usual)
    folder = finetuned(chosen, "reviews")
    tune(start, shelf / "whole")
    assert state_of(folder) == state_of(shelf / "whole")
    assert log_of(folder) == log_of(shelf / "whole")


# A run that dies


# As `test_resume` runs them, with another driver.
ASIDE = {"target": finetuning_driver.train_aside}
launch = partial(test_resume.start, **ASIDE)
attempt = partial(test_resume.attempt, **ASIDE)
finish = partial(test_resume.finish, **ASIDE)
go_on = partial(test_resume.resume_to_the_end, **ASIDE)


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """The run that nobody interrupted."""
    out = tmp_path_factory.mktemp("reference") / "run"
    finish(out, start)
    assert len(order_of(out)) == STEPS
    return out


def test_the_reference_is_worth_comparing(start, reference):
    """It learns, it has dropout, and evaluates between two states."""
    log = log_of(reference)
    assert [record["step"] for record in log] == [*range(STEPS + 1), STEPS]
    accuracy = [
        record["held_out_accuracy"]
        for record in log
        if "held_out_accuracy" in record
    ]
    assert max(accuracy[1:]) > accuracy[0] + 0.1
    model = BertForSequenceClassification.from_pretrained(reference)
    assert model.config.hidden_dropout_prob == 0.1
    assert state_of(reference)[1]["step"] == STEPS
    assert len(set(order_of(reference).values())) > STEPS / 2


def test_the_same_seed_is_the_same_run(start, reference, tmp_path):
    finish(tmp_path / "again", start)
    assert_same(tmp_path / "again", reference)
    finish(tmp_path / "other", start, seed=1)
    assert order_of(tmp_path / "other") != order_of(reference)
    finish(tmp_path / "plain", start, dropout=0.0)
    assert order_of(tmp_path / "plain") == order_of(reference)
    assert log_of(tmp_path / "plain") != log_of(reference)


def test_a_finished_run_that_is_resumed_stays_as_it_is(start, tmp_path):
    out = tmp_path / "run"
    finish(out, start)
    before = files_of(out), log_of(out), newest(out).read_bytes()
    finish(out, start, resume=True)
    assert (files_of(out), log_of(out)) == before[:2]
    assert newest(out).name == f"step-{STEPS:08}.safetensors"


@pytest.mark.parametrize("step", [1, 2, 8, 17, STEPS])
def test_killed_in_the_middle_of_a_step(start, reference, tmp_path, step):
    """After the loss, before the gradient."""
    out = tmp_path / "run"
    process = launch(out, start, at=step, act="die")
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    assert len(order_of(out)) == step
    go_on(out, start)
    assert_same(out, reference)


@pytest.mark.parametrize("step", [1, 17])
def test_an_error_in_a_step(start, reference, tmp_path, step):
    out = tmp_path / "run"
    status, said = attempt(out, start, at=step, act="fail")
    assert status == 1 and "a fault of the machine" in said
    go_on(out, start)
    assert_same(out, reference)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_ends_cleanly(
    start, reference, tmp_path, kind
):
    out = tmp_path / "run"
    said = finish(out, start, at=17, act="signal", argument=int(kind))
    assert not said and state_of(out)[1]["step"] == 17
    go_on(out, start)
    assert_same(out, reference)


def killed(out, start, rng):
    """Kill one process some steps, and some milliseconds, after its start."""
    order = Path(f"{out}.order")
    wanted = lines_in(order) + rng.randrange(6)
    process = launch(out, start, resume=(out / "run.json").exists())
    while process.is_alive() and lines_in(order) < wanted:
        pass
    process.join(rng.uniform(0, 0.05))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "seed",
    [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 9))],
)
def test_killed_at_random_moments(start, reference, tmp_path, seed):
    out, rng = tmp_path / "run", random.Random(seed)
    assert sum(killed(out, start, rng) for _ in range(8)) >= 4
    go_on(out, start)
    assert_same(out, reference)


def test_killed_before_a_change_of_a_file(start, reference, tmp_path):
    """Each process dies a little later in its saves than the one before."""
    out, deaths = tmp_path / "run", 0
    for change in (1, 2, 3, 5, 8, 13, 21, 29, 34, 38):
        there = (out / "run.json").exists()
        process = launch(out, start, die_at=change, resume=there)
        process.join(LIMIT)
        deaths += process.exitcode == -signal.SIGKILL
    assert deaths >= 7
    go_on(out, start)
    assert_same(out, reference)
    assert not any(out.glob(".sav*")) and not any(out.rglob("*.json.*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"pooling": "pooler", "reinitialised": 1},
        {"optimization": {"optimizer": "bert_adam"}},
        {"optimization": {"optimizer": "muon"}, "fresh": True},
        {"patience": 2, "optimization": {"learning_rate": 0.5}},
        {"evaluate_every": None, "epochs": 1.5, "batch_size": 7},
    ],
    ids="float32 bfloat16 pooler bert_adam muon patience epochs".split(),
)
def test_other_settings_resume_exactly(start, tmp_path, changes):
    finish(tmp_path / "whole", start, **changes)
    out = tmp_path / "run"
    attempt(out, start, at=10, act="fail", **changes)
    assert state_of(out)[1]["step"] == 9
    go_on(out, start, **changes)
    assert_same(out, tmp_path / "whole")


@pytest.fixture(scope="module")
def out_17(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupted") / "run"
    finish(out, start, at=17, act="signal", argument=signal.SIGTERM)
    return out


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"epochs": 3}, "epochs is 2.5 there and 3 here"),
        ({"epochs": 3}, "length.steps is 33 there and 39 here"),
        ({"dropout": 0.1}, "dropout is None there and 0.1 here"),
        ({"fresh": True}, "fresh is False there and True here"),
        ({"reinitialised": 1}, "reinitialised is 0 there and 1 here"),
        ({"evaluate_every": 5}, "evaluate_every is 7 there and 5 here"),
        (
            {"optimization": {"warmup": 0.0}},
            "optimization.warmup is 0.1 there and 0.0 here",
        ),
        ({"max_length": 11}, "max_length is 12 there and 11 here"),
        ({"max_length": 11}, "data is "),
        ({"data_seed": 5}, "data is "),
        ({"pooling": "pooler"}, "data is "),
    ],
    ids=str,
)
def test_changed_settings_are_refused(start, out_17, changes, named):
    before = files_of(out_17), log_of(out_17), newest(out_17).read_bytes()
    status, said = attempt(out_17, start, resume=True, **changes)
    assert status == 1 and said.count("\n") == 1
    assert "holds a run with other settings: " in said and named in said
    now = files_of(out_17), log_of(out_17), newest(out_17).read_bytes()
    assert now == before


def test_another_start_and_another_vocabulary_are_refused(
    start, out_17, tmp_path
):
    make_start(tmp_path / "other")
    status, said = attempt(out_17, tmp_path / "other", resume=True)
    assert status == 1 and "other settings: initial is " in said
    tokenizer = BertTokenizer.from_pretrained(start)
    words = tokenizer.get_vocab()
    words["fine"], words["fun"] = words["fun"], words["fine"]
    with pytest.raises(ValueError, match="other settings: data is "):
        finetune(
            make_settings(start),
            TASK,
            make_data(TEXTS, 0),
            make_data(20, 1),
            BertTokenizer(words),
            out_17,
            resume=True,
        )


def test_other_answers_of_the_held_out_texts_are_refused(start, out_17):
    held_out = make_data(20, 1)
    held_out.rows["others"] = ["more than one is right"] * 20
    with pytest.raises(ValueError, match="other settings: data is "):
        finetune(
            make_settings(start),
            TASK,
            make_data(TEXTS, 0),
            held_out,
            BertTokenizer.from_pretrained(start),
            out_17,
            resume=True,
        )


def test_a_damaged_state_is_named_and_the_one_before_used(
    start, reference, tmp_path
):
    out = tmp_path / "run"
    finish(out, start, at=17, act="signal", argument=signal.SIGTERM)
    content = bytearray(newest(out).read_bytes())
    content[-5] ^= 4
    newest(out).write_bytes(content)
    said = go_on(out, start)
    assert said.endswith("step-00000015.safetensors is used instead\n")
    assert_same(out, reference)


def test_an_optimizer_that_explodes_is_told(start, tmp_path):
    wild = {"learning_rate": 1e30, "warmup": 0.0, "clip_norm": None}
    status, said = attempt(tmp_path / "run", start, optimization=wild)
    assert status == 1 and "with a lower learning rate" in said


@pytest.mark.parametrize("metric", ["loss", "accuracy", "f1"])
def test_off_a_terminal_a_line_for_each_evaluation(
    tmp_path, capsys, metric
):
    with run_loop.Reporter(tmp_path, show=True) as tell:
        tell({"step": 1, "loss": 0.75}, 0.5)
        assert capsys.readouterr().err == ""
        tell({"step": 2, f"held_out_{metric}": 0.25}, 1.0)
    said = capsys.readouterr().err
    assert said == f"step 2  loss 0.75  held_out_{metric} 0.25\n"
