"""A request that no machine can grant is refused in a line that says what is needed and what there is."""

import logging

import pytest

from nvcim.errors import RunError
from nvcim.fleet.cluster_resources import check_request, fits, machines_up, whole
from nvcim.fleet.ray_session import RaySession

TWO = ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 6.0, "memory": 1e9})


@pytest.mark.parametrize(
    ("cpus", "gpus", "granted"),
    [(4, 1, True), (6, 0, True), (0.5, 0.5, True), (5, 1, False), (10, 0, False), (1, 2, False)],
)
def test_a_request_has_to_fit_on_one_machine(cpus: float, gpus: float, granted: bool) -> None:
    assert fits(TWO, cpus, gpus) is granted


def test_halves_on_two_machines_are_no_whole_cpu() -> None:
    assert whole([{"CPU": 1.5}, {"CPU": 1.5}, {}], "CPU") == 2
    assert whole([], "GPU") == 0


def test_a_local_ray_refuses_what_it_never_has(ray_local: RaySession) -> None:
    assert [machine["CPU"] for machine in machines_up()] == [2.0]
    check_request(ray_local, "a trial", 2)
    with pytest.raises(RunError) as caught:
        check_request(ray_local, "a trial (cpus_per_trial)", 64)
    assert str(caught.value).startswith(
        "a trial (cpus_per_trial) needs 64 CPUs on one machine; the Ray cluster has 1 machine with at most 2 CPUs and "
    )
    with pytest.raises(RunError, match=r"a training needs 1 CPUs and 99 GPUs on one machine"):
        check_request(ray_local, "a training", 1, 99)


def test_a_joined_cluster_may_grow_and_says_what_it_waits_for(
    ray_local: RaySession, caplog: pytest.LogCaptureFixture
) -> None:
    joined = RaySession(ray_local.address, ray_local.cpus, ray_local.gpus, local=False)
    with caplog.at_level(logging.WARNING):
        check_request(joined, "a trial", 1)
        assert not caplog.messages
        check_request(joined, "a trial", 64)
    assert "a trial needs 64 CPUs on one machine" in caplog.text
    assert "it waits until a machine joins that has them" in caplog.text
