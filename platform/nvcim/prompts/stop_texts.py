"""Texts at which an answer ends; apart from generation, for whoever has no language model at hand."""

from collections.abc import Sequence


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """Return `text` up to the earliest stop text, or None where none occurs in it."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else None
