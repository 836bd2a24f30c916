"""How a crossbar's settings lie on arrays: what the cost model needs to know of them."""

from nvcim.crossbar.cost import Geometry
from nvcim.crossbar.settings import CrossbarConfig


def geometry_of(
    config: CrossbarConfig,
    in_features: int,
    out_features: int,
    columns_per_adc: int = 8,
    arrays_per_bus: int = 96,
) -> Geometry:
    """The arrays of a matrix [in_features, out_features] with these settings.

    Every side and every slice of a weight lies in an array of its own. Sides are subtracted before the ADC; slices
    are added there too, or each is converted, as `config.accumulate` says. Bit-serial inputs come in as many pulses
    as they have bits, each from a 1-bit DAC.

    Args:
        config: cell, mapping and periphery.
        in_features: rows of the matrix.
        out_features: its columns.
        columns_per_adc: bit lines that share one ADC, in turn.
        arrays_per_bus: arrays that share a buffer.

    Raises:
        ConfigError: slices that the cell cannot hold, or a catalogue that cannot be read.
        DeviceError: the catalogue does not hold `config.device`.
    """
    mapping = config.mapping()
    serial = config.input_coding == "bit_serial"
    return Geometry(
        in_features=in_features,
        out_features=out_features,
        rows=config.rows,
        cols=config.cols,
        slices=len(mapping.slices),
        sides=len(mapping.signs),
        accumulate="analog" if config.accumulate == "analog" else "slices",
        placement="separate",
        input_cycles=(config.dac_bits or 1) if serial else 1,
        dac_bits=1 if serial else config.dac_bits,
        adc_bits=config.adc_bits,
        columns_per_adc=columns_per_adc,
        arrays_per_bus=arrays_per_bus,
    )
