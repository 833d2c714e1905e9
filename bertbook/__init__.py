"""bertbook

BERT, built from the equations of its papers, in PyTorch: a book whose pages
run, and the package that is tangled from it.

The page: https://bertbook.github.io/bertbook/book/index.html
"""

# Tangled from book/index.md (8535f01c): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

# %% book/index.md#the-public-names bdbe2a55
_HOME = {
    "BasicTokenizer": "wordpiece",
    "BertConfig": "config",
    "BertForMaskedLM": "heads",
    "BertForNextSentencePrediction": "heads",
    "BertForPreTraining": "heads",
    "BertForQuestionAnswering": "heads",
    "BertForSequenceClassification": "heads",
    "BertForTokenClassification": "heads",
    "BertModel": "model",
    "BertTokenizer": "tokenizer",
    "WordPiece": "wordpiece",
    "ablate_heads": "attention_heads",
    "capture": "inspection",
    "head_browser": "inspection",
    "load_corpus": "corpora",
    "train_wordpiece": "vocabulary",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Import the module that holds a public name when it is first used."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'bertbook' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bertbook.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__ + list(globals()))
