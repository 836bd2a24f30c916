"""The language backend: the nodes of a run folder and the frozen LM that their prompts were tuned for."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from nvcim.errors import DataError
from nvcim.fleet.node import EdgeNode, answer
from nvcim.prompts.personaliser_files import load_personaliser
from nvcim.prompts.prefix_cache import cache_for
from serving.backends import Completion, CompletionJob, Offer, Refusal
from serving.run_contents import inspect_run


class RunLanguage:
    """Every node of a run beside one LM; a user is known by the node's id."""

    def __init__(self, run: Path, device: str) -> None:
        contents = inspect_run(run)
        self._created = contents.created
        self._personaliser = load_personaliser(run, device)
        # A local model is known by its folder's name: where it lies on the server is nobody's business.
        self._model = Path(self._personaliser.lm.name).name
        self._prefixes = cache_for(self._personaliser.lm)
        self._nodes = {node.node_id: node for node in map(EdgeNode.load, contents.nodes)}

    def offer(self) -> Offer:
        """The language model's name and how many nodes there are."""
        return Offer((self._model,), len(self._nodes), self._created)

    def refuse(self, job: CompletionJob) -> Refusal | None:
        """Refuse users without a node, and prompts that the model cannot read or that do not fit its context."""
        if job.user not in self._nodes:
            message = f"user '{job.user}' has no node in this run"
            return Refusal(404, message, param="user", code="user_not_found")
        lm, virtual = self._personaliser.lm, self._personaliser.settings.tuning.tokens
        try:
            read = len(lm.question_ids(job.prompt)) + virtual
        except DataError as error:
            return Refusal(400, str(error), param="prompt")
        if read + job.max_tokens > lm.context:
            message = (
                f"the prompt has {read} tokens with its virtual ones and max_tokens is {job.max_tokens}; "
                f"together at most {lm.context} fit the model"
            )
            return Refusal(400, message, param="prompt", code="context_length_exceeded")
        return None

    def complete(self, jobs: Sequence[CompletionJob]) -> list[Completion]:
        """Complete jobs of any users; those that ask for equally many tokens share one batch."""
        done: dict[int, Completion] = {}
        numbered = sorted(enumerate(jobs), key=lambda item: item[1].max_tokens)
        for max_tokens, group in groupby(numbered, key=lambda item: item[1].max_tokens):
            places, batch = zip(*group, strict=True)
            nodes = [self._nodes[job.user] for job in batch]
            texts = [job.prompt for job in batch]
            answers = answer(
                nodes,
                texts,
                self._personaliser,
                max_new_tokens=max_tokens,
                cache=self._prefixes,
                stops=[job.stops for job in batch],
            )
            done |= {
                place: Completion(
                    a.text, a.slot, a.score, a.prompt_tokens, a.completion_tokens, a.finish_reason
                )
                for place, a in zip(places, answers, strict=True)
            }
        return [done[place] for place in range(len(jobs))]
