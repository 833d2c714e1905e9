"""The command line

Trains a BERT by one line in a shell: sub-commands in a table, options whose
defaults are those of the settings, and errors of one sentence.

The page: https://bertbook.github.io/bertbook/book/command_line.html
"""

# Tangled from book/command_line.md (056d7921): change it there and run
# `make tangle`, or change it here and run `make sync`.

# %% book/command_line.md#the-run ff34874d
from bertbook.command_line import main

if __name__ == "__main__" and "__file__" in globals():
    raise SystemExit(main())
