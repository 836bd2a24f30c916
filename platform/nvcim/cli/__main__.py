"""`python -m nvcim.cli` is the command `nvcim`."""

from nvcim.cli import main

main()
