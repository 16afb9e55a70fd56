"""The options of ``--strategy diffusion``."""

from dataclasses import dataclass, field

from maskft.cli.messages import UsageError
from maskft.strategy import Diffusion

# The options, each with the field of Diffusion that it is for
OWN: dict[str, str | None] = {
    "diffusion_eps": "eps",
    "diffusion_times": "times",
    "diffusion_weights": "weights",
    "diffusion_antithetic": "antithetic",
    "diffusion_normalize": "normalize",
    "diffusion_passes": None,
}
_SHARES = (0.8, 0.1)  # of the command line, for other strategies


@dataclass
class DiffusionArguments:
    """How masked diffusion draws its rates, and what it divides the loss by."""

    diffusion_eps: float | None = field(
        default=None, metadata={"help": "with --strategy diffusion: the least rate (0.001)"}
    )
    diffusion_times: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy diffusion: LOW,HIGH: times are uniform in this range (0,1)"
        },
    )
    diffusion_weights: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy diffusion: 1/p weights the loss of a token by its row's rate "
            "(the default); none does not"
        },
    )
    diffusion_antithetic: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy diffusion: on spreads the times of a batch evenly, so that "
            "they depend on the batch; off (the default)"
        },
    )
    diffusion_normalize: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy diffusion: what the loss is divided by: maskable (tokens that "
            "may be masked; the default), batch (rows times length), sequence (tokens of each row "
            "that may be masked, then rows)"
        },
    )
    diffusion_passes: int | None = field(
        default=None,
        metadata={
            "help": "with --strategy diffusion: how often an evaluation goes over the held-out "
            "rows, each time with times from another part of (0, 1] (4)"
        },
    )

    def diffusion(self, shares: tuple[float, float]) -> Diffusion:
        """Make the strategy.

        Args:
            shares: --mask-replace-prob and --random-replace-prob; their defaults count as not
                given.

        Raises:
            ValueError: an option that does not fit.
        """
        given = {
            name: getattr(self, option)
            for option, name in OWN.items()
            if name is not None and getattr(self, option) is not None
        }
        named = ", ".join(f"--{o.replace('_', '-')}" for o, name in OWN.items() if name in given)
        if "times" in given:
            low, _, high = given["times"].partition(",")
            try:
                given["times"] = (float(low), float(high))
            except ValueError:
                raise ValueError(
                    f"--diffusion-times must be LOW,HIGH, got {given['times']!r}"
                ) from None
        if "antithetic" in given:
            if given["antithetic"] not in ("on", "off"):
                raise ValueError(
                    f"--diffusion-antithetic must be on or off, got {given['antithetic']!r}"
                )
            given["antithetic"] = given["antithetic"] == "on"
        if shares != _SHARES:
            given["shares"] = shares
        try:
            return Diffusion(**given)
        except ValueError as error:
            raise ValueError(f"{named}: {error}" if named else str(error)) from None

    def passes(self) -> int:
        """Return how often an evaluation goes over the held-out rows.

        Raises:
            UsageError: less than once.
        """
        if self.diffusion_passes is None:
            return 4
        if self.diffusion_passes < 1:
            raise UsageError(f"--diffusion-passes must be positive, got {self.diffusion_passes}")
        return self.diffusion_passes
