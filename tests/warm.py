"""What most pages load, for the process that is forked for each of them."""

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import myst_nb  # noqa: F401
import torch._dynamo  # noqa: F401  (the first optimizer imports it)
import transformers  # noqa: F401

from bertbook.corpora import load_corpus
from bertbook.sources import SOURCES

for name in SOURCES:
    load_corpus(name)
