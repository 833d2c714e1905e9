"""The cloze set: what is asked, where the answer is, and what must not leak."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it.renderer import RendererHTML

from bertbook.cloze_questions import (
    BLANK,
    Article,
    article_questions,
    candidate_spans,
    cloze_questions,
    cloze_rows,
    find_choices,
    find_names,
    find_places,
    first_name,
    most_frequent,
    similar_article,
    sliding_window,
    sort_places,
    split_article,
    word_weights,
    words_of,
)
from bertbook.corpora import SPLITS, canonical, load_corpus


@pytest.fixture(scope="module")
def data():
    return {split: list(cloze_questions(split)) for split in SPLITS}


def answered(rows):
    return [row for row in rows if row["answers"]["text"]]


def test_every_answer_is_where_it_says(data):
    for rows in data.values():
        for row in rows:
            texts, starts = row["answers"].values()
            assert len(texts) == len(starts) == len(set(starts))
            assert len(set(texts)) <= 1
            for text, start in zip(texts, starts):
                end = start + len(text)
                assert row["context"][start:end] == text
                around = row["context"][max(0, start - 1) : end + 1]
                assert re.search(rf"(?<!\w){re.escape(text)}(?!\w)", around)


def test_a_question_is_a_summary_with_a_blank(data):
    for split, rows in data.items():
        articles = {
            row["id"]: row for row in load_corpus("bbc_news", split)
        }
        contexts = {split_article(row).context for row in articles.values()}
        for row in rows:
            source = articles[row["id"].split("-")[0]]
            before, after = row["question"].split(BLANK)
            summaries = [source["title"], source["sentences"][0][0]]
            own = [
                text
                for text in summaries
                if text.startswith(before) and text.endswith(after)
            ]
            assert own
            assert row["context"] in contexts
            if row["answers"]["text"]:
                answer = row["answers"]["text"][0]
                assert before + answer + after in summaries
                assert row["context"] == split_article(source).context
                assert answer.lower() not in words_of(row["question"])


def test_no_summary_stands_in_its_context(data):
    """The leak that would make every question easy."""
    for rows in data.values():
        for row in answered(rows):
            whole = row["question"].replace(
                BLANK, row["answers"]["text"][0]
            )
            assert canonical(whole) not in canonical(row["context"])


def test_splits_share_no_question_and_no_article(data):
    questions, articles = [], []
    for rows in data.values():
        questions.append({canonical(row["question"]) for row in rows})
        articles.append({row["context"] for row in rows})
        assert len({row["id"] for row in rows}) == len(rows)
    for sets in (questions, articles):
        assert len(set().union(*sets)) == sum(map(len, sets))


def test_an_unanswerable_question_lacks_its_answer(data):
    for rows in data.values():
        twins = {row["id"]: row for row in rows}
        lacking = [row for row in rows if not row["answers"]["text"]]
        assert abs(len(lacking) / len(rows) - 1 / 3) < 0.04
        for row in lacking:
            assert row["id"].endswith("-other")
            twin = twins[row["id"].removesuffix("-other")]
            assert twin["question"] == row["question"]
            assert twin["context"] != row["context"]
            (answer,) = set(twin["answers"]["text"])
            assert not words_of(answer) <= words_of(row["context"])


def test_the_set_is_the_same_in_every_process():
    """The order of a set of strings is not; see `similar_article`."""
    program = (
        "import hashlib, json\n"
        "from bertbook.cloze_questions import cloze_questions\n"
        "rows = list(cloze_questions('test'))\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev'; choose one of train"):
        cloze_questions("dev")


# The parts

PROSE = st.lists(
    st.sampled_from(
        "Avon Lee Bank of the The 5.2% 2009 45-6 £3m met I A said, . \" 's "
        "O'Gara Xbox 2 Coca-Cola AT&T de -".split()
        + ["\n"]
    ),
    max_size=25,
).map(" ".join)


@given(PROSE)
def test_candidates_are_whole_words(text):
    spans = candidate_spans(text)
    assert spans == sorted(spans)
    for (_, end), (start, _) in zip(spans, spans[1:]):
        assert end <= start
    for start, end in spans:
        found = text[start:end]
        assert found == found.strip() and found
        assert found not in ("A", "I")
        assert end == len(text) or not text[end].isalnum()
        assert start == 0 or not text[start - 1].isalnum()
    assert set(find_names(text)) <= set(spans)


@given(PROSE, st.sampled_from(["Lee", "Avon", "2009", "Bank", "Xbox 2"]))
def test_places_hold_the_answer(text, answer):
    for place in find_places(answer, text, find_names(text)):
        end = place + len(answer)
        assert text[place:end] == answer
        assert end == len(text) or not text[end].isalnum()


@given(PROSE, PROSE)
def test_sorting_loses_no_place(question, context):
    places = [start for start, _ in candidate_spans(context)]
    assert sorted(sort_places(question, context, places)) == places


@pytest.mark.parametrize(
    "text, names",
    [
        ("It rained. It did.", []),
        ("Rain fell in Spain. Spain was wet.", ["Spain", "Spain"]),
        ('He said: "We won in Rome."', ["Rome"]),
        ("Bank of England and Ministry of Love", None),
        ("up 5%, not 5.5% or 50", ["5%", "5.5%", "50"]),
        ("it cost $1.13bn (£600m)", ["$1.13bn", "£600m"]),
        ("a 14-year-old won 6-4", ["14", "6-4"]),
    ],
)
def test_names_by_hand(text, names):
    found = [text[start:end] for start, end in find_names(text)]
    if names is None:
        names = ["Bank of England", "Ministry of Love"]
    assert found == names


def make(name, summaries, context, topic=0):
    return Article(name, topic, summaries, context, words_of(context))


def test_an_answer_twice_in_a_summary_is_not_asked_for():
    context = "then Lee met Ann and Bob"
    article = make("a", ("when Lee and LEE met Ann",), context)
    assert [c.answer for c in article_questions(article)] == ["Ann"]


def test_a_repeated_summary_asks_nothing():
    context = 'and so on. "Lee met, Ann"! Lee met Ann'
    article = make("a", ("so Lee met Ann",), context)
    assert list(article_questions(article)) != []
    article = make("a", ("Lee met Ann",), context)
    assert list(article_questions(article)) == []


def test_the_other_article_is_of_the_topic_and_without_the_answer():
    own = make("a", ("so Lee met Ann in Rome",), "where Lee and Ann met")
    others = [
        own,
        make("b", (), "so Lee met Bob in Rome"),  # has the answer
        make("c", (), "so somebody met Ann in Rome", topic=1),
        make("d", (), "a meeting in Rome"),
        make("e", (), "nothing"),
    ]
    weights = word_weights(others)
    (first, _) = article_questions(own)
    assert first.answer == "Lee"
    assert similar_article(first, own, others, weights).id == "d"
    assert similar_article(first, own, others[:3], weights) is None
    rows = list(cloze_rows(others[:3], set()))
    answers = [row["answers"]["text"] for row in rows]
    assert ["Lee"] in answers and ["Ann"] in answers


@given(PROSE, PROSE)
def test_rules_choose_what_the_question_lacks(question, context):
    spans = find_choices(question, context)
    choices = {context[start:end] for start, end in spans} or {""}
    for rule in (first_name, most_frequent, sliding_window):
        assert rule(question, context) in choices


def test_the_window_is_summed_by_hand():
    """ln(1 + 1/c) for each near word of the question."""
    context = "so Avon sold a boat and Bree sold a red boat"
    question = f"{BLANK} sold a red boat"
    # Reach 5 (mask, sold, a, red, boat). Near Avon: so | sold a boat and
    # Bree: sold, a, boat twice each in all: 3 ln 1.5. Near Bree: Avon sold
    # a boat and | sold a red boat: 6 ln 1.5 + ln 2.
    assert sliding_window(question, context) == "Bree"
    assert most_frequent(question, context) == "Avon"


def test_a_blank_is_no_word():
    assert words_of(f"{BLANK} sold a mask") == {"sold", "a", "mask"}
    assert words_of(BLANK) == frozenset()


def test_an_amount_of_money_is_no_formula():
    from myst_parser.config.main import MdParserConfig
    from myst_parser.parsers.mdit import create_md_parser

    config = MdParserConfig(enable_extensions={"dollarmath"})
    parser = create_md_parser(config, RendererHTML)
    path = Path(__file__).parent.parent / "book/cloze_questions.md"
    text = path.read_text("utf-8")
    inline = [
        each
        for token in parser.parse(text)
        for each in token.children or []
    ]
    formulas = [t.content for t in inline if t.type == "math_inline"]
    assert "n_w" in formulas and not any("*" in f for f in formulas)
    assert "".join(t.content for t in inline).count("$3bn") == 2
