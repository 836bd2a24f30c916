import json
from collections.abc import Iterator

import pytest
import torch

from tests.benchmarks import prompt_tuning_cases
from tests.benchmarks.bench_prompts import BENCHMARK, main
from tests.benchmarks.prompt_tuning_cases import Work, jobs_of, model, tuned_by_peft, tuned_together


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmark sets torch's threads for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_tuning_case_gives_a_figure_or_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    names = [case.name for case in prompt_tuning_cases.CASES]
    assert main(["--smoke", "--json", "--threads", "1", "--cases", *names]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["tuning"]
    assert {line["case"] for line in report["results"]} == set(names)
    for line in report["results"]:
        assert line["value"] is not None or line["note"].startswith("skipped: ")
    (limited,) = (line for line in report["results"] if line["limit"] is not None)
    assert (limited["case"], limited["limit"]) == ("tune", 0.4)


def test_the_reference_does_the_same_work() -> None:
    work = Work(jobs=3, length=24, steps=8)
    assert tuned_together(work, "cpu") == pytest.approx(tuned_by_peft(work, "cpu"), rel=1e-3)


def test_samples_are_as_long_as_stated() -> None:
    lm = model("cpu")
    lengths = [
        len(lm.question_ids(question)) + len(lm.answer_ids(answer))
        for job in jobs_of(Work(), "cpu")
        for question, answer in job.samples
    ]
    assert len(lengths) == 64
    assert 54 <= min(lengths) < 60 < 68 < max(lengths) <= 76
    assert sum(lengths) / 64 == pytest.approx(64, abs=3)


def test_case_names_are_unique_across_files() -> None:
    assert len(prompt_tuning_cases.CASES) == 9
    assert all(BENCHMARK.cases[case.name] is case for case in prompt_tuning_cases.CASES)
