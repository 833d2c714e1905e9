"""Files that a tokenizer lives in

Reads and writes vocab.txt, tokenizer.json and tokenizer_config.json, and
refuses a damaged file with a sentence that names the file and the line.

The page: https://bertbook.github.io/bertbook/book/tokenizer_files.html
"""

# Tangled from book/tokenizer_files.md (231ee432): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "SPECIAL_TOKENS",
    "TokenizerSettings",
    "check_vocab",
    "pieces_in_order",
    "read_config",
    "read_object",
    "read_tokenizer_json",
    "read_vocab",
    "tokenizer_json",
    "write_config",
    "write_vocab",
]


# %% book/tokenizer_files.md#the-line-is-the-id b4690e10
import re
from pathlib import Path

SPECIAL_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
_FALSE_LINE_END = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def _piece_of_line(line, where):
    false_end = _FALSE_LINE_END.search(line)
    if false_end:
        raise ValueError(
            f"{where}: the line holds U+{ord(false_end[0]):04X}, which "
            "some readers take for a line end, so that all later ids "
            "would shift; remove the piece"
        )
    if line != line.strip() or not line:
        raise ValueError(
            f"{where}: {line!r} is empty or has blanks at its ends, and "
            "no word does; remove them, or put [unused0] here to keep "
            "the ids"
        )
    return line


# %% book/tokenizer_files.md#the-line-is-the-id 0962e77d
def read_vocab(path: str | Path) -> dict[str, int]:
    """The pieces of a `vocab.txt` and their ids, which are line numbers.

    Raises ValueError, naming file and line, where a line holds a foreign
    line end, blanks at its ends or nothing, is not UTF-8, or a piece stands
    twice.
    """
    data, vocab = Path(path).read_bytes().replace(b"\r\n", b"\n"), {}
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line} is not UTF-8; get the file again"
        ) from None
    for number, line in enumerate(text.removesuffix("\n").split("\n")):
        where = f"{path}:{number + 1}"
        piece = _piece_of_line(line, where)
        if piece in vocab:
            raise ValueError(
                f"{where}: {piece!r} stands on line {vocab[piece] + 1} "
                "already, and a piece has one id; remove one of the two "
                "and train again"
            )
        vocab[piece] = number
    return vocab


# %% book/tokenizer_files.md#the-line-is-the-id 5ab55594
def check_vocab(
    vocab: dict[str, int],
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    embedding_rows: int | None = None,
    path: str | Path = "the vocabulary",
) -> None:
    """Raises ValueError where `vocab` does not fit the model.

    It must hold `special_tokens`, and no id of `embedding_rows` or more.
    `path` is the file it came from; the sentence names file and line.
    """
    missing = [token for token in special_tokens if token not in vocab]
    if missing:
        raise ValueError(
            f"{path}: none of its {len(vocab)} pieces is "
            f"{' or '.join(missing)}; add what is missing, or name the "
            "special tokens that it uses instead"
        )
    if not vocab:
        raise ValueError(f"{path} holds no piece; get the file again")
    last = max(vocab, key=vocab.get)
    if embedding_rows is not None and vocab[last] >= embedding_rows:
        raise ValueError(
            f"{path}:{_line_of(last, path)}: {last!r} has the id "
            f"{vocab[last]}, and the embedding has {embedding_rows} rows, "
            "for ids from 0; use the vocabulary the model was trained with"
        )


# %% book/tokenizer_files.md#the-line-is-the-id 5c7edca8
def _line_of(piece, path):
    """The line of `path` that holds `piece`, in quotes or alone."""
    if not Path(path).is_file():
        return 0
    quoted = json.dumps(piece), json.dumps(piece, ensure_ascii=False)
    lines = Path(path).read_text("utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line == piece or any(f"{key}:" in line for key in quoted):
            return number
    return 0


# %% book/tokenizer_files.md#the-line-is-the-id 0fda257f
import json

from bertbook.reproducibility import write_atomically


def pieces_in_order(vocab: dict[str, int]) -> list[str]:
    """The pieces by id; raises ValueError where an id is missing."""
    ordered = sorted(vocab, key=vocab.get)
    for number, piece in enumerate(ordered):
        if vocab[piece] != number:
            raise ValueError(
                f"{piece!r} has the id {vocab[piece]}, and a vocab.txt "
                f"would give it {number}; number the pieces from 0 "
                "without gaps"
            )
    return ordered


# %% book/tokenizer_files.md#the-line-is-the-id 52c88e63
def write_vocab(vocab: dict[str, int], path: str | Path) -> None:
    """Writes `vocab` as a `vocab.txt`, all of it or nothing."""
    lines = enumerate(pieces_in_order(vocab), 1)
    checked = [_piece_of_line(line, f"{path}:{n}") for n, line in lines]
    write_atomically(path, "\n".join(checked) + "\n")


# %% book/tokenizer_files.md#the-rules-belong-to-the-file 85e7809c
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer needs to know beside its vocabulary."""

    do_lower_case: bool = True
    strip_accents: bool | None = None  # None: as do_lower_case
    tokenize_chinese_chars: bool = True
    unk_token: str = "[UNK]"
    sep_token: str = "[SEP]"
    pad_token: str = "[PAD]"
    cls_token: str = "[CLS]"
    mask_token: str = "[MASK]"
    never_split: tuple[str, ...] = ()  # kept whole beside the above
    max_input_chars_per_word: int = 100
    continuing_subword_prefix: str = "##"
    model_max_length: int | None = None  # None: no limit
    padding_side: str = "right"
    truncation_side: str = "right"

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The five tokens with a role in the model."""
        return (
            self.unk_token,
            self.sep_token,
            self.pad_token,
            self.cls_token,
            self.mask_token,
        )

    def check(self, path: str | Path) -> "TokenizerSettings":
        """Itself; ValueError, naming the file, for what does not fit."""
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            texts = isinstance(value, tuple) and all(
                isinstance(part, str) for part in value
            )
            many = kind == tuple[str, ...]
            fits = texts if many else isinstance(value, kind)
            if field.name.endswith("_side"):
                fits = value in ("left", "right")
            if not fits:
                raise ValueError(
                    f"{path}: {field.name}={value!r:.40} does not fit; "
                    f"give one like {json.dumps(field.default)}"
                )
        return self


# %% book/tokenizer_files.md#the-rules-belong-to-the-file cdd2ad2f
def read_object(path: str | Path) -> dict:
    """The object in a JSON file.

    Raises ValueError, naming the file, where it holds no such thing.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); mend it, or get it again"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} holds a {type(found).__name__}, and a JSON object is "
            "expected; mend it, or get it again"
        )
    return found


# %% book/tokenizer_files.md#the-rules-belong-to-the-file 50ca5bc6
def read_config(path: str | Path) -> TokenizerSettings:
    """The settings in a `tokenizer_config.json`, ours or `transformers`'s.

    Keys without a meaning here are passed over. Raises ValueError, naming
    the file, where it is damaged.
    """
    known = {field.name for field in fields(TokenizerSettings)}
    found = {}
    for key, value in read_object(path).items():
        if key.endswith("_token") and isinstance(value, dict):
            value = value.get("content")  # a token with its own settings
        if key == "model_max_length" and isinstance(value, int | float):
            # `transformers` writes 10**30 for no limit
            value = value if value <= 10**9 else None
        if key == "never_split" and isinstance(value, list | None):
            value = tuple(value or ())
        if key in known:
            found[key] = value
    return TokenizerSettings(**found).check(path)


# %% book/tokenizer_files.md#the-rules-belong-to-the-file 60af4b46
def write_config(settings: TokenizerSettings, path: str | Path) -> None:
    """Writes `settings` as a `tokenizer_config.json`."""
    config = asdict(settings) | {"tokenizer_class": "BertTokenizer"}
    config["never_split"] = list(settings.never_split)
    if settings.model_max_length is None:
        del config["model_max_length"]
    write_atomically(path, json.dumps(config, indent=2) + "\n")


# %% book/tokenizer_files.md#tokenizer-json 50956fb8
def _added_token(token, token_id):
    flags = dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    return {"id": token_id, "content": token, **flags, "special": True}


# %% book/tokenizer_files.md#tokenizer-json cc3b1419
def _template(settings, vocab):
    def special(token, segment):
        return {"SpecialToken": {"id": token, "type_id": segment}}

    def sequence(name, segment):
        return {"Sequence": {"id": name, "type_id": segment}}

    cls, sep = settings.cls_token, settings.sep_token
    single = [special(cls, 0), sequence("A", 0), special(sep, 0)]
    pair = [*single, sequence("B", 1), special(sep, 1)]
    tokens = {
        token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
        for token in (cls, sep)
    }
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": tokens,
    }


# %% book/tokenizer_files.md#tokenizer-json c037bc19
def tokenizer_json(
    vocab: dict[str, int], settings: TokenizerSettings
) -> str:
    """The text of a `tokenizer.json` for the engine of `tokenizers`."""
    whole = [*settings.special_tokens, *settings.never_split]
    by_id = sorted(set(whole), key=vocab.get)
    form = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(t, vocab[t]) for t in by_id],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.tokenize_chinese_chars,
            "strip_accents": settings.strip_accents,
            "lowercase": settings.do_lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(settings, vocab),
        "decoder": {"type": "WordPiece", "cleanup": True}
        | {"prefix": settings.continuing_subword_prefix},
        "model": {
            "type": "WordPiece",
            "unk_token": settings.unk_token,
            "continuing_subword_prefix": settings.continuing_subword_prefix,
            "max_input_chars_per_word": settings.max_input_chars_per_word,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        },
    }
    return json.dumps(form, indent=2, ensure_ascii=False) + "\n"


# %% book/tokenizer_files.md#tokenizer-json cc3b1cbc
_STAGES = {
    "model": "WordPiece",
    "normalizer": "BertNormalizer",
    "pre_tokenizer": "BertPreTokenizer",
}


def read_tokenizer_json(
    path: str | Path, settings: TokenizerSettings | None = None
) -> tuple[dict[str, int], TokenizerSettings]:
    """The vocabulary and settings in a `tokenizer.json`.

    What the file does not say is taken from `settings`. Raises ValueError,
    naming the file, where it is damaged or holds another tokenizer.
    """
    form = read_object(path)
    try:
        for stage, expected in _STAGES.items():
            found = (form.get(stage) or {}).get("type")
            if found != expected:
                raise ValueError(
                    f"{path}: its {stage} is {found}, and BERT's is "
                    f"{expected}; load it with the tokenizers library"
                )
        settings = _settings_of(form, settings, path)
        return _vocab_of(form, path), settings.check(path)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is no tokenizer of BERT ({error!r}); get it again"
        ) from None


# %% book/tokenizer_files.md#tokenizer-json 8497bd6a
from dataclasses import replace


def _settings_of(form, settings, path):
    settings = settings or TokenizerSettings()
    normalizer, model = form["normalizer"], form["model"]
    settings = replace(
        settings,
        do_lower_case=normalizer["lowercase"],
        strip_accents=normalizer["strip_accents"],
        tokenize_chinese_chars=normalizer["handle_chinese_chars"],
        unk_token=model["unk_token"],
        max_input_chars_per_word=model["max_input_chars_per_word"],
        continuing_subword_prefix=model["continuing_subword_prefix"],
    )
    further = []
    for token in form["added_tokens"]:
        plain = _added_token(token["content"], token["id"])
        if token != plain or not normalizer["clean_text"]:
            raise ValueError(
                f"{path}: the added token {token['content']!r} or the "
                "normaliser has options that BERT's do not; load it with "
                "the tokenizers library instead"
            )
        if token["content"] not in settings.special_tokens:
            further.append(token["content"])
    return replace(settings, never_split=tuple(further))


def _vocab_of(form, path):
    vocab = form["model"]["vocab"]
    for piece, number in vocab.items():
        if type(number) is not int or number < 0:
            raise ValueError(
                f"{path}: the id of {piece!r} is {number!r:.40}, and an id "
                "is a whole number from 0 on; get the file again"
            )
    return vocab
