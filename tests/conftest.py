"""Fixtures that several rooms' tests share."""

import os
from collections.abc import Iterator

import pytest
from nvcim.fleet.ray_session import RaySession, ray_session

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores: threads of one test must not starve its workers


@pytest.fixture(scope="session")
def ray_local() -> Iterator[RaySession]:
    """One Ray of two CPUs for all tests (starting one takes seconds)."""
    with ray_session("local", num_cpus=2) as session:
        yield session
