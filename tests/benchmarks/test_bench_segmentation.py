import json
from collections.abc import Iterator

import pytest
import torch

from nvcim.segmentation.metrics import score_pair
from tests.benchmarks import segmentation_metric_cases
from tests.benchmarks.bench_segmentation import BENCHMARK, main
from tests.benchmarks.segmentation_metric_cases import SMALL, Pair, cut_pairs, masks, set_scores


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmark sets torch's threads for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_case_gives_a_figure_or_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--json", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {line["case"] for line in report["results"]} == set(BENCHMARK.cases)
    for line in report["results"]:
        assert line["value"] is not None or line["note"].startswith("skipped: ")


def test_the_metrics_have_the_limits_that_were_set() -> None:
    limits = {}
    for case in segmentation_metric_cases.CASES:
        (line,) = case.measure(case, segmentation_metric_cases.Setup(segmentation_metric_cases.SMOKE, 1, 1))
        limits[case.name] = line.limit
    assert limits == {
        "metrics_sets": 1 / 20,
        "metrics_scipy": 1.0,
        "metrics_no_overlap": None,
        "metrics_one_blob": None,
    }


def test_the_references_do_the_same_work() -> None:
    scores = score_pair(*masks(SMALL))
    assert set_scores(*masks(SMALL)) == pytest.approx((scores.f1, scores.dice, scores.hausdorff), abs=1e-12)


def test_the_pair_is_as_large_as_stated() -> None:
    segmented, truth = masks(Pair())
    assert segmented.shape == truth.shape == (522, 775)
    for side in (segmented, truth):
        assert set(side.ravel().tolist()) == set(range(61))
    assert len(cut_pairs(Pair())) == 60
    assert all(len(a) and len(b) for a, b in cut_pairs(Pair()))
    assert (
        score_pair(segmented, truth).dice > 0.5
    )  # the objects that scipy is handed are each other's partners
