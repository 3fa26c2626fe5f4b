"How a learner is built: the model, its weights, normalization and parameter groups"
from __future__ import annotations
import numpy as np
from torch import nn
from fastcore.foundation import L
from fastai.data.transforms import Normalize
from fastai.torch_core import apply_init, params
from fastai.vision.core import TensorImage, imagenet_stats
from fastai.vision.learner import create_head
from ..arguments import POSITIVE, brief, checked, choice, either, several
from ..models.encoders import create_encoder
from ..models.kinds import MODULE, STATS
from ..models.registry import get_arch, list_archs
from .kinds import LOADERS
from ..warning import warn

__all__ = ['encoder_splitter', 'EncoderHead', 'one_normalize']

# --- model

@checked(model=MODULE)
def encoder_splitter(model) -> L:
    "Two parameter groups: `model.encoder`, which may be pretrained, and all the rest; without an encoder one group"
    if getattr(model, 'encoder', None) is None: return L([params(model)])
    body = {id(p) for p in model.encoder.parameters()}
    return L(params(model.encoder), [p for p in model.parameters() if id(p) not in body])

def task_model(task, arch, encoder, n_out, head, pretrained=True, arch_kwargs=None):
    """The model for `arch` or, another word for it, `encoder`; 'resnet34' where both are None. An `nn.Module` as it is;
    a name registered for `task`; an encoder (torchvision's or timm's name, torchvision's builder) under
    `head(channels, n_out, **arch_kwargs)`; or what any other callable builds"""
    if arch is not None and encoder is not None:
        raise ValueError(f"arch={arch!r} and encoder={encoder!r}: the net of this task is an encoder under a head, "
                         "so give one of them")
    arch,kw = arch or encoder or 'resnet34',dict(arch_kwargs or {})
    if isinstance(arch, nn.Module): return arch
    named = isinstance(arch, str) or getattr(arch, '__module__', '').startswith('torchvision.')
    try:
        if isinstance(arch, str) and arch in list_archs(task):
            return get_arch(arch, task)(n_out, pretrained=pretrained, **kw)
        if named: return EncoderHead(create_encoder(arch, pretrained=pretrained, pyramid=False), head, n_out, kw)
        if callable(arch): return arch(n_out, **kw)
    except TypeError as e:
        if 'unexpected keyword' not in str(e): raise
        raise ValueError(f"arch_kwargs: {e}; the head of this task takes other ones") from e
    raise ValueError(f"arch: expected a name, a builder or an nn.Module, got {brief(arch)}; "
                     f"names: list_archs({task!r}), list_encoders(), timm.list_models()")

def takes_pretrained(arch) -> bool:
    "Whether `arch` is told `pretrained`: a name, or a builder of torchvision's or of ours; one's own net is not"
    if arch is None or isinstance(arch, str): return True
    theirs_or_ours = getattr(arch, '__module__', '').startswith(('torchvision.', 'vision_tasks.'))
    return theirs_or_ours and not isinstance(arch, nn.Module)

def came_pretrained(arch, pretrained) -> bool:
    "Whether the net has weights that `pretrained` brought; what was not told of it comes as it is"
    return pretrained is not False and takes_pretrained(arch)

class EncoderHead(nn.Module):
    "An encoder's last map, (b, c, h, w), through `head(c, n_out)`, (b, n_out)"
    def __init__(self, encoder, head, n_out, kw):
        super().__init__()
        self.encoder = encoder
        self.head = head(encoder.channels[-1], n_out, **kw)
    def forward(self, x): return self.head(self.encoder(x))

def pooled_head(c, n_out, **kwargs):
    """fastai's head, (b, c, h, w) -> (b, n_out): average and maximum over the map, two linear layers with BatchNorm and
    dropout"""
    head = create_head(c, n_out, **kwargs)
    apply_init(head, nn.init.kaiming_normal_)
    return head

class NormalizeInPlace(Normalize):
    "fastai's `Normalize` without its two copies of the batch, which `IntToFloatTensor` made for us anyway"
    def encodes(self, x:TensorImage): return x.sub_(self.mean).div_(self.std)

@checked(dls=LOADERS, mean=either(choice(None), STATS),
         std=either(choice(None), several(POSITIVE, "a number above 0 for each channel", least=1)))
def one_normalize(dls, mean, std):
    """Let every DataLoader of `dls` normalize once, with `mean` and `std`; what normalized before is replaced. None:
    they do not normalize"""
    if (mean is None) != (std is None): raise ValueError(
        f"mean and std: expected both or neither, got {brief(mean)} and {brief(std)}")
    for dl in dls.loaders:
        pipe = dl.after_batch
        pipe.fs = L(o for o in pipe.fs if not isinstance(o, Normalize))
        if mean is None: continue
        norm = NormalizeInPlace.from_stats(mean, std, cuda=False)
        for o in norm.parameters: setattr(norm, o, getattr(norm, o).to(dl.device or 'cpu'))
        pipe.add(norm)

def input_stats(model, normalize=True) -> tuple:
    """(mean, std) with which images are normalized for `model`, each None where they are not: what `normalize` says; if
    that is True those of the model, else of its encoder, else ImageNet's, of which a warning tells where the model is
    a user's own. Raises `ValueError` for statistics that are no `(mean, std)`, or for a model that normalizes itself"""
    if normalize is None or normalize is False: return None,None
    if normalize is True:
        told = _told_stats(model)
        if told is not None: return told.mean,told.std
        if not type(model).__module__.startswith('vision_tasks.'):
            warn(f"{type(model).__name__} does not say how its images are normalized (attributes `mean` and "
                 "`std`), so they are with ImageNet's statistics; pass normalize=(mean, std), or "
                 "normalize=None to feed them in [0, 1]")
        return imagenet_stats
    try: mean,std = (np.asarray(o, dtype=np.float64).reshape(-1) for o in normalize)
    except (TypeError, ValueError): mean = std = np.zeros(0)
    if len(mean) != len(std) or not len(mean) or not (np.isfinite(mean).all() and (std > 0).all()): raise ValueError(
        f"normalize is True, None or (mean, std), numbers for each channel of images in [0, 1]; got {normalize!r:.80}")
    if getattr(model, 'normalizes', False):
        raise ValueError(f"{type(model).__name__} normalizes its images itself; leave normalize={normalize!r:.60} out")
    return mean.tolist(),std.tolist()

def _told_stats(model):
    "What has `mean` and `std`: `model` or its encoder; None where neither has"
    return next((o for o in (model, getattr(model, 'encoder', None))
                 if hasattr(o, 'mean') and hasattr(o, 'std') and not callable(o.mean)), None)

def make_learner(cls, dls, model, loss_func, metrics, splitter, cbs, pretrained, normalize=True, **kwargs):
    "A `cls` on `dls`, which normalize as `input_stats` says; the encoder is frozen where it is `pretrained`"
    encoder,ours = getattr(model, 'encoder', None),_told_stats(model)
    one_normalize(dls, *input_stats(model, normalize))
    if splitter is None:
        splitter = encoder_splitter
        if encoder is None:
            warn(f"{type(model).__name__} has no attribute `encoder`, so all its parameters are one group and "
                 "`fine_tune` trains them all from the start; pass a `splitter` to freeze a part at first")
    learn = cls(dls, model, loss_func=loss_func, metrics=metrics, splitter=splitter, cbs=cbs, **kwargs)
    if learn.in_pixels: learn.check_view()
    if pretrained and ours is not None: learn.freeze()     # a net of one's own comes as it is
    return learn
