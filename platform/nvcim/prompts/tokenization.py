"""Texts as token ids: what a person wrote stays text, whatever marks the tokenizer knows."""

from typing import Any

from nvcim.errors import ModelError

_PROBE = "a"


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text alone: nothing is put around it, and a `</s>` that somebody wrote in it ends nothing."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def opening_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text: its beginning of text, as a rule, or nothing.

    What it puts behind one (`add_eos_token`) belongs behind the answer, and not between question and answer.

    Raises:
        ModelError: a tokenizer that writes a text otherwise where it puts something around it.
    """
    alone = text_ids(tokenizer, _PROBE)
    whole = list(tokenizer(_PROBE, split_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == alone:
            return tuple(whole[:start])
    raise ModelError(
        f"its tokenizer ({type(tokenizer).__name__}) writes '{_PROBE}' as {alone} alone "
        f"and as {whole} with its special tokens, which do not hold it"
    )


def end_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's end of text, then what the checkpoint's own generation stops at.

    A chat model's `generation_config.json` lists its end of turn too.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = listed if isinstance(listed, list | tuple) else [] if listed is None else [listed]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *map(int, others)]))
