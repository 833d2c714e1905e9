"""The whole table

A section of the chapter: Commands for trained models

The page: https://bertbook.github.io/bertbook/book/commands.html
"""

# Tangled from book/commands.md (b553af4d): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

# %% book/commands.md#the-whole-table 02692e78
from bertbook.command_line import main
from bertbook.commands import COMMANDS

if __name__ == "__main__" and "__file__" in globals():
    raise SystemExit(main(commands=COMMANDS))
