"""`python -m jobs.sweep --config jobs/sweep.yaml` is `nvcim sweep run` as a Ray job."""

import sys

from nvcim.cli import main

if __name__ == "__main__":
    main(["sweep", "run", *sys.argv[1:]])
