"""Token files: whole or absent, resumable, checked, and rows at the edges."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook import token_files
from bertbook.corpora import split_sentences
from bertbook.token_files import (
    PackedRows,
    TokenFiles,
    count_packed,
    encode_documents,
    write_token_files,
)
from bertbook.tokenizer import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.!?"]
VOCAB = SPECIAL + LETTERS + ["##" + letter for letter in LETTERS[:36]]


def new_tokenizer(**options):
    vocab = {piece: number for number, piece in enumerate(VOCAB)}
    return BertTokenizer(vocab, **options)


TOKENIZER = new_tokenizer()
TEXTS = [f"Film {n} was good. It had {n * 7} scenes!" for n in range(25)]


def contents(folder):
    """Every file that counts, as bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix in (".json", ".npy")
    }


def inodes(folder):
    return {
        path.name: path.stat().st_ino
        for path in Path(folder).iterdir()
        if path.is_dir()
    }


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    return write_token_files(TEXTS, TOKENIZER, folder, shard_size=4)


# What a shard holds

TEXT = st.text(alphabet="abC. !?\n\tß話\x00[]SEP", max_size=40)


@given(st.lists(TEXT, max_size=6))
def test_arrays_are_the_encoded_sentences(documents):
    arrays = encode_documents(documents, TOKENIZER)
    ids, sentences, starts = (arrays[n].tolist() for n in arrays)
    wanted = []
    for document in documents:
        rows = [
            TOKENIZER.encode(sentence, add_special_tokens=False)
            for sentence in split_sentences(document)
        ]
        if rows := [row for row in rows if row]:
            rows[-1] = rows[-1] + [TOKENIZER.sep_token_id]
            wanted.append(rows)
    found = [
        [
            ids[sentences[n] : sentences[n + 1]]
            for n in range(starts[d], starts[d + 1])
        ]
        for d in range(len(starts) - 1)
    ]
    assert found == wanted
    assert sentences[-1] == len(ids) and starts[-1] == len(sentences) - 1


def test_ids_are_as_wide_as_they_must_be():
    for largest, kind in ((2**16 - 1, np.uint16), (2**16, np.uint32)):
        vocab = {piece: number for number, piece in enumerate(VOCAB)}
        tokenizer = BertTokenizer(vocab | {"zz": largest})
        arrays = encode_documents(["a zz"], tokenizer)
        assert arrays["ids"].dtype == kind
        assert arrays["ids"][1] == largest


def test_the_fast_tokenizer_gives_the_same_files():
    one = encode_documents(TEXTS, TOKENIZER)
    two = encode_documents(TEXTS, TOKENIZER.fast)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_counts_are_those_of_the_texts(files):
    assert files.documents == len(TEXTS) and len(files.shards) == 7
    assert files.characters == sum(map(len, TEXTS))
    assert files.tokens == sum(len(s["ids"]) for s in files.shards)
    rows = TOKENIZER(TEXTS, add_special_tokens=False)["input_ids"]
    assert files.pieces == sum(map(len, rows))
    assert files.pieces == files.tokens - len(TEXTS)
    for shard in files.shards:
        assert all(isinstance(array, np.memmap) for array in shard.values())
        assert not shard["ids"].flags.writeable
    files.verify()


def test_no_text_at_all(tmp_path):
    empty = write_token_files(iter([]), TOKENIZER, tmp_path)
    assert (empty.tokens, empty.documents, len(empty.shards)) == (0, 0, 0)
    blank = write_token_files([" ", ""], TOKENIZER, tmp_path / "blank")
    assert (blank.tokens, blank.documents) == (0, 0)
    for files in (empty, blank):
        with pytest.raises(ValueError, match="too few for one row of 16"):
            PackedRows(files, 16, TOKENIZER)


def test_one_string_is_no_list(tmp_path):
    with pytest.raises(ValueError, match="one string"):
        write_token_files("A film.", TOKENIZER, tmp_path)


def test_half_a_surrogate_pair_is_the_tokenizer_s_sentence(tmp_path):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        write_token_files(["odd \ud800 text"], TOKENIZER, tmp_path)


# Streams


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_is_never_far_ahead_of_what_is_written(tmp_path, workers):
    ahead = []

    def stream():
        for number in range(60):
            written = len(list(tmp_path.glob("??????-*"))) * 3
            ahead.append(number - written)
            yield f"Film {number}."

    write_token_files(
        stream(), TOKENIZER, tmp_path, workers=workers, shard_size=3
    )
    bound = 3 if workers == 1 else 3 * (2 * workers + 1)
    assert len(ahead) == 60 and max(ahead) < bound


def test_long_documents_end_a_shard_early(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "_SHARD_CHARACTERS", 50)
    files = write_token_files(["a" * 30] * 5, TOKENIZER, tmp_path)
    assert [shard["documents"] for shard in files.index] == [2, 2, 1]


def test_workers_do_not_change_the_files(tmp_path):
    one = write_token_files(TEXTS, TOKENIZER, tmp_path / "1", shard_size=4)
    two = write_token_files(
        iter(TEXTS), TOKENIZER, tmp_path / "2", workers=2, shard_size=4
    )
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert one.digest == two.digest


def test_an_error_of_the_stream_leaves_whole_shards(tmp_path):
    def stream():
        yield from TEXTS[:10]
        raise ValueError("news.txt:7 is not UTF-8")

    for workers in (1, 2):
        folder = tmp_path / str(workers)
        options = {"workers": workers, "shard_size": 4}
        with pytest.raises(ValueError, match="news.txt:7"):
            write_token_files(stream(), TOKENIZER, folder, **options)
        assert len(inodes(folder)) == 2
        with pytest.raises(FileNotFoundError, match="call write_token_f"):
            TokenFiles(folder)
        write_token_files(TEXTS, TOKENIZER, folder, **options)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


SCRIPT = """
from bertbook.token_files import write_token_files
from bertbook.tokenizer import BertTokenizer

tokenizer = BertTokenizer({vocab!r})
{guard}write_token_files(["a b", "c d"], tokenizer, {folder!r}, workers=2)
"""


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__': "])
def test_a_script_without_a_guard_is_told(tmp_path, guard):
    vocab = {piece: number for number, piece in enumerate(VOCAB)}
    folder = str(tmp_path / "files")
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(vocab=vocab, guard=guard, folder=folder)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True
    )
    if guard:
        assert done.returncode == 0 and done.stderr == ""
        assert TokenFiles(folder).documents == 2
    else:
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert "a worker process ended" in last
        assert "if __name__ == '__main__':" in last


# Interruption

WRITER = """
import sys
import numpy as np
from bertbook import token_files
from test_token_files import TEXTS, TOKENIZER

count, saves, workers = 0, int(sys.argv[2]), int(sys.argv[3])
save = token_files.write_atomically

def stream():
    for text in TEXTS:
        if workers > 1 and text == TEXTS[saves]:
            print("now", flush=True)
            sys.stdin.read()
        yield text

def slow(path, data):
    global count
    count += 1
    if workers == 1 and count == saves:
        half = path.with_name(path.name + ".x7g2")  # as it is named there
        half.write_bytes(b"half of it")
        print("now", flush=True)
        sys.stdin.read()
    save(path, data)

token_files.write_atomically = slow
if __name__ == "__main__":
    token_files.write_token_files(
        stream(), TOKENIZER, sys.argv[1], workers=workers, shard_size=4
    )
"""


def start_and_kill(folder, tmp_path, saves, workers):
    """Kill a real process at a moment that is always the same."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, script, folder, str(saves), str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,
    )
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    return process


# A plan, then four files a shard, then the index.
@pytest.mark.parametrize("saves", [1, 2, 5, 6, 11, 29, 30])
def test_a_killed_call_is_continued(tmp_path, saves):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    write_token_files(TEXTS, TOKENIZER, whole, shard_size=4)
    start_and_kill(folder, tmp_path, saves, workers=1)
    done = {
        name: inode
        for name, inode in inodes(folder).items()
        if name[0] != "."
    }
    assert len(done) == min(7, max(0, saves - 2) // 4)
    assert not (folder / "index.json").exists() or saves == 30
    write_token_files(TEXTS, TOKENIZER, folder, shard_size=4)
    assert contents(folder) == contents(whole)
    assert inodes(folder).items() >= done.items(), "not made again"


def test_workers_end_with_the_process_that_is_killed(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    write_token_files(TEXTS, TOKENIZER, whole, shard_size=4)
    process = start_and_kill(folder, tmp_path, 20, workers=2)
    # The pipe ends when the last process that holds it has ended.
    assert process.stdout.read() == b""
    write_token_files(TEXTS, TOKENIZER, folder, shard_size=4)
    assert contents(folder) == contents(whole)


FULL = """
import resource, signal, sys
from bertbook.token_files import write_token_files
from test_token_files import TOKENIZER

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
texts = ["a b c."] * 50 + ["long " * 900] + ["d e f."] * 50
if __name__ == "__main__":
    try:
        write_token_files(texts, TOKENIZER, sys.argv[1],
                          workers=int(sys.argv[2]), shard_size=10)
    except OSError as error:
        print(error.errno, error.strerror)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_whole_shards(tmp_path, workers):
    script, folder = tmp_path / "full.py", tmp_path / "files"
    script.write_text(FULL)
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, script, folder, str(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the shards before it are whole: make room" in done.stdout
    assert not list(folder.glob(".0*")), "nothing torn is left"
    texts = ["a b c."] * 50 + ["long " * 900] + ["d e f."] * 50
    before = inodes(folder)
    assert len(before) >= 5
    made = write_token_files(texts, TOKENIZER, folder, shard_size=10)
    assert inodes(folder).items() >= before.items()
    other = tmp_path / "other"
    again = write_token_files(texts, TOKENIZER, other, shard_size=10)
    assert made.digest == again.digest
    assert contents(folder) == contents(other)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


def test_two_processes_do_not_disturb_each_other(tmp_path):
    start = multiprocessing.get_context("spawn")
    both = [
        start.Process(
            target=write_token_files,
            args=(TEXTS, TOKENIZER, tmp_path / "both"),
            kwargs={"shard_size": 1},
        )
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    write_token_files(TEXTS, TOKENIZER, tmp_path / "one", shard_size=1)
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


# Change


def test_only_what_changed_is_made_again(tmp_path):
    files = write_token_files(TEXTS, TOKENIZER, tmp_path, shard_size=4)
    before = inodes(tmp_path)
    changed = [*TEXTS[:5], "Another film.", *TEXTS[6:]]
    again = write_token_files(changed, TOKENIZER, tmp_path, shard_size=4)
    after = inodes(tmp_path)
    assert len(before.items() - after.items()) == 1
    assert len(after) == len(before) and again.digest != files.digest
    shorter = write_token_files(
        TEXTS[:8], TOKENIZER, tmp_path, shard_size=4
    )
    assert len(inodes(tmp_path)) == len(shorter.shards) == 2


@pytest.mark.parametrize(
    "options", [{"shard_size": 5}, {"source": "somebody/text"}]
)
def test_another_plan_is_refused(tmp_path, files, options):
    options = {"shard_size": 4} | options
    with pytest.raises(ValueError, match="delete it, or give another"):
        write_token_files(TEXTS, TOKENIZER, files.folder, **options)


def test_another_vocabulary_is_refused(files):
    before = contents(files.folder)
    vocab = {piece: number for number, piece in enumerate(VOCAB)}
    swapped = vocab | {"a": vocab["b"], "b": vocab["a"]}
    for other in (
        BertTokenizer(swapped),
        BertTokenizer(vocab | {"film": len(vocab)}),
        new_tokenizer(do_lower_case=False),
    ):
        with pytest.raises(ValueError, match="shards with vocabulary"):
            write_token_files(TEXTS, other, files.folder, shard_size=4)
    assert contents(files.folder) == before


def test_a_tokenizer_that_was_saved_is_the_same(tmp_path, files):
    TOKENIZER.save_pretrained(tmp_path / "saved")
    loaded = BertTokenizer.from_pretrained(tmp_path / "saved")
    loaded = BertTokenizer(loaded.get_vocab(), model_max_length=64)
    before = inodes(files.folder)
    write_token_files(TEXTS, loaded, files.folder, shard_size=4)
    assert inodes(files.folder) == before


def test_a_named_source_is_not_read_again(tmp_path):
    def never():
        raise AssertionError("the stream is read")
        yield

    options = {"source": "somebody/text", "shard_size": 4}
    made = write_token_files(TEXTS, TOKENIZER, tmp_path, **options)
    found = write_token_files(never(), TOKENIZER, tmp_path, **options)
    assert found.digest == made.digest
    (tmp_path / "index.json").unlink()  # not finished: read again
    again = write_token_files(TEXTS, TOKENIZER, tmp_path, **options)
    assert again.digest == made.digest


# Damage


@pytest.mark.parametrize("name", ["ids", "sentences", "documents"])
def test_a_truncated_file_is_found_on_opening(files, name):
    path = files.folder / files.index[3]["name"] / f"{name}.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="000003-.* is damaged; delete"
        ):
            TokenFiles(files.folder)
    path.unlink()
    with pytest.raises(ValueError, match="000003-.* is damaged; delete"):
        TokenFiles(files.folder)
    write_token_files(TEXTS, TOKENIZER, files.folder, shard_size=4)
    assert path.read_bytes() == whole
    TokenFiles(files.folder).verify()


@pytest.mark.parametrize("name", ["ids", "sentences", "documents"])
def test_a_flipped_bit_is_found_by_verify(files, name):
    path = files.folder / files.index[0]["name"] / f"{name}.npy"
    whole = bytearray(path.read_bytes())
    for place in (0, 70, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        opened = TokenFiles(files.folder)
        with pytest.raises(
            ValueError, match="000000-.* is damaged; delete"
        ):
            opened.verify()
    path.write_bytes(whole)
    opened.verify()


def test_a_missing_shard_and_changed_facts_are_found(files):
    name = files.index[1]["name"]
    facts = files.folder / name / "shard.json"
    text = facts.read_text()
    facts.write_text(text.replace('"documents": 4', '"documents": 5'))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        TokenFiles(files.folder)
    facts.write_text(text[:20])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        TokenFiles(files.folder)
    facts.unlink()
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        TokenFiles(files.folder)
    write_token_files(TEXTS, TOKENIZER, files.folder, shard_size=4)
    assert TokenFiles(files.folder).digest == files.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 200_000,
        "[]",
        "{}",
        '{"shards": 5}',
        '{"shards": [5]}',
        '{"shards": [{"name": 5}]}',
        '{"shards": [{"name": "../elsewhere"}]}',
    ],
    ids=range(9),
)
def test_a_damaged_index_is_named_and_made_again(files, text):
    index = files.folder / "index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match="(index.json|elsewhere) is dam"):
        TokenFiles(files.folder)
    write_token_files(TEXTS, TOKENIZER, files.folder, shard_size=4)
    assert TokenFiles(files.folder).digest == files.digest


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 200_000, "[]"], ids=range(4)
)
def test_a_damaged_plan_is_named(files, text):
    (files.folder / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="plan.json is damaged; delete"):
        write_token_files(TEXTS, TOKENIZER, files.folder, shard_size=4)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("tokens"),
        lambda facts: facts.update(documents="four"),
        lambda facts: facts["files"].update({"ids.npy": 5}),
        lambda facts: facts["files"]["ids.npy"].pop(),
        lambda facts: facts["files"].pop("ids.npy"),
        lambda facts: facts.update(files=5),
    ],
)
def test_facts_of_another_kind_are_damage(files, change):
    """Also where the index says the same."""
    index = files.folder / "index.json"
    found = json.loads(index.read_bytes())
    change(found["shards"][0])
    index.write_text(json.dumps(found))
    name = found["shards"][0].pop("name")
    facts = json.dumps(found["shards"][0])
    (files.folder / name / "shard.json").write_text(facts)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        TokenFiles(files.folder)


def test_no_folder_is_no_token_files(tmp_path):
    (tmp_path / "file").touch()
    for name in "nothing", "file":
        with pytest.raises(FileNotFoundError, match="no index.json"):
            TokenFiles(tmp_path / name)


def test_what_is_damaged_can_be_made_again_from_a_source(tmp_path):
    """By what the message says, where the documents are not read again."""

    def make():
        return write_token_files(
            TEXTS, TOKENIZER, tmp_path / "a", shard_size=4, source="texts"
        )

    digest = make().digest
    for name in "000001-*/ids.npy", "index.json":
        (path,) = (tmp_path / "a").glob(name)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="is damaged") as caught:
            make()
        folder = re.search("delete (.*) and make", str(caught.value))[1]
        assert folder == str(tmp_path / "a")
        shutil.rmtree(folder)
        assert make().digest == digest


def test_opening_reads_no_array(files, monkeypatch):
    monkeypatch.setattr(np, "load", None)
    opened = TokenFiles(files.folder)
    PackedRows(opened, 16, TOKENIZER)
    with pytest.raises(TypeError):
        opened.shards[0]


def test_few_files_are_open_at_a_time(tmp_path):
    """Three a shard: a process may have a thousand, and reads two texts."""
    texts = [f"film {n}" for n in range(200)]
    files = write_token_files(texts, TOKENIZER, tmp_path, shard_size=1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(len(files.shards)):
        assert len(files.shards[number]["ids"])
    assert len(os.listdir("/proc/self/fd")) - before <= 3 * 129
    assert [len(s["documents"]) - 1 for s in files.shards] == [1] * 200


def test_a_copy_in_another_process_opens_the_files_again(files):
    rows = PackedRows(files, 16, TOKENIZER, seed=3)
    data = pickle.dumps(rows)
    assert len(data) < 2000
    copy = pickle.loads(data)
    examples = np.arange(5)
    assert np.array_equal(
        copy.rows(2, examples)["input_ids"],
        rows.rows(2, examples)["input_ids"],
    )


# Rows


class Shards:
    """Stands for `TokenFiles` with shards of these lengths."""

    folder = "nowhere"

    def __init__(self, lengths):
        numbers = np.arange(100, 100 + sum(lengths), dtype=np.uint16)
        ends = np.cumsum(lengths)[:-1]
        self.shards = [{"ids": part} for part in np.split(numbers, ends)]
        self.index = [{"tokens": length} for length in lengths]
        self.tokens = sum(lengths)


@given(st.integers(0, 300), st.integers(1, 40))
def test_the_count_is_that_of_the_worst_shift(tokens, inner):
    counts = []
    for shift in range(inner):
        rows, at = 0, shift
        while at + inner <= tokens:
            rows, at = rows + 1, at + inner
        counts.append(rows)
    assert count_packed(tokens, inner) == min(counts)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=6),
    st.integers(3, 20),
    st.integers(0, 2**20),
    st.integers(0, 50),
)
def test_rows_are_stretches_of_one_shard(lengths, seq, seed, epoch):
    files, inner = Shards(lengths), seq - 2
    counts = [count_packed(length, inner) for length in lengths]
    if not sum(counts):
        with pytest.raises(ValueError, match="too few for one row"):
            PackedRows(files, seq, TOKENIZER)
        return
    rows = PackedRows(files, seq, TOKENIZER, seed)
    assert rows.count(epoch) == sum(counts)
    found = rows.rows(epoch, np.arange(sum(counts)))["input_ids"]
    assert found.shape == (sum(counts), seq) and found.dtype == np.int64
    assert (found[:, 0] == TOKENIZER.cls_token_id).all()
    assert (found[:, -1] == TOKENIZER.sep_token_id).all()
    shifts, at = set(), 0
    for shard, count in zip(files.shards, counts):
        block = found[at : at + count, 1:-1].ravel()
        if count:
            shift = int(block[0]) - int(shard["ids"][0])
            shifts.add(shift)
            # Past its end a shard has no numbers: they would be missing.
            wanted = shard["ids"][shift : shift + count * inner]
            assert np.array_equal(block, wanted)
        at += count
    assert len(shifts) == 1 and 0 <= min(shifts) < inner


@pytest.mark.parametrize("tokens, rows", [(7, 0), (8, 0), (14, 0), (15, 1)])
def test_a_short_shard_gives_a_row_or_none_for_every_shift(tokens, rows):
    """A row takes 8: with 15 there is one wherever the cut falls."""
    assert count_packed(tokens, 8) == rows
    both = PackedRows(Shards([tokens, 40]), 10, TOKENIZER)
    shifts = set()
    for epoch in range(60):
        found = both.rows(epoch, np.arange(both.count(epoch)))["input_ids"]
        shifts.add(int(found[-1, 1] - 100 - tokens) % 8)
        assert len(np.unique(found[:, 1:-1])) == found[:, 1:-1].size
    assert shifts == set(range(8)), "all of them were tried"


def test_rows_depend_on_their_address_alone(files):
    rows = PackedRows(files, 16, TOKENIZER, seed=1)
    order = np.random.default_rng(0).permutation(rows.count(4))
    shuffled = rows.rows(4, order)["input_ids"]
    straight = rows.rows(4, np.arange(rows.count(4)))["input_ids"]
    assert np.array_equal(shuffled, straight[order])
    single = [rows.rows(4, order[n : n + 1])["input_ids"] for n in range(9)]
    assert np.array_equal(np.concatenate(single), shuffled[:9])
    other = PackedRows(files, 16, TOKENIZER, seed=2)
    epochs = [rows.rows(e, np.arange(1))["input_ids"] for e in range(9)]
    seeds = [other.rows(e, np.arange(1))["input_ids"] for e in range(9)]
    assert not np.array_equal(epochs, seeds)
    assert len({row.tobytes() for row in epochs}) > 3


def test_a_row_without_room_is_refused(files):
    with pytest.raises(ValueError, match="seq_length=2 leaves no room"):
        PackedRows(files, 2, TOKENIZER)


def test_importing_the_module_loads_no_torch():
    code = (
        "import sys, bertbook.token_files, bertbook.pretraining_text; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_index_says_what_the_files_are(files):
    index = json.loads((files.folder / "index.json").read_bytes())
    for shard in index["shards"]:
        for name, (size, _) in shard["files"].items():
            path = files.folder / shard["name"] / name
            assert path.stat().st_size == size
