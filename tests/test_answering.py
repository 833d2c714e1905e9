"""Training a reader: labels, thresholds and scores."""

import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from bertbook.answering import (
    Answering,
    choose_threshold,
    score_answers,
    tune_threshold,
)
from bertbook.classification import collate
from bertbook.config import BertConfig
from bertbook.finetuning import Finetuning, finetune, new_model
from bertbook.heads import BertForQuestionAnswering
from bertbook.inference import saved_threshold
from bertbook.labelled_data import Labelled
from bertbook.model import BertModel
from bertbook.optimization import Length, Optimization
from bertbook.question_answering import Guess, best_match, token_f1
from bertbook.tokenizer import BertTokenizer

WORDS = "who met lee ann bob rome in then and of".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
GAINS = st.lists(
    st.tuples(
        st.integers(-3, 3),
        st.sampled_from([0.0, 0.25, 1.0]),
        st.sampled_from([0.0, 1.0]),
    ),
    min_size=1,
    max_size=9,
)


@given(GAINS)
def test_no_threshold_is_better(rows):
    margins, answered, silent = zip(*rows)

    def total(threshold):
        return sum(a if m > threshold else s for m, a, s in rows)

    chosen = choose_threshold(margins, answered, silent)
    assert math.isfinite(chosen)
    points = [m + d for m in margins for d in (-0.5, 0, 0.5)]
    assert total(chosen) == max(map(total, points))


def test_without_questions_the_threshold_is_0():
    assert choose_threshold([], [], []) == 0.0


GUESSES = st.lists(
    st.tuples(
        st.sampled_from(["Lee", "Ann Lee", "the Bob", ""]),
        st.integers(-2, 2),
        st.sampled_from([[], ["Lee"], ["Bob", "Ann"], ["the"]]),
    ),
    min_size=1,
    max_size=8,
)


@given(GUESSES, st.integers(-3, 3))
def test_scores_are_means_over_their_questions(rows, threshold):
    guesses = [Guess(text, 0, len(text), float(m)) for text, m, _ in rows]
    answers = [right for *_, right in rows]
    found = score_answers(guesses, answers, threshold)
    f1 = [
        best_match(token_f1, text if m > threshold else "", right)
        for text, m, right in rows
    ]
    assert found["f1"] == pytest.approx(sum(f1) / len(f1))
    assert found["exact"] <= found["f1"] + 1e-9
    having = sum(bool(right) for right in answers)
    both = found["f1_with"] * having
    both += found["silent"] * (len(rows) - having)
    assert both == pytest.approx(sum(f1))
    best = score_answers(guesses, answers, tune_threshold(guesses, answers))
    assert best["f1"] >= found["f1"] - 1e-9


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer({piece: n for n, piece in enumerate(VOCAB)})


def labelled(rows):
    """`rows` are triples of question, context and answer, or None."""
    columns = []
    for number, (question, context, answer) in enumerate(rows):
        places = {"text": [], "answer_start": []}
        if answer is not None:
            places = {
                "text": [answer],
                "answer_start": [context.index(answer)],
            }
        columns.append(
            {
                "id": str(number),
                "context": context,
                "question": question,
                "answers": places,
            }
        )
    return Labelled(Dataset.from_list(columns), ())


LONG = "then Ann met Bob in Rome. " * 5
DATA = [
    ("who met", f"{LONG}Lee", "Lee"),
    ("who met Bob", "Ann met Bob.", "Ann"),
    ("who met Lee", LONG, None),
]


def test_labels_point_at_the_answer(tokenizer):
    task, data = Answering(stride=4), labelled(DATA)
    features = task.features(data, tokenizer, 16)
    marked = {0: 0, 1: 0, 2: 0}
    for window in features:
        _, context, answer = DATA[window.example]
        first, last = window["start_positions"], window["end_positions"]
        assert (first == 0) == (last == 0)
        if first:
            marked[window.example] += 1
            start, end = window.spans[first][0], window.spans[last][1]
            assert context[start:end] == answer
    assert marked[0] and marked[1] and not marked[2]


def test_thinning_keeps_every_answer_and_is_for_training(tokenizer):
    data = labelled(DATA)
    whole = Answering(stride=4).features(data, tokenizer, 16)
    task = Answering(stride=4, keep=1000)
    assert len(task.features(data, tokenizer, 16)) == len(whole)
    kept = task.features(data, tokenizer, 16, training=True)
    with_answer = [w for w in whole if w["end_positions"]]
    assert len(kept) <= len(with_answer) + 1 < len(whole)
    assert sum(bool(w["end_positions"]) for w in kept) == len(with_answer)
    every = Answering(stride=4).features(data, tokenizer, 16, training=True)
    assert len(every) == len(whole)


def tiny(seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForQuestionAnswering(config)


def test_the_loss_is_that_of_transformers(tokenizer, tmp_path):
    """Padding and all, over a batch of windows of different length."""
    import transformers

    task, model = Answering(stride=4), tiny().eval()
    model.save_pretrained(tmp_path)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path)
    batch = collate(task.features(labelled(DATA), tokenizer, 16), 0)
    assert (batch["attention_mask"] == 0).any()
    assert batch["end_positions"].any()
    loss = task.loss(model, batch)
    assert loss.item() == pytest.approx(
        theirs.eval()(**batch).loss.item(), abs=1e-5
    )


def test_a_reader_learns_four_questions_by_heart(tokenizer, tmp_path):
    """Labels, loss, reading and the kept model fit together: F1 is 1."""
    tiny(1).save_pretrained(tmp_path / "start", tokenizer=tokenizer)
    data = labelled([*DATA, ("who met Ann", "Bob met Ann in Rome", "Bob")])
    task, out = Answering(stride=4), tmp_path / "run"
    settings = Finetuning(
        "answer",
        str(tmp_path / "start"),
        Length(steps=200),
        max_length=16,
        evaluate_every=50,
        optimization=Optimization("adamw", learning_rate=2e-3),
    )
    run = finetune(settings, task, data, data, tokenizer, out)
    model = task.head.from_pretrained(out)
    features = task.features(data, tokenizer, 16)
    found = task.evaluate(model, features, data)
    assert found["f1"] == found["exact"] == 1 - run.progress.best == 1
    assert set(found) == {"exact", "f1", "f1_with", "silent", "threshold"}
    kept = saved_threshold(out)
    assert kept == pytest.approx(found["threshold"])
    lacking = labelled([DATA[2]])
    features = task.features(lacking, tokenizer, 16)
    examined = replace(task, threshold=kept)
    found = examined.evaluate(model, features, lacking)
    assert found["threshold"] == kept
    assert task.evaluate(model, features, lacking)["threshold"] != kept


def test_fine_tuning_thins_out_what_it_learns_from(tokenizer, tmp_path):
    """And reads every window when it evaluates."""
    tiny().save_pretrained(tmp_path / "start", tokenizer=tokenizer)
    asked = []

    class Watched(Answering):
        def features(self, labelled, *rest, training=False):
            found = super().features(labelled, *rest, training=training)
            asked.append((training, len(found)))
            return found

    settings = Finetuning(
        "answer", str(tmp_path / "start"), Length(steps=1), max_length=16
    )
    task, data = Watched(stride=4, keep=1000), labelled(DATA)
    finetune(settings, task, data, data, tokenizer, tmp_path / "run")
    (learned,) = (count for training, count in asked if training)
    (read,) = (count for training, count in asked if not training)
    assert learned < read


def test_the_head_depends_on_the_seed_alone(tmp_path):
    config = tiny().config
    BertModel(config).save_pretrained(tmp_path)
    heads = []
    for before, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(before)
        settings = Finetuning(
            "answer", str(tmp_path), max_length=16, seed=seed
        )
        model = new_model(settings, Answering())
        heads.append(model.span_head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
