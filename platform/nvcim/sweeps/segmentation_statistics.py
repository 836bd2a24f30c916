"""What the segmentation comparison's scores say: paired differences, the paper's claims judged, best and worst images.

A repetition has a split, start set and networks of its own, which all arms share; so arms are compared repetition by
repetition, by the paired t-test of `comparison_statistics`. Few repetitions tell little: with n of them the paired
sign-flip test cannot go below p = 2 / 2^n (0.25 for three), and the t-test rests on differences being normal.

A claim holds, does not hold, or is not told apart; which is computed from the rows alone, for object F1 and object
Dice each.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from nvcim.sweeps.comparison_statistics import FEWEST_SEEDS, Difference, paired_difference
from nvcim.sweeps.segmentation_settings import BUDGET, EVERYTHING, FLOAT, FULL, GRID, Strategy

Row = dict[str, Any]
BySeed = Mapping[int, float]
Judgement = Literal["holds", "does not hold", "not told apart"]
Standing = Literal["as good", "poor", "not told apart"]

MEASURES = {"object_f1": "object F1", "object_dice": "object Dice"}
WELL = ("inq-7", "inq-5")
"""Quantizers that the paper calls good."""
POOR = ("dorefa-1", "twn")
"""Quantizers that the paper calls poor."""
QUALITY_LIMIT = 0.80
MEMORY_CLAIMS = {"inq-7": 4.6, "inq-5": 6.4}
MEMORY_TOLERANCE = 0.03
GAIN_CLAIM = 0.01
SA, QSA = "SA", "QSA"


class Arm(NamedTuple):
    """What a score belongs to; strategies by their label (SA, QSA, uncertainty, random, all)."""

    part: str
    strategy: str
    quantizer: str
    networks: int
    round: int | None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, for one measure: how it stands on this run's data, and the figures behind that."""

    claim: str
    measure: str
    judgement: Judgement
    evidence: str


@dataclass(frozen=True)
class Extreme:
    """One of the best or worst images: where it was scored, and its object Dice by weights."""

    kind: Literal["best", "worst"]
    place: int
    part: str
    repeat: int
    strategy: str
    round: int | None
    networks: int
    image: str
    dice: Mapping[str, float]


def strategy_of(row: Row) -> str:
    """The label of a row's strategy."""
    return Strategy(row["rule"], row["suggestive"]).label


def arm_of(row: Row) -> Arm:
    """The arm that a row of `segmentation_scores` or `segmentation_images` belongs to."""
    return Arm(row["part"], strategy_of(row), row["quantizer"], row["networks"], row["round"])


def arm_scores(rows: Iterable[Row], column: str) -> dict[Arm, dict[int, float]]:
    """A column of `segmentation_scores` by arm and repetition."""
    found: dict[Arm, dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[arm_of(row)][row["repeat"]] = float(row[column])
    return dict(found)


def spread_of(scores: BySeed) -> float | None:
    """Standard deviation (n - 1) over repetitions; None for one."""
    return statistics.stdev(scores.values()) if len(scores) > 1 else None


def pairs(
    scores: Mapping[Arm, BySeed], part: str, other: Callable[[Arm], Arm | None]
) -> dict[Arm, Difference]:
    """Every arm of a part less the arm that `other` names for it (None: none), where both were scored."""
    made = {}
    for arm, own in scores.items():
        against = other(arm) if arm.part == part else None
        if against is not None and against in scores:
            found = paired_difference(own, scores[against])
            if found is not None:
                made[arm] = found
    return made


def qsa_less_sa(scores: Mapping[Arm, BySeed]) -> dict[Arm, Difference]:
    """QSA less SA for the same segmentation networks."""
    return pairs(scores, GRID, lambda arm: arm._replace(strategy=SA) if arm.strategy == QSA else None)


def quantized_less_float(scores: Mapping[Arm, BySeed], part: str) -> dict[Arm, Difference]:
    """Each quantizer less float, on the same images and the same number of networks."""
    return pairs(scores, part, lambda arm: arm._replace(quantizer=FLOAT) if arm.quantizer != FLOAT else None)


def several_less_one(scores: Mapping[Arm, BySeed]) -> dict[Arm, Difference]:
    """Several networks less the first of them alone."""
    return pairs(scores, GRID, lambda arm: arm._replace(networks=1) if arm.networks > 1 else None)


def strategies_less_random(scores: Mapping[Arm, BySeed]) -> dict[Arm, Difference]:
    """Each strategy less random choice at every later round of the budget curves."""
    return pairs(
        scores,
        BUDGET,
        lambda arm: (
            arm._replace(strategy="random")
            if arm.strategy not in ("random", EVERYTHING) and arm.round
            else None
        ),
    )


def standing(found: Difference, float_spread: float | None) -> Standing:
    """As good: within one spread of float, or better. Poor: told apart below, and by more than that."""
    if float_spread is None:
        return "not told apart"
    if found.mean >= -float_spread:
        return "as good"
    return "poor" if found.verdict == "below" else "not told apart"


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The paper's claims, judged on rows of `segmentation_scores`; what the run has no data for is left out."""
    made: list[Claim] = []
    for column, measure in MEASURES.items():
        scores = arm_scores(rows, column)
        made += [
            *_always("QSA is always at least SA", measure, qsa_less_sa(scores)),
            *_quantizers(scores, measure),
            *_always("several networks beat one", measure, several_less_one(scores)),
            *_largest_gain(scores, measure),
            *_dominance(scores, measure),
            *_choice(scores, measure),
            *_limit(scores, measure),
        ]
    return sorted(made, key=lambda claim: _first_seen(made, claim.claim)) + memory_claims(rows)


def memory_claims(rows: Sequence[Row]) -> list[Claim]:
    """The paper's memory figures against the weights on disk."""
    made = []
    for quantizer, claimed in MEMORY_CLAIMS.items():
        own = [row for row in rows if row["quantizer"] == quantizer]
        if own:
            ratio = sum(row["float32_bytes"] for row in own) / sum(row["weight_bytes"] for row in own)
            whole = _file_ratio(rows, quantizer)
            holds = ratio >= claimed * (1 - MEMORY_TOLERANCE)
            made.append(
                Claim(
                    f"{quantizer} takes {claimed:g} times less memory",
                    "weights on disk",
                    "holds" if holds else "does not hold",
                    f"{ratio:.2f} times less" + (f"; whole files {whole:.2f} times" if whole else ""),
                )
            )
    return made


def extremes(image_rows: Sequence[Row], count: int) -> list[Extreme]:
    """The best and the worst `count` images by object Dice, of the best-trained networks of the first repetition.

    Those are the part `full`'s, or the grid's with QSA and the most networks; the float network's Dice decides, others
    are told beside it. Images without objects are left out, and none is both.
    """
    arms = {arm_of(row) for row in image_rows if row["part"] in (FULL, GRID)}
    if not arms or count == 0:
        return []
    chosen = max(
        arms,
        key=lambda arm: (arm.part == FULL, arm.strategy == QSA, arm.networks, arm.round or 0, arm.strategy),
    )
    same = [
        row
        for row in image_rows
        if arm_of(row)._replace(quantizer="") == chosen._replace(quantizer="") and row["objects_truth"] > 0
    ]
    repeat = min((row["repeat"] for row in same), default=0)
    dice: dict[str, dict[str, float]] = defaultdict(dict)
    for row in same:
        if row["repeat"] == repeat:
            dice[row["image"]][row["quantizer"]] = row["object_dice"]
    ordered = sorted(dice, key=lambda name: (-dice[name].get(FLOAT, max(dice[name].values())), name))
    best = ordered[: min(count, (len(ordered) + 1) // 2)]
    worst = [name for name in reversed(ordered) if name not in best][:count]
    ranked: list[tuple[Literal["best", "worst"], list[str]]] = [("best", best), ("worst", worst)]
    arm = (chosen.part, repeat, chosen.strategy, chosen.round, chosen.networks)
    return [
        Extreme(kind, place, *arm, name, dict(dice[name]))
        for kind, names in ranked
        for place, name in enumerate(names)
    ]


def _always(claim: str, measure: str, found: Mapping[Arm, Difference]) -> list[Claim]:
    """A claim that a difference is never below zero: holds if no mean is below, and one is told apart above.

    It does not hold where a single difference is told apart below.
    """
    if not found:
        return []
    means = {arm: one.mean for arm, one in found.items()}
    below = [arm for arm, one in found.items() if one.verdict == "below"]
    above = [arm for arm, one in found.items() if one.verdict == "above"]
    not_less = sum(mean >= 0 for mean in means.values())
    overall = statistics.fmean(means.values())
    judgement: Judgement = "not told apart"
    if below:
        judgement = "does not hold"
    elif not_less == len(found) and above:
        judgement = "holds"
    worst = min(means, key=lambda arm: means[arm])
    evidence = (
        f"mean {overall:+.4f}; mean at least 0 in {not_less} of {len(found)}; told apart above in {len(above)}, below "
        f"in {len(below)}; lowest {means[worst]:+.4f} ({described(worst)})"
    )
    return [Claim(claim, measure, judgement, evidence)]


def _quantizers(scores: Mapping[Arm, BySeed], measure: str) -> list[Claim]:
    """Which quantizers do as well as float, and which are poor."""
    made = []
    for quantizer, wanted in (
        (name, kind) for names, kind in ((WELL, "as good"), (POOR, "poor")) for name in names
    ):
        found = {
            arm: one
            for part in (FULL, GRID)
            for arm, one in quantized_less_float(scores, part).items()
            if arm.quantizer == quantizer
        }
        if not found:
            continue
        stands = {
            arm: standing(one, spread_of(scores[arm._replace(quantizer=FLOAT)])) for arm, one in found.items()
        }
        against = "poor" if wanted == "as good" else "as good"
        judgement: Judgement = "not told apart"
        if all(stand == wanted for stand in stands.values()):
            judgement = "holds"
        elif any(stand == against for stand in stands.values()):
            judgement = "does not hold"
        shown = ", ".join(
            f"{described(arm, quantizer=False)} {found[arm].mean:+.4f}: {stands[arm]}" for arm in found
        )
        claim = f"{quantizer} does well" if wanted == "as good" else f"{quantizer} is poor"
        made.append(Claim(claim, measure, judgement, f"less float: {shown}"))
    return made


def _largest_gain(scores: Mapping[Arm, BySeed], measure: str) -> list[Claim]:
    """Quantization on both sides against none: the largest gain of QSA + QNT over SA + float."""
    found = pairs(
        scores,
        GRID,
        lambda arm: (
            arm._replace(strategy=SA, quantizer=FLOAT)
            if arm.strategy == QSA and arm.quantizer != FLOAT
            else None
        ),
    )
    if not found:
        return []
    arm, best = max(found.items(), key=lambda item: item[1].mean)
    judgement: Judgement = "not told apart"
    if best.verdict == "above":
        judgement = "holds"
    elif best.mean <= 0 and best.seeds >= FEWEST_SEEDS:
        judgement = "does not hold"
    evidence = (
        f"largest of {len(found)}: {best.mean:+.4f} ({described(arm)}: {best.ours:.4f} against {best.other:.4f}"
        f"{_p(best)}); the largest of several is biased upwards; the paper has up to {GAIN_CLAIM:+.2f}"
    )
    return [Claim("QSA with quantized networks beats SA with float ones", measure, judgement, evidence)]


def _dominance(scores: Mapping[Arm, BySeed], measure: str) -> list[Claim]:
    """Which brings more: quantized suggestive networks (QSA alone) or quantized segmentation networks (QNT alone)."""
    made = []
    counts = sorted({arm.networks for arm in scores if arm.part == GRID})
    for networks in counts:
        arms = [arm for arm in scores if arm.part == GRID and arm.networks == networks]
        qsa = [arm for arm in arms if arm.strategy == QSA and arm.quantizer == FLOAT]
        qnt = [arm for arm in arms if arm.strategy == SA and arm.quantizer == "inq-7"]
        found = paired_difference(scores[qsa[0]], scores[qnt[0]]) if qsa and qnt else None
        if found is None or (networks > 1 and networks != counts[-1]):
            continue
        more, wanted = ("QSA", "above") if networks == 1 else ("QNT", "below")
        judgement: Judgement = "not told apart"
        if found.verdict != "not told apart":
            judgement = "holds" if found.verdict == wanted else "does not hold"
        evidence = f"QSA alone less QNT alone (inq-7): {found.mean:+.4f}{_p(found)}"
        name = "1 network" if networks == 1 else f"{networks} networks"
        made.append(Claim(f"with {name} {more} brings more", measure, judgement, evidence))
    return made


def _choice(scores: Mapping[Arm, BySeed], measure: str) -> list[Claim]:
    """Suggestive annotation against random choice, and against labels of the whole pool, where the budget ends."""
    made = []
    curve = [arm for arm in scores if arm.part == BUDGET and arm.round is not None]
    last = max((arm.round or 0 for arm in curve), default=0)
    ends = {arm.strategy: arm for arm in curve if arm.round == last and last > 0}
    whole = Arm(BUDGET, EVERYTHING, FLOAT, 1, None)
    for label in (SA, QSA):
        if label in ends and "random" in ends:
            found = paired_difference(scores[ends[label]], scores[ends["random"]])
            if found is not None:
                judgement: Judgement = "not told apart"
                if found.verdict != "not told apart":
                    judgement = "holds" if found.verdict == "above" else "does not hold"
                evidence = f"{label} less random at the last round: {found.mean:+.4f}{_p(found)}"
                made.append(Claim(f"{label} chooses better than chance", measure, judgement, evidence))
        if label in ends and whole in scores:
            found = paired_difference(scores[ends[label]], scores[whole])
            stand = standing(found, spread_of(scores[whole])) if found is not None else "not told apart"
            if found is not None:
                judged: dict[Standing, Judgement] = {"as good": "holds", "poor": "does not hold"}
                evidence = f"less the whole pool with the same training: {found.mean:+.4f}: {stand}"
                claim = f"{label} at the final budget is as good as all labels"
                made.append(Claim(claim, measure, judged.get(stand, "not told apart"), evidence))
    return made


def _limit(scores: Mapping[Arm, BySeed], measure: str) -> list[Claim]:
    """The quality that this project asks of networks on the whole pool, pooled on the held-back images."""
    made = []
    for arm, own in scores.items():
        if arm.part == FULL:
            middle, least = statistics.fmean(own.values()), min(own.values())
            spread = spread_of(own)
            shown = (
                f"{middle:.4f}" + (f" ± {spread:.4f}" if spread is not None else "") + f", lowest {least:.4f}"
            )
            judgement: Judgement = "holds" if middle >= QUALITY_LIMIT else "does not hold"
            claim = f"whole pool, {arm.quantizer}: at least {QUALITY_LIMIT:.2f} (this project's limit)"
            if arm.networks > 1:
                claim = claim.replace(":", f", {arm.networks} networks:", 1)
            made.append(Claim(claim, measure, judgement, shown))
    return made


def described(arm: Arm, *, quantizer: bool = True) -> str:
    """An arm in a few words."""
    parts = [arm.strategy if arm.part != FULL else "whole pool"]
    if quantizer:
        parts.append(arm.quantizer)
    parts.append("1 network" if arm.networks == 1 else f"{arm.networks} networks")
    return ", ".join(parts)


def _file_ratio(rows: Sequence[Row], quantizer: str) -> float | None:
    """How many times smaller whole files are than their float twins'."""
    sizes: dict[str, dict[Any, int]] = {FLOAT: {}, quantizer: {}}
    for row in rows:
        if row["quantizer"] in sizes:
            key = (row["part"], strategy_of(row), row["networks"], row["round"], row["repeat"])
            sizes[row["quantizer"]][key] = row["file_bytes"]
    both = sizes[FLOAT].keys() & sizes[quantizer].keys()
    if not both:
        return None
    return sum(sizes[FLOAT][key] for key in both) / sum(sizes[quantizer][key] for key in both)


def _p(found: Difference) -> str:
    return "" if found.p is None else f", p = {found.p:.2g}"


def _first_seen(made: Sequence[Claim], claim: str) -> int:
    return next(place for place, one in enumerate(made) if one.claim == claim)
