"""Names of the compared methods, in the order tables show them, and what kind each is."""

OURS = "nvcim-pt"
MITIGATIONS = ("no-mitigation", "swv", "cxdnn", "correctnet")
"""Other ways to live with noisy cells; each searches by inner product."""
ABLATIONS = ("no-noise-training", "mips-search", "no-selection", "plain-autoencoder", "mips")
"""NVCiM-PT without noise while tokens are tuned; without scaled search; without representatives; without noise while
the autoencoder is trained; without noise in tuning and scaled search both."""
VARIANTS = ("crossbar-in-the-loop",)
"""NVCiM-PT with a part exchanged: tuned on simulated arrays in place of level-wise noise. Only where asked for."""
ONE_FOR_ALL = "one-for-all"
"""One token set for all domains of a user; there is nothing to find."""
DIGITAL = ("zero-shot", "vanilla", "prefix-tuning", "p-tuning-v2", "dept", "lora")
"""Prompt tuning (and LoRA) without a crossbar."""
METHODS = (OURS, *MITIGATIONS, *ABLATIONS, *VARIANTS, ONE_FOR_ALL, *DIGITAL)

NO_DEVICE = "none"
"""What stands for the device of a method without a crossbar."""

GRID, SIGMA_SWEEP, BUFFER_SWEEP = "grid", "sigma sweep", "buffer sweep"
"""Parts of the comparison. The sweeps' points at the grid's own setting are in the grid."""


def in_table_order(methods: set[str]) -> list[str]:
    """The methods as tables show them: known ones in the order of `METHODS`, then others by name."""
    return [name for name in METHODS if name in methods] + sorted(methods - set(METHODS))
