"""The `oskt` command; `python -m oskt` and `torchrun --nproc-per-node=2 -m oskt ...` are it, too.

Where torch is not installed one subcommand is left: `oskt expand`, which is then `oskt.edge`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command of sys.argv."""
    if sys.argv[1:2] == ["expand"] and find_spec("torch") is None:
        from oskt import edge

        edge.command(sys.argv[2:])
    else:
        from oskt import cli

        cli.main()


if __name__ == "__main__":
    main()
