"""What the segmentation comparison's scores say: paired differences, the paper's claims judged, best and worst images.

A repetition has a split, start set and networks of its own, which all arms share; so arms are compared repetition by
repetition, by the paired t-test of `comparison_statistics`, its variance enlarged because repetitions split the same
images (Nadeau and Bengio). Few repetitions tell little: with n of them the paired sign-flip test cannot go below
p = 2 / 2^n (0.25 for three), and the t-test rests on differences being normal.

A claim holds, does not hold, or is not told apart; which is computed from the rows alone, for object F1 and object
Dice each. Every claim looks at arms that are fixed beforehand, the paper's (`MAIN` weights, one network and the most
that the run averages), and not at whichever of all arms comes out best; where it looks at several, p is Holm's.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from nvcim.crossbar import CrossbarConfig
from nvcim.quantization import make_quantizer
from nvcim.segmentation.crossbar_weights import crossbar_inq
from nvcim.sweeps.comparison_statistics import (
    Difference,
    holm_corrected,
    paired_difference,
)
from nvcim.sweeps.segmentation_settings import BUDGET, EVERYTHING, FLOAT, FULL, GRID, Strategy

Row = dict[str, Any]
BySeed = Mapping[int, float]
Judgement = Literal["holds", "does not hold", "not told apart"]
Standing = Literal["as good", "as good, yet told apart below", "poor", "not told apart"]

MEASURES = {"object_f1": "object F1", "object_dice": "object Dice"}
MAIN = "inq-7"
"""Quantized weights of the claims that are not about one quantizer: the paper's best."""
WELL = ("inq-7", "inq-5")
"""Quantizers that the paper calls good."""
POOR = ("dorefa-1", "twn")
"""Quantizers that the paper calls poor."""
QUALITY_LIMIT = 0.80
MEMORY_CLAIMS = {"inq-7": 4.6, "inq-5": 6.4}
MEMORY_TOLERANCE = 0.03
COMPACT, PAPER_SIZED = "this run's", "paper-sized"
"""Networks of the table `segmentation_memory`."""
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
class ArmScore:
    """An arm's score by repetition; overlap: images scored over images trained on, for `paired_difference`."""

    by_seed: BySeed
    overlap: float

    @property
    def spread(self) -> float | None:
        """Standard deviation (n - 1) over repetitions; None for one."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def less(self, other: "ArmScore") -> Difference | None:
        """This less another, over the repetitions that both have; None where they share none."""
        return paired_difference(self.by_seed, other.by_seed, max(self.overlap, other.overlap))


Scores = Mapping[Arm, ArmScore]


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


def arm_scores(rows: Iterable[Row], column: str) -> dict[Arm, ArmScore]:
    """A column of `segmentation_scores` by arm and repetition."""
    found: dict[Arm, dict[int, float]] = defaultdict(dict)
    overlap: dict[Arm, float] = {}
    for row in rows:
        arm = arm_of(row)
        found[arm][row["repeat"]] = float(row[column])
        overlap[arm] = row["images"] / row["annotated"]
    return {arm: ArmScore(by_seed, overlap[arm]) for arm, by_seed in found.items()}


def pairs(scores: Scores, part: str, other: Callable[[Arm], Arm | None]) -> dict[Arm, Difference]:
    """Every arm of a part less the arm that `other` names for it (None: none), where both were scored."""
    made = {}
    for arm, own in scores.items():
        against = other(arm) if arm.part == part else None
        if against is not None and against in scores:
            found = own.less(scores[against])
            if found is not None:
                made[arm] = found
    return made


def qsa_less_sa(scores: Scores) -> dict[Arm, Difference]:
    """QSA less SA for the same segmentation networks."""
    return pairs(scores, GRID, lambda arm: arm._replace(strategy=SA) if arm.strategy == QSA else None)


def quantized_less_float(scores: Scores, part: str) -> dict[Arm, Difference]:
    """Each quantizer less float, on the same images and the same number of networks."""
    return pairs(scores, part, lambda arm: arm._replace(quantizer=FLOAT) if arm.quantizer != FLOAT else None)


def several_less_one(scores: Scores) -> dict[Arm, Difference]:
    """Several networks less the first of them alone."""
    return pairs(scores, GRID, lambda arm: arm._replace(networks=1) if arm.networks > 1 else None)


def strategies_less_random(scores: Scores) -> dict[Arm, Difference]:
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
    """As good: within one spread of float, or better. Poor: told apart below, and by more than that.

    Float's spread is that over splits, which pairing takes out: so what is within it may be told apart all the same.
    """
    if float_spread is None:
        return "not told apart"
    if found.mean >= -float_spread:
        return "as good, yet told apart below" if found.verdict == "below" else "as good"
    return "poor" if found.verdict == "below" else "not told apart"


def claims(rows: Sequence[Row], memory: Sequence[Row] = (), crossbars: Sequence[Row] = ()) -> list[Claim]:
    """The paper's claims, judged on rows of `segmentation_scores`, `_memory` and `_crossbars`.

    What the run has no data for is left out.
    """
    made: list[Claim] = []
    for column, measure in MEASURES.items():
        scores = arm_scores(rows, column)
        made += [
            *_always("QSA is always at least SA", measure, _paper_arms(qsa_less_sa(scores))),
            *_quantizers(scores, measure),
            *_always("several networks beat one", measure, _ensembles(several_less_one(scores))),
            *_gain(scores, measure),
            *_dominance(scores, measure),
            *_choice(scores, measure),
            *_limit(scores, measure),
        ]
    made = sorted(made, key=lambda claim: _first_seen(made, claim.claim))
    trained = [row["annotated"] for row in rows if row["part"] == FULL]
    return [*made, *memory_claims(memory), *crossbar_claims(crossbars, min(trained, default=0))]


def memory_claims(rows: Sequence[Row]) -> list[Claim]:
    """The paper's memory figures against whole files of the paper-sized network; rows of `segmentation_memory`."""
    by_place = {(row["network"], row["model"]): row for row in rows}
    made = []
    for quantizer, claimed in MEMORY_CLAIMS.items():
        large, own = by_place.get((PAPER_SIZED, quantizer)), by_place.get((COMPACT, quantizer))
        if large is None:
            continue
        evidence = f"paper-sized network (initial weights) {large['ratio']:.2f} times"
        if own is not None:
            evidence += f"; this run's compact one {own['ratio']:.2f} times"
            if own["entropy_ratio"] is not None:
                evidence += f", entropy-coded {own['entropy_ratio']:.2f} times"
        holds = large["ratio"] >= claimed * (1 - MEMORY_TOLERANCE)
        claim = f"{quantizer} takes {claimed:g} times less memory"
        made.append(Claim(claim, "whole file", "holds" if holds else "does not hold", evidence))
    return made


def usual_bits(rows: Sequence[Row]) -> int | None:
    """The bits of a weight that most points on crossbars have: those of the line along sigma; None without points."""
    points = {
        (row["device"], row["sigma"], row["weight_bits"]) for row in rows if row["arithmetic"] != "ideal"
    }
    bits = [point[2] for point in points]
    return max(set(bits), key=lambda value: (bits.count(value), value)) if bits else None


def crossbar_claims(rows: Sequence[Row], trained_on: int) -> list[Claim]:
    """Whether INQ with only the powers that the cells hold beats the paper's INQ on the same arrays, at each sigma.

    Each weights' arrays take the step with the least expected error. Chips are averaged first: a repetition has one
    pair of networks, and more chips of it are not more networks. p is Holm's over devices and sigmas.

    Args:
        rows: of `segmentation_crossbars`.
        trained_on: images that a network was trained on; 0 where that is not known.
    """
    bits = usual_bits(rows)
    if bits is None:
        return []
    aware = make_quantizer(crossbar_inq(CrossbarConfig(weight_bits=bits))).name
    made = []
    for column, measure in MEASURES.items():
        chips = _by_chip(rows, column, bits)
        found: dict[tuple[str, float], Difference] = {}
        for device, sigma in sorted({(place[1], place[2]) for place in chips}):
            ours, other = chips.get((aware, device, sigma), {}), chips.get((MAIN, device, sigma), {})
            overlap = rows[0]["images"] / trained_on if trained_on else 0.0
            compared = paired_difference(_over_chips(ours), _over_chips(other), overlap)
            if compared is not None:
                found[device, sigma] = compared
        for (device, sigma), one in holm_corrected(found).items():
            ours, other = chips[aware, device, sigma], chips[MAIN, device, sigma]
            steps = [ours[chip] - other[chip] for chip in ours if chip in other]
            evidence = f"{one.ours:.4f} against {one.other:.4f}: {one.mean:+.4f}{_p(one)}"
            if len(steps) > 1:
                evidence += f", chip by chip {min(steps):+.4f} to {max(steps):+.4f}"
            networks = "1 pair of networks" if one.seeds == 1 else f"{one.seeds} pairs of networks"
            claim = f"{bits}-bit {device}, sigma {sigma:g}: {aware} beats {MAIN}"
            made.append(Claim(claim, measure, _judged(one, "above"), f"{evidence}; {networks}"))
    return sorted(made, key=lambda claim: _first_seen(made, claim.claim))


def _by_chip(
    rows: Sequence[Row], column: str, bits: int
) -> dict[tuple[str, str, float], dict[tuple[int, int], float]]:
    """Scores by (model, device, sigma), then by (repetition, chip); the step by error where it differs."""
    found: dict[tuple[str, str, float], dict[tuple[int, int], float]] = defaultdict(dict)
    on = [row for row in rows if row["arithmetic"] != "ideal" and row["weight_bits"] == bits]
    for row in sorted(on, key=lambda row: row["step"] == "by_error"):
        found[row["model"], row["device"], row["sigma"]][row["repeat"], row["chip"]] = row[column]
    return dict(found)


def _over_chips(scores: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """Mean over chips by repetition."""
    by_repeat: dict[int, list[float]] = defaultdict(list)
    for (repeat, _), score in scores.items():
        by_repeat[repeat].append(score)
    return {repeat: statistics.fmean(own) for repeat, own in sorted(by_repeat.items())}


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


def _paper_arms(found: Mapping[Arm, Difference]) -> dict[Arm, Difference]:
    """The arms that are looked at: `MAIN` with the most networks and with one, and float with one."""
    most = max((arm.networks for arm in found), default=1)
    fixed = {(MAIN, most), (MAIN, 1), (FLOAT, 1)}
    return {arm: one for arm, one in found.items() if (arm.quantizer, arm.networks) in fixed}


def _ensembles(found: Mapping[Arm, Difference]) -> dict[Arm, Difference]:
    """The ensembles that are looked at: the most networks, float after SA and `MAIN` after QSA."""
    most = max((arm.networks for arm in found), default=1)
    fixed = {(SA, FLOAT, most), (QSA, MAIN, most)}
    return {arm: one for arm, one in found.items() if (arm.strategy, arm.quantizer, arm.networks) in fixed}


def _judged(found: Difference, wanted: Literal["above", "below"]) -> Judgement:
    """Holds where told apart on the wanted side, does not where told apart on the other."""
    if found.verdict == "not told apart":
        return "not told apart"
    return "holds" if found.verdict == wanted else "does not hold"


def _always(claim: str, measure: str, differences: Mapping[Arm, Difference]) -> list[Claim]:
    """A claim that a difference is never below zero: holds if no mean is below, and one is told apart above.

    It does not hold where a single difference is told apart below, with p corrected for how many there are.
    """
    if not differences:
        return []
    found = holm_corrected(differences)
    below = [arm for arm, one in found.items() if one.verdict == "below"]
    above = [arm for arm, one in found.items() if one.verdict == "above"]
    judgement: Judgement = "not told apart"
    if below:
        judgement = "does not hold"
    elif above and all(one.mean >= 0 for one in found.values()):
        judgement = "holds"
    shown = ", ".join(f"{described(arm)} {one.mean:+.4f}{_p(one)}" for arm, one in found.items())
    return [Claim(claim, measure, judgement, shown)]


def _quantizers(scores: Scores, measure: str) -> list[Claim]:
    """Which quantizers do as well as float, and which are poor: on the whole pool, and the most networks after QSA."""
    made = []
    most = max((arm.networks for arm in scores if arm.part == GRID), default=1)
    for quantizer, wanted in (
        (name, kind) for names, kind in ((WELL, "as good"), (POOR, "poor")) for name in names
    ):
        found = holm_corrected(
            {
                arm: one
                for part in (FULL, GRID)
                for arm, one in quantized_less_float(scores, part).items()
                if arm.quantizer == quantizer
                and (arm.networks == 1 if part == FULL else (arm.strategy, arm.networks) == (QSA, most))
            }
        )
        if not found:
            continue
        stands = {
            arm: standing(one, scores[arm._replace(quantizer=FLOAT)].spread) for arm, one in found.items()
        }
        against = "poor" if wanted == "as good" else "as good"
        judgement: Judgement = "not told apart"
        if all(stand.startswith(wanted) for stand in stands.values()):
            judgement = "holds"
        elif any(stand.startswith(against) for stand in stands.values()):
            judgement = "does not hold"
        shown = ", ".join(
            f"{described(arm, quantizer=False)} {found[arm].mean:+.4f}{_p(found[arm])}: {stands[arm]}"
            for arm in found
        )
        claim = f"{quantizer} does well" if wanted == "as good" else f"{quantizer} is poor"
        made.append(Claim(claim, measure, judgement, f"less float: {shown}"))
    return made


def _gain(scores: Scores, measure: str) -> list[Claim]:
    """Quantization on both sides against none: QSA and `MAIN` over SA and float, with the most networks."""
    found = pairs(
        scores,
        GRID,
        lambda arm: (
            arm._replace(strategy=SA, quantizer=FLOAT)
            if arm.strategy == QSA and arm.quantizer != FLOAT
            else None
        ),
    )
    most = max((arm.networks for arm in found), default=1)
    chosen = next((arm for arm in found if (arm.quantizer, arm.networks) == (MAIN, most)), None)
    if chosen is None:
        return []
    one = found[chosen]
    largest = max(found, key=lambda arm: found[arm].mean)
    evidence = (
        f"{described(chosen)}: {one.ours:.4f} against {one.other:.4f}: {one.mean:+.4f}{_p(one)}; the paper has up to "
        f"{GAIN_CLAIM:+.2f}; largest of all {len(found)} arms, biased upwards and not tested: "
        f"{found[largest].mean:+.4f} ({described(largest)})"
    )
    claim = "QSA with quantized networks beats SA with float ones"
    return [Claim(claim, measure, _judged(one, "above"), evidence)]


def _dominance(scores: Scores, measure: str) -> list[Claim]:
    """Which brings more: quantized suggestive networks (QSA alone) or quantized segmentation networks (QNT alone)."""
    made = []
    counts = sorted({arm.networks for arm in scores if arm.part == GRID})
    for networks in counts:
        arms = [arm for arm in scores if arm.part == GRID and arm.networks == networks]
        qsa = [arm for arm in arms if arm.strategy == QSA and arm.quantizer == FLOAT]
        qnt = [arm for arm in arms if arm.strategy == SA and arm.quantizer == MAIN]
        found = scores[qsa[0]].less(scores[qnt[0]]) if qsa and qnt else None
        if found is None or (networks > 1 and networks != counts[-1]):
            continue
        more = "QSA" if networks == 1 else "QNT"
        evidence = f"QSA alone less QNT alone ({MAIN}): {found.mean:+.4f}{_p(found)}"
        name = "1 network" if networks == 1 else f"{networks} networks"
        judgement = _judged(found, "above" if networks == 1 else "below")
        made.append(Claim(f"with {name} {more} brings more", measure, judgement, evidence))
    return made


def _choice(scores: Scores, measure: str) -> list[Claim]:
    """Suggestive annotation against random choice, and against labels of the whole pool, where the budget ends."""
    made = []
    curve = [arm for arm in scores if arm.part == BUDGET and arm.round is not None]
    last = max((arm.round or 0 for arm in curve), default=0)
    ends = {arm.strategy: arm for arm in curve if arm.round == last and last > 0}
    whole = Arm(BUDGET, EVERYTHING, FLOAT, 1, None)
    for label in (SA, QSA):
        if label in ends and "random" in ends:
            found = scores[ends[label]].less(scores[ends["random"]])
            if found is not None:
                evidence = f"{label} less random at the last round: {found.mean:+.4f}{_p(found)}"
                claim = f"{label} chooses better than chance"
                made.append(Claim(claim, measure, _judged(found, "above"), evidence))
        if label in ends and whole in scores:
            found = scores[ends[label]].less(scores[whole])
            if found is not None:
                stand = standing(found, scores[whole].spread)
                judgement: Judgement = "does not hold" if stand == "poor" else "not told apart"
                if stand.startswith("as good"):
                    judgement = "holds"
                evidence = (
                    f"less the whole pool with the same training: {found.mean:+.4f}{_p(found)}: {stand}"
                )
                claim = f"{label} at the final budget is as good as all labels"
                made.append(Claim(claim, measure, judgement, evidence))
    return made


def _limit(scores: Scores, measure: str) -> list[Claim]:
    """The quality that this project asks of networks on the whole pool, pooled on the held-back images."""
    made = []
    for arm, own in scores.items():
        if arm.part == FULL:
            middle, least = statistics.fmean(own.by_seed.values()), min(own.by_seed.values())
            spread = own.spread
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


def _p(found: Difference) -> str:
    return "" if found.p is None else f", p = {found.p:.2g}"


def _first_seen(made: Sequence[Claim], claim: str) -> int:
    return next(place for place, one in enumerate(made) if one.claim == claim)
