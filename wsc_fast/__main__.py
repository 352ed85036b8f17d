"""`python -m wsc_fast` is `wsc-fast`."""

from wsc_fast.cli import main

main()
