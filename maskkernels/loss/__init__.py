"""Predicted rows and the decoder's weight to the loss: no logits where there is no label."""

from maskkernels.loss.api import LossOutput, linear_cross_entropy, masked_cross_entropy

__all__ = ["LossOutput", "linear_cross_entropy", "masked_cross_entropy"]
