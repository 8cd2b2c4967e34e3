"""`python -m oskt` is the `oskt` command; so is `torchrun --nproc-per-node=2 -m oskt ...`."""

from oskt.cli import main

main()
