"""Masked scores in both worlds, and a Trainer that takes our steps."""

import math
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bertbook.classification import Classification
from bertbook.config import BertConfig
from bertbook.finetuning import Finetuning, bucketed, finetune
from bertbook.heads import BertForMaskedLM, BertForSequenceClassification
from bertbook.huggingface import (
    MeanPooled,
    PseudoScore,
    evaluate_masked_lm,
    make_finetuner,
    pseudo_perplexity,
    pseudo_scores,
    save_start,
    scores_at,
    trainer_arguments,
)
from bertbook.labelled_data import Labelled
from bertbook.losses import IGNORED
from bertbook.masking import Masking, Pieces, mask_rows, spread_labels
from bertbook.optimization import Length, Optimization, warmup_linear
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import read_log

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
datasets.disable_progress_bars()

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES += "the film was a slow and quiet drama with good bad actors".split()
NAMES += ["##s", "##ly", ".", "tele", "##vision"]
TOKENIZER = BertTokenizer({name: i for i, name in enumerate(NAMES)})
TEXTS = [
    "the film was slow .",
    "a quiet drama with good actors and the slow film was good .",
    "bad",
    "",
    "zzz",  # unknown
    "the films was badly quiet television . the drama",
    "good films",
]
TINY = BertConfig(
    vocab_size=len(NAMES),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,  # large, so that a mistake is large
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """One model and its tokenizer, here and there."""
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    ours = BertForMaskedLM(TINY).eval()
    ours.save_pretrained(folder, tokenizer=TOKENIZER)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    return (ours, TOKENIZER), (theirs.eval(), words)


def all_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def by_hand(model, texts, masking, seed, max_length):
    """Each text alone, its ranks counted one by one."""
    losses, ranks = [], []
    for number, text in enumerate(texts):
        ids = TOKENIZER(text, truncation=True, max_length=max_length)
        row = torch.tensor([ids["input_ids"]])
        address = seed, 0, np.array([number])
        masked = mask_rows(row, Pieces.of(TOKENIZER), masking, *address)
        labels = spread_labels(masked)[0]
        logits = all_logits(model, masked.input_ids[0].tolist())
        for at in (labels != IGNORED).nonzero()[:, 0].tolist():
            right = labels[at]
            losses.append(F.cross_entropy(logits[at], right).item())
            ranks.append(int((logits[at] > logits[at, right]).sum()))
    return losses, ranks


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
@pytest.mark.parametrize("unit", ["piece", "word", "span"])
@pytest.mark.parametrize("rate", [0.15, 0.6])
def test_masked_scores_are_those_by_hand(worlds, rate, unit, batch_tokens):
    masking = Masking(rate=rate, unit=unit)
    model = worlds[0][0]
    losses, ranks = by_hand(model, TEXTS, masking, 3, 10)
    options = dict(masking=masking, seed=3, max_length=10)
    for world in worlds:
        found = evaluate_masked_lm(
            *world, TEXTS, batch_tokens=batch_tokens, **options
        )
        assert found.pieces == len(losses)
        assert math.isclose(found.loss, np.mean(losses), rel_tol=1e-5)
        assert math.isclose(found.top1, np.mean([r < 1 for r in ranks]))
        assert math.isclose(found.top5, np.mean([r < 5 for r in ranks]))


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_pseudo_scores_are_those_by_hand(worlds, batch_tokens):
    model, special = worlds[0][0], set(TOKENIZER.all_special_ids)
    for world in worlds:
        found = list(
            pseudo_scores(*world, TEXTS, batch_tokens=batch_tokens)
        )
        assert len(found) == len(TEXTS)
        for text, score in zip(TEXTS, found):
            ids, total, count = TOKENIZER(text)["input_ids"], 0.0, 0
            for at, piece in enumerate(ids):
                if piece in special:
                    continue
                hidden = [
                    *ids[:at],
                    TOKENIZER.mask_token_id,
                    *ids[at + 1 :],
                ]
                logs = all_logits(model, hidden)[at].log_softmax(-1)
                total, count = total + logs[piece].item(), count + 1
            assert score.pieces == count
            assert math.isclose(
                score.log_likelihood, total, rel_tol=1e-5, abs_tol=1e-6
            )


KINDS = {
    "DistilBertForMaskedLM": dict(
        dim=32, hidden_dim=48, n_layers=2, n_heads=4
    ),
    "ElectraForMaskedLM": dict(
        hidden_size=32,
        embedding_size=16,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_masked_models_are_scored_too(name):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(vocab_size=len(NAMES), **KINDS[name])
    model = kind(config).eval()
    losses, _ = by_hand(model, TEXTS, Masking(), 0, 128)
    found = evaluate_masked_lm(model, TOKENIZER, TEXTS)
    assert found.pieces == len(losses)
    assert math.isclose(found.loss, np.mean(losses), rel_tol=1e-5)


def test_scores_are_computed_where_they_are_chosen(worlds):
    ids = torch.tensor([TOKENIZER(TEXTS[0])["input_ids"]] * 2)
    chosen = torch.zeros_like(ids).bool()
    chosen[0, 3], chosen[1, 1] = True, True
    for model, _ in worlds:
        with torch.no_grad():
            logits = model(input_ids=ids).logits
            found = scores_at(model, ids, chosen)
        expected = torch.stack([logits[0, 3], logits[1, 1]])
        torch.testing.assert_close(found, expected)


def test_the_model_is_as_before(worlds):
    for model, words in worlds:
        model.train()
        evaluate_masked_lm(model, words, TEXTS)
        list(pseudo_scores(model, words, TEXTS[:1]))
        assert model.training
        assert all(each.grad is None for each in model.parameters())
        model.eval()


def test_the_seed_and_the_number_of_a_text_decide(worlds):
    ours = worlds[0]
    first = evaluate_masked_lm(*ours, TEXTS)
    assert evaluate_masked_lm(*ours, iter(TEXTS)) == first
    assert evaluate_masked_lm(*ours, TEXTS, seed=1) != first
    longer = evaluate_masked_lm(*ours, [*TEXTS, "the film"])
    assert longer.pieces == first.pieces + 1


class ByFrequency(nn.Module):
    """A masked language model that looks at nothing."""

    def __init__(self, shares):
        super().__init__()
        self.scores = nn.Parameter(
            torch.tensor(shares, dtype=torch.float64).log()
        )

    def forward(self, input_ids):
        size = *input_ids.shape, len(self.scores)
        return SimpleNamespace(logits=self.scores.expand(size))


@given(
    st.lists(st.integers(1, 50), min_size=len(NAMES), max_size=len(NAMES)),
    st.lists(st.sampled_from(NAMES[5:17]), min_size=1, max_size=9),
)
@settings(max_examples=30, deadline=None)
def test_a_model_of_frequencies_has_their_surprise(weights, chosen):
    shares = np.array(weights) / sum(weights)
    surprise = [-math.log(shares[NAMES.index(word)]) for word in chosen]
    model = ByFrequency(shares.tolist())
    (score,) = pseudo_scores(model, TOKENIZER, [" ".join(chosen)])
    assert score.pieces == len(chosen)
    assert math.isclose(-score.log_likelihood, sum(surprise), rel_tol=1e-9)
    perplexity = pseudo_perplexity([score])
    assert math.isclose(
        perplexity, math.exp(np.mean(surprise)), rel_tol=1e-9
    )
    everything = Masking(rate=1.0, mask=1.0, random=0.0)
    found = evaluate_masked_lm(
        model, TOKENIZER, [" ".join(chosen)], masking=everything
    )
    assert math.isclose(found.loss, np.mean(surprise), rel_tol=1e-6)


def test_a_perplexity_weighs_pieces_and_not_texts():
    scores = [
        PseudoScore(-3 * math.log(2), 3),
        PseudoScore(-math.log(32), 1),
    ]
    assert math.isclose(pseudo_perplexity(iter(scores)), 4)


def test_nothing_to_ask_for_is_one_sentence(worlds):
    for world in worlds:
        for texts in ([], ["", "zzz"]):
            with pytest.raises(ValueError, match="give texts with words"):
                evaluate_masked_lm(*world, texts)
            with pytest.raises(ValueError, match="give texts with words"):
                pseudo_perplexity(pseudo_scores(*world, texts))


# -- fine-tuning ----------------------------------------------------------
LABELS = ("neg", "pos")
USUAL = Optimization(
    "adamw",
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    warmup=0.25,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An encoder without a classifier."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    BertForMaskedLM(TINY).save_pretrained(folder, tokenizer=TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def reviews():
    draw = np.random.default_rng(0)
    texts = [
        " ".join(draw.choice(NAMES[5:17], draw.integers(1, 12)))
        for _ in range(24)
    ]
    labels = [int("good" in text) for text in texts]
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    return Labelled(rows, LABELS)


def told(start, **changes):
    given = dict(
        task="classify",
        initial=str(start),
        length=None,
        epochs=2,
        batch_size=6,
        max_length=32,
        dtype="float32",
        optimization=USUAL,
    )
    return Finetuning(**(given | changes))


def test_a_start_is_the_encoder_and_a_drawn_classifier(source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_start(source, tmp_path / name, LABELS, seed)
    a, b, c = (
        BertForSequenceClassification.from_pretrained(
            tmp_path / name, strict=True
        ).state_dict()
        for name in "abc"
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = {name for name in a if not torch.equal(a[name], c[name])}
    assert other == {"bert.pooler.dense.weight", "classifier.weight"}
    kind = transformers.AutoModelForSequenceClassification
    model, info = kind.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert not any(info.values())
    assert model.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(model.classifier.weight, a["classifier.weight"])


def test_a_start_takes_changes(source, tmp_path):
    save_start(source, tmp_path, ("a", "b", "c"), hidden_dropout_prob=0.2)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.hidden_dropout_prob == 0.2
    assert model.config.labels == ("a", "b", "c")


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("rows", [7, 60, 128])
def test_the_rates_are_those_of_the_schedule(rows, warmup, tmp_path):
    """To within the rounding of the warm-up to whole steps."""
    chosen = replace(USUAL, warmup=warmup)
    settings = told("start", optimization=chosen, epochs=3, batch_size=4)
    found = trainer_arguments(settings, rows)
    steps = found["max_steps"]
    assert steps == 3 * math.ceil(rows / 4)
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, **found
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, arguments.get_warmup_steps(steps), steps
    )
    whole = found["warmup_steps"] / steps
    for step in range(steps + 1):
        factor = schedule.lr_lambdas[0](step)
        assert abs(factor - warmup_linear(step / steps, whole)) < 1e-9
    assert abs(whole - warmup) <= 0.5 / steps + 1e-9


def test_every_argument_arrives(tmp_path):
    chosen = replace(USUAL, betas=(0.8, 0.95), eps=1e-6, clip_norm=0.3)
    settings = told("start", optimization=chosen, seed=5, batch_size=9)
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, **trainer_arguments(settings, 100)
    )
    assert (arguments.adam_beta1, arguments.adam_beta2) == (0.8, 0.95)
    assert arguments.adam_epsilon == 1e-6
    assert arguments.max_grad_norm == 0.3
    assert arguments.learning_rate == 1e-3
    assert arguments.per_device_train_batch_size == 9
    assert arguments.seed == 5
    free = replace(settings, optimization=replace(chosen, clip_norm=None))
    assert trainer_arguments(free, 100)["max_grad_norm"] == 0  # off


def test_a_length_in_steps_counts():
    settings = told("start", length=Length(steps=17))
    assert trainer_arguments(settings, 1000)["max_steps"] == 17
    tenth = told("start", epochs=0.1, batch_size=1)  # 0.1 * 30 is over 3
    assert trainer_arguments(tenth, 30)["max_steps"] == 3


@pytest.mark.parametrize(
    "changes, named",
    [
        (
            {"optimization": replace(USUAL, optimizer="bert_adam")},
            "bert_adam",
        ),
        ({"optimization": replace(USUAL, optimizer="muon")}, "muon"),
        (
            {"optimization": replace(USUAL, weight_decay=0.1)},
            "weight_decay",
        ),
        ({"reinitialised": 1}, "reinitialised=1"),
        ({"fresh": True}, "fresh=True"),
        ({"dropout": 0.0}, "dropout=0.0"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16'"),
        ({"patience": 2}, "patience=2"),
        ({"length": Length(minutes=1)}, "minutes=1"),
        ({"length": Length(tokens=10**6)}, "tokens=1000000"),
    ],
)
def test_what_a_trainer_lacks_is_refused(changes, named):
    with pytest.raises(ValueError, match="; give ") as caught:
        trainer_arguments(told("start", **changes), 100)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_classes_are_refused(reviews, tmp_path):
    task = Classification(LABELS, weights=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"weights=\(1.0, 2.0\)"):
        make_finetuner(told("start"), task, reviews, reviews, tmp_path)


def test_the_mean_is_ours(source, tmp_path):
    """Scores, loss and gradients, over padding."""
    save_start(source, tmp_path, LABELS)
    kind = transformers.AutoModelForSequenceClassification
    theirs = MeanPooled(kind.from_pretrained(tmp_path)).eval()
    ours = BertForSequenceClassification.from_pretrained(
        tmp_path, classifier_pooling="mean"
    )
    texts = [text for text in TEXTS if text]
    batch = TOKENIZER(texts, padding=True, return_tensors="pt")
    labels = torch.arange(len(texts)) % 2
    one, two = ours(**batch, labels=labels), theirs(**batch, labels=labels)
    torch.testing.assert_close(one.logits, two["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(one.loss, two["loss"], rtol=0, atol=1e-5)
    assert set(theirs(**batch)) == {"logits"}
    one.loss.backward()
    two["loss"].backward()
    mine = ours.bert.embeddings.tokens.weight.grad
    other = theirs.bert.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
@pytest.mark.parametrize("clip_norm", [1.0, 0.05, None])
def test_in_one_order_the_losses_coincide(
    source, reviews, pooling, clip_norm, tmp_path
):
    save_start(source, tmp_path / "start", LABELS)
    chosen = replace(USUAL, clip_norm=clip_norm)
    settings = told(tmp_path / "start", optimization=chosen)
    task = Classification(LABELS, pooling=pooling)
    finetune(settings, task, reviews, reviews, TOKENIZER, tmp_path / "ours")
    log = read_log(tmp_path / "ours" / "log.jsonl")
    encoded = TOKENIZER(reviews.rows["text"][:])["input_ids"]
    lengths = [len(ids) for ids in encoded]
    order = [
        int(row)
        for epoch in range(2)
        for batch in bucketed(lengths, 6, settings.seed, epoch)
        for row in batch
    ]
    trainer = make_finetuner(
        settings, task, reviews, reviews, tmp_path / "theirs", order=order
    )
    trainer.train()
    mine, other = (
        [record["loss"] for record in records if "loss" in record]
        for records in (log, trainer.state.log_history)
    )
    assert len(mine) == len(other) == 8
    assert abs(mine[0] - other[0]) < 1e-5
    np.testing.assert_allclose(mine, other, atol=5e-3)  # RUN: tighten
    last = [r for r in log if "held_out_accuracy" in r][-1]
    said = trainer.evaluate()["eval_accuracy"]
    assert abs(last["held_out_accuracy"] - said) < 1.5 / 24


def test_without_an_order_rows_are_shuffled_by_the_seed(
    source, reviews, tmp_path
):
    save_start(source, tmp_path / "start", LABELS)
    histories = []
    for number, seed in enumerate((0, 0, 1)):
        settings = told(tmp_path / "start", seed=seed)
        task, out = Classification(LABELS), tmp_path / str(number)
        trainer = make_finetuner(settings, task, reviews, reviews, out)
        trainer.train()
        losses = [
            r["loss"] for r in trainer.state.log_history if "loss" in r
        ]
        histories.append(losses)
    assert histories[0] == histories[1] != histories[2]
