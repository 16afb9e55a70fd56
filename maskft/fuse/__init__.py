"""Put a fused loss into a model: ``fuse_loss``, and what acts on the model it is given."""

from maskft.fuse.api import fuse_loss, predicts_next, unfuse_loss
from maskft.fuse.bidirectional import attends_both_ways, make_bidirectional, make_causal
from maskft.fuse.replaced import fused

__all__ = [
    "attends_both_ways", "fuse_loss", "fused", "make_bidirectional", "make_causal",
    "predicts_next", "unfuse_loss",
]  # fmt: skip
