"""Train the embedded base LM: `python -m jobs.pretrain` (about half an hour on one core).

    python -m jobs.pretrain --smoke                  a minute's training, to see that everything runs
    python -m jobs.pretrain --card-only              score the shipped model again and rewrite its card
    python -m jobs.pretrain --corpus PATH --out DIR  train on text of your own: a folder of LaMP folders

Of a corpus, the users in one quarter (by a hash of their ids) are held back, and the base is scored on those.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from nvcim.data.lamp import UserStream, held_back, read_lamp_folders
from nvcim.errors import NvcimError
from nvcim.fleet.model_card import CARD_FILE, score_base, write_card
from nvcim.progress import progress
from nvcim.prompts.language_model import EMBEDDED_FOLDER, LanguageModel
from nvcim.prompts.personaliser import PromptSettings
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
from nvcim.prompts.tuning import TuningSettings

SMOKE = {"steps": 60, "batch": 8}
CORPUS = {"steps": 600, "batch": 8, "samples": 2, "vocabulary": 4096}
"""Real texts are longer and more varied than generated ones: fewer a step, more words."""
TOKENIZER_DOCUMENTS = 3000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the model (default: the shipped one; else below runs/)"
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
    try:
        run(parser.parse_args(arguments))
    except NvcimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Train (unless `--card-only`), score, write the card, print it."""
    torch.set_num_threads(1)  # sums differ by thread count; one thread makes the weights reproducible
    out = options.out or _default_folder(options)
    streams = None if options.corpus is None else read_lamp_folders(options.corpus)
    if options.card_only:
        about = _recorded(out)
    else:
        changes = {
            key: getattr(options, key) for key in ("steps", "vocabulary") if getattr(options, key) is not None
        }
        settings = PretrainSettings(
            **((CORPUS if streams else {}) | (SMOKE if options.smoke else {}) | changes)
        )
        about = train(streams, settings, options.seed, out)
    scored = (
        None if streams is None else [s for s in streams if held_back(s.user_id) and s.history and s.queries]
    )
    lm = LanguageModel.load(str(out))
    if options.smoke:
        scores = score_base(lm, scored, PromptSettings(tuning=TuningSettings(steps=10)), seeds=(0,), users=4)
    else:
        scores = score_base(lm, scored, PromptSettings(), seeds=(0, 1, 2), users=12)
    print(write_card(out, about, scores))


def train(
    streams: Sequence[UserStream] | None, settings: PretrainSettings, seed: int, out: Path
) -> dict[str, Any]:
    """Train tokenizer and model, save them in the Hugging Face layout, return what the card says of it."""
    instructions = GENERATED_INSTRUCTIONS if streams is None else instructions_of(streams)
    texts = tokenizer_texts(documents_of(streams, settings, seed), instructions)
    tokenizer = train_tokenizer(texts, instructions, settings.vocabulary)
    model = new_model(tokenizer, settings, seed)
    with progress("pre-training") as update:
        loss = pretrain(
            model,
            tokenizer,
            documents_of(streams, settings, seed),
            settings,
            lambda step, value: update(step + 1, settings.steps, f"loss {value:.3f}"),
        )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "data": "generated documents (nvcim.data.users)" if streams is None else "a corpus of the user's own",
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "loss (nats per answer token, last tenth of training)": round(loss, 4),
        "settings": settings.model_dump(mode="json"),
    }


def documents_of(
    streams: Sequence[UserStream] | None, settings: PretrainSettings, seed: int
) -> Iterator[Document]:
    """Endless training documents, the same again for the same seed; held-back users give none."""
    if streams is None:
        return generated_documents(settings, seed)
    return corpus_documents([s for s in streams if not held_back(s.user_id)], settings, seed)


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


def _default_folder(options: argparse.Namespace) -> Path:
    if options.smoke:
        return Path("runs") / "smoke-lm"
    return Path("runs") / "corpus-lm" if options.corpus else EMBEDDED_FOLDER


def _recorded(folder: Path) -> dict[str, Any]:
    """What training recorded in the model's card, without its old scores."""
    try:
        content = dict(json.loads((folder / CARD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise NvcimError(f"{folder / CARD_FILE}: no card to rewrite ({error})") from error
    content.pop("scores", None)
    return content


if __name__ == "__main__":
    raise SystemExit(main())
