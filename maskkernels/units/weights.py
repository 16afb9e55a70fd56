"""Quantisation and errors shared by the backends of ``rates_from_weights``."""

FINEST = 1 << 24  # weights are quantised to 1 / FINEST of the largest of their sample


def unreachable(sample: int, rate: float, weighted: int, maskable: int) -> ValueError:
    """Return the error for a sample with too few weighted tokens."""
    return ValueError(
        f"sample {sample}: {weighted} of its {maskable} maskable tokens have a weight, so masking "
        f"them all does not reach the rate {rate:g}; give the others a weight above 0 or lower the "
        "rate"
    )


def not_a_weight() -> ValueError:
    """Return the error for a negative, infinite or NaN weight."""
    return ValueError("weights must not be negative, infinite or NaN")
