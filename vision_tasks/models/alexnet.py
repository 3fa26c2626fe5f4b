"AlexNet (Krizhevsky et al., 2012), as in torchvision"
from __future__ import annotations
from pathlib import Path
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from timm.models import adapt_input_conv
from .encoders import read_weights
from .layers import conv_relu, scaled

__all__ = []

class AlexNet(nn.Module):
    "(n, n_in, crop, crop) -> (n, d), the features fc7; parameters have the names of torchvision's `alexnet`"
    mean,std = (.485, .456, .406),(.229, .224, .225)
    least = 63                          # pixels of the smallest crop: three poolings leave one cell
    def __init__(self,
        n_in:int=3,       # channels of the images
        width:float=1.,   # factor of the channels; 1 = 64 to 384, 4096 in fc6 and fc7
        ps:float=.5,      # dropout before fc6 and fc7
    ):
        super().__init__()
        self.n_in,self.width,self.d = n_in,width,scaled(4096, width)
        a,b,c,d = (scaled(o, width) for o in (64, 192, 384, 256))
        def pool(): return nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *conv_relu(n_in, a, 11, stride=4, padding=2), pool(), *conv_relu(a, b, 5, padding=2), pool(),
            *conv_relu(b, c, padding=1), *conv_relu(c, d, padding=1), *conv_relu(d, d, padding=1), pool())
        self.classifier = nn.Sequential(
            nn.Dropout(ps), nn.Linear(d*36, self.d),   nn.ReLU(inplace=True),
            nn.Dropout(ps), nn.Linear(self.d, self.d), nn.ReLU(inplace=True))
        for m in self.modules():
            if not isinstance(m, (nn.Conv2d, nn.Linear)): continue
            nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
            nn.init.zeros_(m.bias)

    def forward(self, x:Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 6).flatten(1))

    def load(self,
        pretrained:bool|str|Path,   # True: torchvision's ImageNet weights; path of a state dict of torchvision's
                                    # alexnet; False: none
    ):
        "Load weights. Raises `ValueError` for another `width` than 1 and for a file of another net"
        if pretrained is False: return
        if self.width != 1:
            raise ValueError(f"the weights are AlexNet's, with width=1, got width={self.width}; pass pretrained=False")
        try: sd = (get_model_weights('alexnet').DEFAULT.get_state_dict(progress=True, check_hash=True)
                   if pretrained is True else read_weights(Path(pretrained)))
        except FileNotFoundError: raise
        except OSError as e:
            raise OSError(f"the weights of alexnet could not be downloaded ({e}); without a network, set `pretrained` "
                          "to the path of a local state dict of torchvision's alexnet") from e
        own,first = self.state_dict(),'features.0.weight'
        if first in sd and sd[first].shape[1:2] == (3,) != (self.n_in,):
            sd = {**sd, first: adapt_input_conv(self.n_in, sd[first])}
        bad = [k for k,v in own.items() if k not in sd or sd[k].shape != v.shape]
        if bad: raise ValueError(f"{pretrained} does not hold the weights of torchvision's alexnet: {bad[0]} is "
                                 "missing or of another shape; pass a state dict of that net")
        self.load_state_dict({k: sd[k] for k in own})
