"VGG16's convolutions, on which the classic nets stand (Simonyan & Zisserman, 2014, arXiv:1409.1556)"
from __future__ import annotations
from pathlib import Path
from torch import Tensor, nn
from torchvision.models import get_model_weights
from timm.models import adapt_input_conv
from .encoders import read_weights
from .layers import conv_relu, scaled

__all__ = ['VGG16']

class VGG16(nn.Module):
    """The 13 convolutions in five `stages`. What pools after each is the net's own affair, so there is no `forward`;
    `top` is what the net puts in place of the classifier's two hidden layers, fc6 and fc7"""
    mean,std = (.485, .456, .406),(.229, .224, .225)     # what torchvision's weights want
    depths   = 2,2,3,3,3                                 # convolutions a stage
    def __init__(self,
        n_in:int=3,
        width:float=1.,             # 1 = 64 channels in the first stage, 512 in the last
        bn:bool=False,              # BatchNorm after each convolution
        pad:int=1,                  # of the very first convolution
        dilation:int=1,             # of the last stage
        top:nn.Sequential=None,     # on the last stage's pooled map
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
                                    # (vgg16_bn with `bn`); False: leave everything as it is
        fc:bool=False,              # the classifier's two hidden layers go into those of `top`, convolutions or linear
    ):
        "Take over ImageNet's weights; `ValueError` for a file of another net"
        if pretrained is False: return self
        if self.width != 1:
            raise ValueError(f"the weights are VGG16's, of width=1; width={self.width} came: pass pretrained=False")
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
            raise OSError(f"the weights of {name} did not come ({e}); without a network, give `pretrained` the path of "
                          f"a local state dict of torchvision's {name}") from e

    def _fill(self, own:list[Tensor], sd, prefix, name, source):
        "Copy the tensors under `prefix` to those of `own`, both in the order of the layers"
        came = [v for k,v in sd.items() if k.startswith(prefix)][:len(own) if prefix == 'classifier.' else None]
        if prefix == 'features.' and came and came[0].ndim == 4 and came[0].shape[1] == 3 != self.n_in:
            came[0] = adapt_input_conv(self.n_in, came[0])
        if len(came) != len(own) or any(a.numel() != b.numel() for a,b in zip(came, own)):
            raise ValueError(f"{source} does not hold the weights of torchvision's {name}: {len(own)} tensors of "
                             f"{sum(o.numel() for o in own):,} numbers are expected under {prefix!r}, {len(came)} of "
                             f"{sum(o.numel() for o in came):,} came; give the file of that net's state dict")
        # fc6 is a layer of 512*7*7 inputs there, maybe a convolution of 7x7 here: the same numbers in the same order
        for a,b in zip(came, own): b.copy_(a.view_as(b))
