"""Train the embedded base LM: `python -m jobs.pretrain` (about half an hour on one core), `--smoke` for a minute.

`--corpus PATH` trains on a user's own text instead: a folder of LaMP folders, of which the users in the last quarter
(by a hash of their ids) are held back, so that the base can be scored on users that it never saw.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from nvcim.prompts.model_card import score_base, write_card

from nvcim.data.lamp import UserStream, held_back, read_lamp_folders
from nvcim.errors import NvcimError
from nvcim.progress import progress
from nvcim.prompts.language_model import EMBEDDED_FOLDER, LanguageModel
from nvcim.prompts.pretraining import (
    GENERATED_INSTRUCTIONS,
    Document,
    PretrainSettings,
    corpus_documents,
    generated_documents,
    instructions_of,
    new_model,
    pretrain,
    train_tokenizer,
)

SMOKE = {"steps": 60, "batch": 8}
TOKENIZER_DOCUMENTS = 3000


def documents_for(
    corpus: Path | None, settings: PretrainSettings, seed: int
) -> tuple[Iterator[Document], Sequence[str], list[UserStream]]:
    """(endless documents, instructions that become one token each, users to score on: empty for generated text)."""
    if corpus is None:
        return generated_documents(settings, seed), GENERATED_INSTRUCTIONS, []
    streams = read_lamp_folders(corpus)
    learnt = [stream for stream in streams if not held_back(stream.user_id)]
    scored = [stream for stream in streams if held_back(stream.user_id)]
    return corpus_documents(learnt, settings, seed), instructions_of(learnt), scored


def tokenizer_texts(documents: Iterator[Document], instructions: Sequence[str]) -> list[str]:
    """What the tokenizer is trained on: documents without the fixed instructions."""
    texts = []
    for document in itertools.islice(documents, TOKENIZER_DOCUMENTS):
        texts.append(document.about)
        for given, answer in document.samples:
            for instruction in instructions:
                given = given.removeprefix(instruction)
            texts.append(f"{given} {answer}")
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain", description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="folder of the model (default: the shipped one, or runs/ for others)"
    )
    parser.add_argument(
        "--corpus", type=Path, help="folder of LaMP folders to train on instead of generated text"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--vocabulary", type=int, help="upper bound of the tokenizer's vocabulary")
    parser.add_argument(
        "--smoke", action="store_true", help="a minute's training, to see that everything runs"
    )
    parser.add_argument(
        "--card-only", action="store_true", help="score an existing model and rewrite its card"
    )
    options = parser.parse_args(arguments)
    try:
        run(options)
    except NvcimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Train (unless `--card-only`), score, write the card, print it."""
    torch.set_num_threads(1)  # sums differ by thread count; one thread makes the weights reproducible
    changes = {
        key: getattr(options, key) for key in ("steps", "vocabulary") if getattr(options, key) is not None
    }
    settings = PretrainSettings(**((SMOKE if options.smoke else {}) | changes))
    special = options.smoke or options.corpus is not None
    name = "smoke-lm" if options.smoke else "corpus-lm"
    out = options.out or (Path("runs") / name if special else EMBEDDED_FOLDER)
    documents, instructions, scored = documents_for(options.corpus, settings, options.seed)
    loss = None
    if not options.card_only:
        texts, _, _ = documents_for(options.corpus, settings, options.seed)
        tokenizer = train_tokenizer(tokenizer_texts(texts, instructions), instructions, settings.vocabulary)
        model = new_model(tokenizer, settings, options.seed)
        with progress("pre-training", settings.steps) as step:
            loss = pretrain(model, tokenizer, documents, settings, lambda _, value: step(f"loss {value:.3f}"))
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    scores = score_base(LanguageModel.load(str(out)), scored, seeds=1 if options.smoke else 3)
    print(write_card(out, settings, options.seed, loss, scores, corpus=options.corpus))


if __name__ == "__main__":
    raise SystemExit(main())
