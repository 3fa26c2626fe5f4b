"Parts that several nets share"
from __future__ import annotations
from torch import Tensor, nn

__all__ = ['GridHead']

class GridHead(nn.Sequential):
    """(b, c, h, w) -> (b, n_out) for answers that say *where*: the map is pooled to a grid of cells, so that places
    stay apart, which a pooling over all of it would mix. Any height and width"""
    def __init__(self,
        c:int,             # channels of the map
        n_out:int,
        grid:int=7,        # cells in each direction; 7 = the map of 224 pixels at stride 32
        width:int=64,      # channels of a cell
        hidden:int=256,    # units of the layer before the last
        ps:float=.1,       # dropout in front of the last layer, and nowhere before BatchNorm: it would see another
                           # variance in training than later, and sizes would come out wrong (Li et al., 2018,
                           # arXiv:1801.05134)
    ):
        last = nn.Linear(hidden, n_out)
        super().__init__(
            nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(grid), nn.Flatten(),
            nn.Linear(width*grid**2, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Dropout(ps), last)
        # small at first: what follows is a sigmoid, which has a gradient in its middle only
        nn.init.normal_(last.weight, std=.01)
        nn.init.zeros_(last.bias)

    def forward(self, x:Tensor) -> Tensor: return super().forward(x)
