"""Numbers as people read them: three digits, with the unit's prefix."""

import math

_PREFIXES = {-18: "a", -15: "f", -12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G"}


def engineering(value: float, unit: str) -> str:
    """Three digits and a prefix: 5.33e-9 J is `5.33 nJ`."""
    if value == 0:
        return f"0 {unit}"
    rounded = float(f"{value:.3g}")  # 9.999e-10 is 1 n, not 1000 p
    power = min(max(3 * math.floor(math.log10(abs(rounded)) / 3), min(_PREFIXES)), max(_PREFIXES))
    return f"{rounded / 10.0**power:.3g} {_PREFIXES[power]}{unit}"


def percent(share: float) -> str:
    """Three digits of a share: 0.01234 is `1.23 %`."""
    return f"{100 * share:#.3g}".removesuffix(".") + " %"
