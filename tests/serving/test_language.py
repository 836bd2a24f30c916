"""The language backend answers from saved nodes, and a batch changes nobody's answer."""

import json
import shutil
from pathlib import Path

import pytest

from nvcim.errors import ConfigError, ModelError, NvcimError, RunError
from nvcim.fleet.node import EdgeNode, answer
from nvcim.prompts.personaliser_files import load_personaliser
from serving.backends import CompletionJob
from serving.language import RunLanguage

PROMPTS = ("What is it?", "a", " ", "\n\n", "Ärger mit 🙂 und \x00", "word " * 40)


@pytest.fixture(scope="module")
def backend(full_run: Path) -> RunLanguage:
    return RunLanguage(full_run, "cpu")


def test_offer_names_the_model_and_counts_the_nodes(backend: RunLanguage) -> None:
    assert backend.offer().models == ("lm",)
    assert backend.offer().users == 3


def test_mixed_batch_answers_as_each_job_alone(backend: RunLanguage) -> None:
    jobs = [
        CompletionJob(f"node-{index % 3}", prompt, 3 + index % 2) for index, prompt in enumerate(PROMPTS * 2)
    ]
    assert all(backend.refuse(job) is None for job in jobs)
    together = backend.complete(jobs)
    for job, done in zip(jobs, together, strict=True):
        (alone,) = backend.complete([job])
        assert (done.text, done.slot, done.finish_reason) == (alone.text, alone.slot, alone.finish_reason)
        assert done.completion_tokens <= job.max_tokens
        assert done.score == pytest.approx(alone.score, rel=1e-4)


def test_served_answer_is_the_nodes_own(backend: RunLanguage, full_run: Path) -> None:
    personaliser = load_personaliser(full_run, "cpu")
    for index in range(3):
        node = EdgeNode.load(full_run / "nodes" / f"node-{index}")
        (expected,) = answer([node], [PROMPTS[0]], personaliser, max_new_tokens=5)
        (done,) = backend.complete([CompletionJob(node.node_id, PROMPTS[0], 5)])
        assert expected.slot is not None
        assert (done.text, done.slot) == (expected.text, expected.slot)


def test_an_answer_ends_at_its_own_stop_text_and_counts_what_is_returned(backend: RunLanguage) -> None:
    """Bytes are tokens here, so a text of ASCII takes as many as it has characters."""
    (whole,) = backend.complete([CompletionJob("node-0", PROMPTS[0], 24)])
    stop = next(char for char in whole.text[2:] if char.isascii())
    kept = whole.text.partition(stop)[0]
    jobs = [
        CompletionJob("node-0", PROMPTS[0], 24, (stop, "never written")),
        CompletionJob("node-0", PROMPTS[0], 24),
    ]
    cut, free = backend.complete(jobs)
    assert (cut.text, cut.finish_reason) == (kept, "stop")
    assert cut.completion_tokens < free.completion_tokens
    assert len(kept) <= cut.completion_tokens <= len(kept.encode())
    assert free.text == whole.text


def test_user_without_a_node_is_refused(backend: RunLanguage) -> None:
    refusal = backend.refuse(CompletionJob("node-9", "x", 4))
    assert refusal is not None
    assert (refusal.status, refusal.param) == (404, "user")


def test_context_is_used_to_its_last_token_and_no_further(backend: RunLanguage) -> None:
    length = 900  # bytes are tokens here; the model has room for 1024
    room = next(n for n in range(1, 200) if backend.refuse(CompletionJob("node-0", "x" * length, n + 1)))
    job = CompletionJob("node-0", "x" * length, room)
    (done,) = backend.complete([job])
    assert done.prompt_tokens + room == 1024
    refusal = backend.refuse(CompletionJob("node-0", "x" * length, room + 1))
    assert refusal is not None
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")


def broken(full_run: Path, folder: Path) -> Path:
    """A copy of the run that a test may break."""
    shutil.copytree(full_run, folder / "run", ignore=shutil.ignore_patterns("fcn"))
    return folder / "run"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"language_model": "no/such/model/here"}, ModelError, "no/such/model/here"),
        ({"prompts": {"bufer": 3}}, ConfigError, "bufer.*did you mean 'buffer'"),
        ({"prompts": 3}, RunError, "prompts"),
    ],
)
def test_broken_model_file_is_named(
    full_run: Path, tmp_path: Path, change: dict, error: type[NvcimError], message: str
) -> None:
    run = broken(full_run, tmp_path)
    content = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(content | change))
    with pytest.raises(error, match=message):
        RunLanguage(run, "cpu")


def test_truncated_autoencoder_is_a_model_error(full_run: Path, tmp_path: Path) -> None:
    run = broken(full_run, tmp_path)
    file = run / "autoencoder.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ModelError, match=r"autoencoder\.safetensors"):
        RunLanguage(run, "cpu")
