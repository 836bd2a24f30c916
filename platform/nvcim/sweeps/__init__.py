"""Sweeps over hardware settings on Ray Tune: the search space, what a trial scores, run and resume."""

from nvcim.sweeps.runner import run_sweep
from nvcim.sweeps.space import SweepSettings, TrialPoint

__all__ = ["SweepSettings", "TrialPoint", "run_sweep"]
