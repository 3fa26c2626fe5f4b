"Layers, initializations and checks that several nets share"
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..arguments import Kind, checked, instance, several, whole
from .kinds import CHANNELS, CONTEXT, MODULE, N_OUT, TENSOR, checked_net

__all__ = ['GridHead', 'init_he', 'bilinear_kernel', 'init_bilinear', 'BilinearUp', 'unpool_nearest', 'bed_of_nails',
           'ContextModule', 'zero_loss', 'check_n_out']

class GridHead(nn.Sequential):
    """(b, c, h, w) -> (b, n_out) for outputs that are positions: the map is pooled to a grid of cells, since global
    pooling would lose where things are. Any height and width"""
    @checked_net(c=CHANNELS, width=CHANNELS, grid=whole(1, 1000))
    def __init__(self,
        c:int,             # channels of the map
        n_out:int,         # outputs
        grid:int=7,        # cells in each direction; 7 = the map of 224 pixels at stride 32
        width:int=64,      # channels of a cell
        hidden:int=256,    # units of the layer before the last
        ps:float=.1,       # dropout before the last layer. There is none before BatchNorm, where it would make the
                           # variance in training and evaluation differ, and sizes wrong (Li et al., 2018,
                           # arXiv:1801.05134)
    ):
        last = nn.Linear(hidden, n_out)
        super().__init__(
            nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(grid), nn.Flatten(),
            nn.Linear(width*grid**2, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Dropout(ps), last)
        # small at first: the sigmoid that follows has a gradient only near 0
        nn.init.normal_(last.weight, std=.01)
        nn.init.zeros_(last.bias)

    def forward(self, x:Tensor) -> Tensor: return super().forward(x)

@checked(tensors=several(instance(Tensor, what="a tensor of floats"), "a list of tensors of floats"))
def zero_loss(
    tensors, # list of float tensors: outputs or parameters of a net
) -> Tensor: # ()
    """Loss of a batch without anything to learn from: 0, with a gradient of 0 for all `tensors`, so that training in
    several processes counts them as used. Unlike `0*sum` it does not depend on their values: 0 * nan is nan"""
    return sum(o.flatten()[:0].sum() for o in tensors)

# --- nets that are built from their papers

def scaled(c:int, width:float) -> int:
    "`width` times `c` channels, at least one"
    return max(round(c*width), 1)

@checked(module=MODULE)
def init_he(
    module,  # any `nn.Module`; changed in place
):
    "He initialization (He et al., 2015, arXiv:1502.01852) of all convolutions of `module`, with biases 0"
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            n = m.in_channels//m.groups*math.prod(m.kernel_size)              # inputs of one output pixel
            if isinstance(m, nn.ConvTranspose2d): n /= math.prod(m.stride)    # of which the stride skips the others
            nn.init.normal_(m.weight, std=math.sqrt(2/n))
            if m.bias is not None: nn.init.zeros_(m.bias)

def conv_relu(
    n_in:int,          # input channels
    n_out:int,         # output channels
    ks:int=3,          # kernel size
    bn:bool=False,     # True: BatchNorm between the two; the convolution keeps its bias, as in the Caffe originals
    conv=nn.Conv2d,    # or `nn.ConvTranspose2d`
    **kwargs,          # arguments of the convolution
) -> list[nn.Module]:
    "A convolution and its ReLU"
    return [conv(n_in, n_out, ks, **kwargs), *([nn.BatchNorm2d(n_out)] if bn else []), nn.ReLU(inplace=True)]

# --- checks

def check_n_out(
    n_out, # number of classes, or of other outputs
) -> int:
    "`n_out`. Raises `ValueError` unless it is a whole number of 1 or more"
    return N_OUT('n_out', n_out)

def check_norm(
    net:nn.Module,
    x:Tensor,             # (b, c, h, w) input
    least:tuple[int,int], # (h, w) of the smallest map with BatchNorm
):
    "Raise `ValueError` where BatchNorm of `net` would take the variance of a single value"
    if net.training and len(x) == 1 and tuple(least) == (1, 1):
        raise ValueError(f"{type(net).__name__} normalizes a map of 1 x 1 over the batch for images of "
                         f"{x.shape[-2]} x {x.shape[-1]}, so it trains on batches of 2 images or more, got 1; raise "
                         "bs, drop the last batch, or use larger images")

def refuse_nan(o):
    "Raise `ValueError` if the tensor `o`, or a tensor in the tuple, list or dict `o`, holds nan"
    if isinstance(o, dict): o = tuple(o.values())
    if isinstance(o, (tuple, list)):
        for x in o: refuse_nan(x)
    # a traced or compiled graph cannot branch on values
    elif isinstance(o, Tensor) and not torch.jit.is_tracing() and not torch.compiler.is_compiling() and o.isnan().any():
        raise ValueError("the model gives nan for these images: it diverged in training; train it again with a lower "
                         "learning rate")

# --- upsampling

@checked(k=whole(1, 2000))
def bilinear_kernel(
    k:int,   # height and width
) -> Tensor: # (k, k) weights in [0, 1]
    """Kernel of a transposed convolution that interpolates: with size k = 2s and stride s, s even, it upsamples by s.
    This is bilinear interpolation (`align_corners=False`), except at the border, which is mixed with zeros"""
    tent = 1 - (torch.arange(k) - (k-1)/2).abs()/math.ceil(k/2)
    return tent[:,None]*tent

@checked(deconv=instance(nn.ConvTranspose2d, what="an `nn.ConvTranspose2d`"))
def init_bilinear(
    deconv:nn.ConvTranspose2d,  # changed in place
) -> nn.ConvTranspose2d:        # the same
    """Initialize `deconv` as bilinear interpolation, channel i to channel i. Raises `ValueError` for kernels that are
    not square, and for several groups"""
    if deconv.groups != 1 or len({*deconv.kernel_size}) > 1:
        raise ValueError(f"expected a transposed convolution with a square kernel and one group, got {deconv}")
    nn.init.zeros_(deconv.weight)
    n = min(deconv.weight.shape[:2])
    with torch.no_grad(): deconv.weight[range(n), range(n)] = bilinear_kernel(deconv.kernel_size[0]).to(deconv.weight)
    if deconv.bias is not None: nn.init.zeros_(deconv.bias)
    return deconv

EVEN = Kind("an even factor from 2 to 1000, since the kernel has 2s weights around a center",
            lambda o: whole(2, 1000).ok(o) and o % 2 == 0)

class BilinearUp(nn.Module):
    """(b, c, h, w) -> (b, c, (h+1)*s - 2*padding, (w+1)*s - 2*padding): bilinear upsampling of each channel, as a fixed
    transposed convolution with `bilinear_kernel`"""
    @checked(s=EVEN, padding=whole(0, 2000))
    def __init__(self,
        s:int,           # factor, even
        padding:int=0,   # pixels that are cut off on each side; s/2 for an output of s times the size
    ):
        super().__init__()
        self.s,self.padding = s,padding
        self.register_buffer('kernel', bilinear_kernel(2*s), persistent=False)

    def forward(self, x:Tensor) -> Tensor:
        c = x.shape[1]
        return F.conv_transpose2d(x, self.kernel.expand(c, 1, -1, -1), stride=self.s, padding=self.padding, groups=c)

    def extra_repr(self): return f's={self.s}, padding={self.padding}'

@checked(x=TENSOR, s=whole(1, 2000))
def unpool_nearest(
    x:Tensor,  # (..., h, w)
    s:int,     # factor
) -> Tensor:   # (..., h*s, w*s)
    "Upsample by repeating each value in a cell of s x s"
    return x.repeat_interleave(s, -2).repeat_interleave(s, -1)

@checked(x=TENSOR, s=whole(1, 2000))
def bed_of_nails(
    x:Tensor,  # (..., h, w)
    s:int,     # factor
) -> Tensor:   # (..., h*s, w*s)
    "Upsample with each value at the top left of a cell of s x s, and zeros elsewhere"
    out = x.new_zeros(*x.shape[:-2], x.shape[-2]*s, x.shape[-1]*s)
    out[..., ::s, ::s] = x
    return out

# --- context

class ContextModule(nn.Sequential):
    """(b, c, h, w) -> the same shape: dilated convolutions whose receptive field grows to 33 cells each way, at one
    resolution (Yu & Koltun, 2015, arXiv:1511.07122, table 1). It is initialized as the identity for values >= 0"""
    dilations = 1,1,2,4,8,16,1
    channels  = dict(basic=(1,)*7, large=(2, 2, 4, 8, 16, 32, 32))   # times c; a 1x1 convolution to c follows
    @checked_net(kind=CONTEXT)
    def __init__(self,
        c:int,            # channels, which are classes
        kind:str='basic', # 'basic', or 'large' with up to 32*c channels
    ):
        chs = [c, *(c*m for m in self.channels[kind]), c]
        super().__init__(*[l for i,o,d in zip(chs, chs[1:], self.dilations)
                           for l in conv_relu(i, o, padding=d, dilation=d)], nn.Conv2d(chs[-2], c, 1))
        for m in list(self)[::2]: self._init_identity(m, c)

    @staticmethod
    def _init_identity(conv, c):
        """Each class has n_in/c input and n_out/c output channels; each output is the mean of the inputs, scaled (eq.
        5). In the paper noise makes the channels of a class differ, so that the module is no identity; here they
        differ by factors with a mean of 1"""
        i,o = conv.in_channels//c,conv.out_channels//c
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        by = 1 + torch.linspace(-.1, .1, o) if o > 1 else torch.ones(1)
        same = torch.block_diag(*[by[:,None].expand(o, i)/o]*c)      # (n_out, n_in): 0 between classes
        k = conv.kernel_size[0]//2
        with torch.no_grad(): conv.weight[:, :, k, k] = same.to(conv.weight)
