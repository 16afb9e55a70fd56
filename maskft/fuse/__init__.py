"""Put a fused loss into a model: ``fuse_loss``, and what acts on the model it is given."""

from maskft.fuse.api import fuse_loss, unfuse_loss
from maskft.fuse.replaced import fused

__all__ = ["fuse_loss", "fused", "unfuse_loss"]
