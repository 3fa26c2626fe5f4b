"How the weights of a model lie in memory: the same numbers, sooner"
from __future__ import annotations
import torch
from torch import nn
from ..arguments import checked
from ..models.kinds import MODULE

__all__ = ['to_channels_last']

@checked(model=MODULE)
def to_channels_last(
    model,       # `nn.Module`; changed in place
) -> nn.Module:  # the same
    """Put the weights of all convolutions in channels-last memory format, with the same values. Their outputs are then
    in this format too, whatever that of the images is, and `load_state_dict`, copies and pickles keep it"""
    return model.to(memory_format=torch.channels_last)
