"""`python -m jobs.fleet --config jobs/fleet.yaml` is `nvcim fleet run` as a Ray job."""

import sys

from nvcim.cli import main

if __name__ == "__main__":
    main(["fleet", "run", *sys.argv[1:]])
