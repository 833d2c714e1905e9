"""Commands for trained models

Fine-tunes, scores and calls models from a shell: seven commands of a few
lines each.

The page: https://bertbook.github.io/bertbook/book/commands.html
"""

# Tangled from book/commands.md (ce45a6c7): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

# %% book/commands.md#the-whole-table 02692e78
from bertbook.command_line import main
from bertbook.commands import COMMANDS

if __name__ == "__main__" and "__file__" in globals():
    raise SystemExit(main(commands=COMMANDS))
