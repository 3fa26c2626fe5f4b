"VGG16's convolutions, the encoder of the classic nets (Simonyan & Zisserman, 2014, arXiv:1409.1556)"
from __future__ import annotations
from pathlib import Path
from torch import Tensor, nn
from torchvision.models import get_model_weights
from timm.models import adapt_input_conv
from .encoders import read_weights
from .layers import conv_relu, scaled

__all__ = ['VGG16']

# of nets on `VGG16`, which is without BatchNorm: its pretrained convolutions need about 5e-5. Not measured here, for
# want of weights
VGG16_RECIPE = dict(lr_mult=20.)

class VGG16(nn.Module):
    """The 13 convolutions in five `stages`. There is no `forward`, because each net pools its own way after the
    stages; `top` replaces the classifier's two hidden layers, fc6 and fc7"""
    mean,std = (.485, .456, .406),(.229, .224, .225)     # of torchvision's weights
    depths   = 2,2,3,3,3                                 # convolutions per stage
    def __init__(self,
        n_in:int=3,                 # channels of the images
        width:float=1.,             # factor of the channels; 1 = 64 in the first stage, 512 in the last
        bn:bool=False,              # True: BatchNorm after each convolution
        pad:int=1,                  # padding of the first convolution, pixels
        dilation:int=1,             # dilation of the last stage
        top:nn.Sequential=None,     # layers on the last stage's pooled map; None (default): none
    ):
        super().__init__()
        self.n_in,self.width,self.bn = n_in,width,bn
        self.channels = [scaled(c, width) for c in (64, 128, 256, 512, 512)]
        self.stages = nn.ModuleList()
        for s,(i,o,n) in enumerate(zip([n_in, *self.channels], self.channels, self.depths)):
            d = dilation if s == 4 else 1
            self.stages.append(nn.Sequential(*[l for j in range(n) for l in conv_relu(
                o if j else i, o, bn=bn, padding=d if s or j else pad, dilation=d)]))
        self.top = nn.Sequential() if top is None else top

    def load(self,
        pretrained:bool|str|Path,   # True: torchvision's ImageNet weights; path of a local state dict of its vgg16
                                    # (vgg16_bn with `bn`); False: none
        fc:bool=False,              # True: the classifier's two hidden layers are loaded into the convolutions or
                                    # linear layers of `top`
    ):
        "Load weights. Raises `ValueError` for another `width` than 1 and for a file of another net"
        if pretrained is False: return self
        if self.width != 1:
            raise ValueError(f"the weights are VGG16's, with width=1, got width={self.width}; pass pretrained=False")
        name = 'vgg16_bn' if self.bn else 'vgg16'
        sd,source = self._weights(name, pretrained)
        self._fill([*self.stages.state_dict().values()], sd, 'features.', name, source)
        if fc:
            layers = [m for m in self.top if isinstance(m, (nn.Conv2d, nn.Linear))]
            self._fill([t for m in layers for t in (m.weight.data, m.bias.data)], sd, 'classifier.', name, source)
        return self

    def _weights(self, name, pretrained):
        if pretrained is not True: return read_weights(Path(pretrained)),f'{pretrained}'
        try: return get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True),name
        except OSError as e:
            raise OSError(f"the weights of {name} could not be downloaded ({e}); without a network, set `pretrained` "
                          f"to the path of a local state dict of torchvision's {name}") from e

    def _fill(self, own:list[Tensor], sd, prefix, name, source):
        "Copy the tensors under `prefix` to those of `own`, both in the order of the layers"
        theirs = [v for k,v in sd.items() if k.startswith(prefix)][:len(own) if prefix == 'classifier.' else None]
        if prefix == 'features.' and theirs and theirs[0].ndim == 4 and theirs[0].shape[1] == 3 != self.n_in:
            theirs[0] = adapt_input_conv(self.n_in, theirs[0])
        if len(theirs) != len(own) or any(a.numel() != b.numel() for a,b in zip(theirs, own)):
            raise ValueError(f"{source} does not hold the weights of torchvision's {name}: expected {len(own)} tensors "
                             f"with {sum(o.numel() for o in own):,} values under {prefix!r}, got {len(theirs)} with "
                             f"{sum(o.numel() for o in theirs):,}; pass a state dict of that net")
        # fc6 is linear there, with 512*7*7 inputs, and may be a 7x7 convolution here: the same values in the same order
        for a,b in zip(theirs, own): b.copy_(a.view_as(b))
