"How a learner is built: the model, its weights, normalization and parameter groups"
from __future__ import annotations
import re
from contextlib import contextmanager
import numpy as np
from torch import nn
from fastcore.foundation import L
from fastai.data.transforms import Normalize
from fastai.torch_core import apply_init, params
from fastai.vision.augment import Resize
from fastai.vision.core import TensorImage, imagenet_stats
from fastai.vision.learner import create_head
from ..arguments import brief, checked
from ..data.transforms import JointTransform
from ..models.encoders import create_encoder
from ..models.kinds import MODULE
from ..models.registry import arch_facts, get_arch, list_archs
from ..warning import warn

__all__ = ['parameter_groups', 'EncoderHead']

# --- parameter groups

@checked(model=MODULE)
def parameter_groups(
    model, # with an attribute `encoder`, or `None` in its place
) -> L:    # of lists of parameters; one group for a model without an encoder
    """Parameters from the input to the output: those of `model.encoder`, in two groups where fastai splits it so
    (ResNets, DenseNets, VGG, AlexNet), then those of other pretrained layers, then those of new layers. Groups without
    parameters are dropped. New layers are those in `model.new_layers`, names of parameters; by default all layers
    outside the encoder"""
    encoder = getattr(model, 'encoder', None)
    if encoder is None: return L([params(model)])
    inside = {id(p) for p in encoder.parameters()}
    other  = [(n, p) for n,p in model.named_parameters() if id(p) not in inside]
    new = getattr(model, 'new_layers', None)
    fresh = [p for n,p in other if new is None or n in new]
    known = [p for n,p in other if new is not None and n not in new]
    return L(o for o in (*_encoder_groups(encoder), known, fresh) if len(o))

# where fastai cuts the children of a body in two: `fastai.vision.learner.model_meta`
_CUTS = dict(resnet=6, densenet=7, vgg=22, alexnet=6)

def _encoder_groups(encoder):
    "Lists of the encoder's parameters: two where fastai has two for such a network, else one"
    body = getattr(encoder, 'body', encoder)
    family = re.match(r'[a-z]+', getattr(encoder, 'name', '') or '')
    children = dict(body.named_children())
    if 'layer2' in children and 'layer3' in children:        # ResNets by their structure, in detectors too
        names = list(children)
        cut = names.index('layer3')
        first = nn.ModuleList(children[n] for n in names[:cut])
    elif family and family[0] in _CUTS and 'features' in children:
        first = children['features'][:_CUTS[family[0]]]
    else: return [params(encoder)]
    early = {id(p) for p in first.parameters()}
    return [params(first), [p for p in encoder.parameters() if id(p) not in early]]

# --- the model

def input_size(dls) -> tuple[int,int]|None:
    "(w, h) pixels of the network's input, as the item transforms of `dls` make it; None where none of them says it"
    sizes = [o.size for o in dls.valid.after_item.fs if isinstance(o, (JointTransform, Resize))]
    return tuple(sizes[0]) if sizes else None

def build_on_encoder(task, head, dls, arch, encoder, n_out, pretrained, arch_kwargs, pyramid=False):
    """The model for `arch` or, its synonym, `encoder` ('resnet34' where both are `None`), and what is pretrained of it.
    An `nn.Module` as it is; a name registered for `task`; an encoder (torchvision's or timm's name, torchvision's
    builder) under `head(channels, n_out, **arch_kwargs)`, or with `pyramid` under `head(channels, strides, n_out,
    **arch_kwargs)`, which gets all of its maps; or what any other callable returns"""
    if arch is not None and encoder is not None: raise ValueError(
        f"arch={arch!r} and encoder={encoder!r}: the network of this task is an encoder under a head, so pass one of "
        "them")
    arch,kw = arch or encoder or 'resnet34',dict(arch_kwargs or {})
    if isinstance(arch, nn.Module): return arch,False
    named = isinstance(arch, str) or getattr(arch, '__module__', '').startswith('torchvision.')
    with naming_arguments(arch):
        if isinstance(arch, str) and arch in list_archs(task): return build_by_name(task, arch, n_out, pretrained, kw)
        if named:
            weights = True if pretrained == 'encoder' else pretrained
            enc = create_encoder(arch, pretrained=weights, pyramid=pyramid)
            return EncoderHead(enc, head, n_out, kw),weights
        if callable(arch): return arch(n_out, **kw),False
    raise ValueError(f"arch: expected a name, a builder or an nn.Module, got {brief(arch)}; "
                     f"names: list_archs({task!r}), list_encoders(), timm.list_models()")

def build_by_name(task, name, n_out, pretrained, kw):
    """The network that `task` knows under `name`, and what is pretrained of it: True (all but new layers), 'encoder', a
    path, or False. Facts of a registered architecture tell which weights it has: 'all', of the whole network;
    'encoder' (default); or False, none"""
    facts = arch_facts(name, task)
    weights = 'encoder' if kw.get('encoder') is not None else facts.get('weights', 'encoder')
    if pretrained in (True, 'encoder'):
        if weights is False:
            warn(f"there are no pretrained weights of {name}, so that it starts from random ones; pass "
                 "pretrained=False, or name an architecture that has some")
            pretrained = False
        elif weights == 'encoder': pretrained = True    # the builder's word for the weights of its encoder
    model = get_arch(name, task)(n_out, pretrained=pretrained, **kw)
    whole = getattr(model, 'new_layers', None) is not None     # all but these layers is pretrained
    model.recipe = {**facts.get('recipe', {}), **(facts.get('recipe_all', {}) if whole else {})}
    return model,pretrained

def name_of(task, arch):
    "The name of `arch` for `build_by_name`: a text, or that of a builder of torchvision or this package; else None"
    if isinstance(arch, str): return arch
    name = getattr(arch, '__name__', None)
    if name not in list_archs(task): return None
    known = arch is get_arch(name, task) or getattr(arch, '__module__', '').startswith('torchvision.')
    return name if known else None

@contextmanager
def naming_arguments(arch):
    "A block that builds `arch`; `ValueError` where it has no such argument"
    try: yield
    except TypeError as e:
        if 'unexpected keyword' not in str(e): raise
        name = arch if isinstance(arch, str) else getattr(arch, '__name__', type(arch).__name__)
        raise ValueError(f"{name}: {e}; see the arguments of its builder, or of the head of this task, for "
                         "`arch_kwargs`") from e

def is_named(arch) -> bool:
    "Whether `pretrained` reaches `arch`: a name, or a builder of torchvision or of this package; not your own network"
    if arch is None or isinstance(arch, str): return True
    known = getattr(arch, '__module__', '').startswith(('torchvision.', 'vision_tasks.'))
    return known and not isinstance(arch, nn.Module)

class EncoderHead(nn.Module):
    "An encoder's last map, (b, c, h, w), or all of its maps, through `head`, (b, n_out)"
    def __init__(self,
        encoder, # `Encoder` that returns its last map, (b, c, h, w), or a list of maps
        head,    # (c, n_out, **kw) -> `nn.Module` on that map; of maps (channels, strides, n_out, **kw)
        n_out,
        kw,      # dict of further arguments of `head`
    ):
        super().__init__()
        self.encoder = encoder
        chs = (encoder.channels, encoder.strides) if encoder.pyramid else (encoder.channels[-1],)
        self.head = head(*chs, n_out, **kw)
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

def normalize_once(loaders, mean, std):
    """Let each of the DataLoaders `loaders` normalize once, with `mean` and `std`, numbers for each channel; what
    normalized before is replaced. `None`: they do not normalize"""
    for dl in loaders:
        pipe = dl.after_batch
        pipe.fs = L(o for o in pipe.fs if not isinstance(o, Normalize))
        if mean is None: continue
        norm = NormalizeInPlace.from_stats(mean, std, cuda=False)
        for o in norm.parameters: setattr(norm, o, getattr(norm, o).to(dl.device or 'cpu'))
        pipe.add(norm)

def input_stats(model, normalize=True) -> tuple:
    """(mean, std) with which images are normalized for `model`, each None where they are not: what `normalize` says; if
    that is True those of the model, else of its encoder, else ImageNet's, with a warning where the model is
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
        raise ValueError(f"{type(model).__name__} normalizes its images itself; drop normalize={normalize!r:.60}")
    return mean.tolist(),std.tolist()

def _told_stats(model):
    "What has `mean` and `std`: `model` or its encoder; None where neither has"
    return next((o for o in (model, getattr(model, 'encoder', None))
                 if hasattr(o, 'mean') and hasattr(o, 'std') and not callable(o.mean)), None)
