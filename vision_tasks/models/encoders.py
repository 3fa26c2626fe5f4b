"Encoders: torchvision's and timm's classifiers without their heads, with feature maps at several strides or the last"
from __future__ import annotations
import math, re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
import torch, torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_builder, get_model_weights, list_models
import timm
from timm.models import adapt_input_conv
from safetensors.torch import load_file
from ..arguments import COUNT, FLAG, TEXT, checked, instance, number
from ..warning import warn
from .kinds import CHANNELS, MODULE, PRETRAINED, STATS, pair

__all__ = ['Encoder', 'create_encoder', 'list_encoders']

# Where the body of a torchvision classifier ends, its modules beside the body, and containers of several steps.
# shufflenet ends before its 1x1 conv5, as do files of encoder weights
_ENDS  = ('avgpool', 'classifier', 'conv5')
_AUX   = ('aux1', 'aux2', 'AuxLogits')
_STEPS = ('features', 'layers', 'trunk_output')
# torchvision's classifiers that are no sequence of modules, and their names in timm
_AT_TIMM = {'vit_b_16': 'vit_base_patch16_224', 'vit_b_32': 'vit_base_patch32_224', 'vit_l_16': 'vit_large_patch16_224',
            'vit_l_32': 'vit_large_patch32_224', 'vit_h_14': 'vit_huge_patch14_224', 'maxvit_t': 'maxvit_tiny_tf_224'}
# (h, w) of probes, which run on meta tensors, where size costs nothing. A multiple of 256 and of 14, so that windows
# and patches divide it
_PROBE = (1792, 1792)

INPUT_SIZE = pair(COUNT, "(height, width) in pixels")

class Encoder(nn.Module):
    "The body of a classifier: (b, n_in, h, w) -> list of (b, c, h/stride, w/stride), or only the last map"
    @checked(body=MODULE, name=TEXT, n_in=CHANNELS, pyramid=FLAG, mean=STATS, std=STATS, input_size=INPUT_SIZE)
    def __init__(self,
        body:nn.Module,                  # layers without the classifier
        name:str,                        # as for `create_encoder`
        n_in:int,                        # channels of the images
        pyramid:bool,                    # True: `forward` returns the last map at each stride; False: only the last
        mean:tuple[float,float,float],   # statistics for which the weights are made: (x - mean)/std, x in [0, 1]
        std:tuple[float,float,float],    # standard deviation of each channel
        input_size:tuple[int,int]=None,  # (h, w) pixels, the only size that it takes; None (default): any
    ):
        super().__init__()
        self.body,self.name,self.n_in,self.pyramid,self.input_size = body,name,n_in,pyramid,input_size
        self.mean,self.std = tuple(mean),tuple(std)
        self.single = not pyramid  # whether `forward` returns the only map, not a list
        self.taps = None # indices of `_maps` that are returned; None: all
        self._measure()

    def _maps(self, x) -> Iterator[Tensor]:
        "All maps of the body, (b, c, h, w) each"
        raise NotImplementedError

    def forward(self,
        x:Tensor,                # (b, n_in, h, w)
    ) -> list[Tensor]|Tensor:    # (b, c, h/stride, w/stride), for each of `channels` and `strides`
        "The feature maps, or the last one"
        maps = [o for i,o in enumerate(self._maps(x)) if self.taps is None or i in self.taps]
        return maps if not self.single or self.taps is None else maps[0]

    def _probe(self):
        """The maps of a batch on meta tensors, and the names of the parameters that none of them depends on. Only
        shapes are computed, in eval mode: no weight, BatchNorm statistic or random state changes"""
        size = self.input_size or _PROBE
        ps = {k: p.detach().to('meta').requires_grad_() for k,p in self.named_parameters()}
        bs = {k: b.to('meta') for k,b in self.named_buffers()}
        self.eval()
        with torch.enable_grad():
            maps  = torch.func.functional_call(self, {**ps, **bs}, (torch.empty(2, self.n_in, *size, device='meta'),))
            grads = torch.autograd.grad(sum(o.sum() for o in maps), list(ps.values()), allow_unused=True)
        self.train()
        return maps,{k for k,g in zip(ps, grads) if g is None}

    def _measure(self):
        "Find `channels` and `strides`, and drop modules that no map needs (norms, convolutions of the classifier)"
        maps,idle = self._probe()
        if idle:
            drop_modules(self, idle)
            maps,_ = self._probe()
        strides = [_stride((self.input_size or _PROBE)[0], o.shape[-2]) for o in maps]
        self.taps = sorted({s: i for i,s in enumerate(strides)}.values()) if self.pyramid else [len(maps)-1]
        self.channels,self.strides = [maps[i].shape[1] for i in self.taps],[strides[i] for i in self.taps]

    def keep_map(self,
        stride:float,   # of the map in pixels; the nearest is kept
    ):
        "Make `forward` return a single map, and drop the later layers"
        i = min(range(len(self.strides)), key=lambda i: abs(math.log2(self.strides[i]/stride)))
        self.taps,self.channels,self.strides = [self.taps[i]],[self.channels[i]],[self.strides[i]]
        self.single = True
        drop_modules(self, self._probe()[1])

    def extra_repr(self): return f"{self.name!r}, n_in={self.n_in}, channels={self.channels}, strides={self.strides}"

def _stride(size, out) -> int:
    """Pixels between the cells of a map of length `out`. Nets without padding lose cells; their strides are rounded to
    powers of two"""
    return size//out if size % out == 0 else 2**round(math.log2(size/out))

def drop_modules(module, idle, prefix=''):
    "Replace by `Identity` each child whose parameters are all among the names `idle`"
    for name,child in module.named_children():
        names = [f'{prefix}{name}.{k}' for k,_ in child.named_parameters()]
        if names and idle.issuperset(names): setattr(module, name, nn.Identity())
        else: drop_modules(child, idle, f'{prefix}{name}.')

def _nchw(x) -> Tensor: return x.permute(0, 3, 1, 2)

ENCODER = instance(Encoder, what="an `Encoder`, as `create_encoder` returns it")

class TorchvisionEncoder(Encoder):
    "The children of a torchvision classifier before its pooling, by their own names, one after the other"
    def __init__(self, body, name, n_in, pyramid, **kwargs):
        self.steps = [s for k,m in body.named_children()
                      for s in ([f'{k}.{i}' for i,_ in m.named_children()] if k in _STEPS else [k])]
        super().__init__(body, name, n_in, pyramid, **kwargs)

    def _maps(self, x):
        for k in self.steps:
            x = self.body.get_submodule(k)(x)
            yield _nchw(x) if self.name.startswith('swin') and k != 'permute' else x # swin: NHWC up to its last module

class TimmEncoder(Encoder):
    "A timm model: with `features_only`, or `forward_features` of the whole"
    def _maps(self, x):
        if self.pyramid: maps = self.body(x)
        else:            maps = [self.body.forward_features(x)]
        nhwc = str(getattr(self.body, 'output_fmt', 'NCHW')).endswith('NHWC')
        for o in maps: yield _nchw(o) if nhwc else self._grid(o, x)

    def _grid(self, o, x) -> Tensor:
        "(b, c, h, w) from a map, or from tokens (b, n, c): those of the patches, after the others (class, registers)"
        if isinstance(o, Tensor) and o.ndim == 4: return o
        if isinstance(o, Tensor) and o.ndim == 3:
            stride = self.body.feature_info[-1]['reduction']
            h,w = (n//stride for n in x.shape[-2:])
            if 0 <= o.shape[1]-h*w <= getattr(self.body, 'num_prefix_tokens', 1):
                return o[:, o.shape[1]-h*w:].transpose(1, 2).unflatten(2, (h, w))
        got = tuple(o.shape) if isinstance(o, Tensor) else type(o).__name__
        raise ValueError(f"timm's {self.name} returns {got} for an image of {tuple(x.shape[-2:])} pixels: neither a "
                         "map (b, c, h, w) nor a grid of tokens; use pyramid=True, or another encoder")

def list_encoders() -> list[str]:
    "torchvision's names for `create_encoder`; `timm.list_models()` lists timm's"
    return [n for n in list_models(module=torchvision.models) if n not in _AT_TIMM]

@checked(pretrained=PRETRAINED, n_in=CHANNELS, pyramid=FLAG, stride=number(0, open=True))
def create_encoder(
    arch:str|Callable,              # torchvision builder or its name, or a timm name; 'timm/resnet18' for timm's where
                                    # both have one
    pretrained:bool|str|Path=True,  # True: download weights; path of a local state dict (.pth, .safetensors); False:
                                    # random weights
    n_in:int=3,                     # channels of the images; for other numbers than 3 the pretrained weights of the
                                    # first convolution are summed (1), or repeated and scaled by 3/n_in, as in timm
    pyramid:bool=True,              # True: the last map at each stride; False: only the last map of the body
    stride:float=None,              # only the map of the nearest stride, without the later layers; None (default):
                                    # as `pyramid` says
) -> Encoder:                       # with `channels`, `strides`, `mean`, `std`, `name`, `input_size`
    """The body of a classifier, for use under a head. Parameters of torchvision's keep their names under `body.`.
    Raises `ValueError` for unknown names (with the nearest ones) and files of other nets, `OSError` where weights
    cannot be downloaded"""
    source,name = _resolve(arch)
    fname = None if isinstance(pretrained, bool) else Path(pretrained)
    sd    = None if fname is None else read_weights(fname)
    make  = _from_torchvision if source == 'torchvision' else _from_timm
    if pretrained is True and source == 'timm' and not timm.is_model_pretrained(name):
        warn(f"there are no pretrained weights of timm's {name}, so that it starts from random ones; pass "
             "pretrained=False, or name an encoder that has some")
        pretrained = False
    try: enc,known = make(name, pretrained is True, n_in, pyramid)
    except OSError as e:
        raise OSError(f"the weights of {name} could not be downloaded ({e}); without a network, set `pretrained` to "
                      "the path of a local state dict") from e
    if stride is not None: enc.keep_map(stride)
    if sd is not None: _load(enc, sd, fname, known())
    return enc

def _resolve(arch) -> tuple[str,str]:
    "'torchvision' or 'timm', and the name there. Raises `ValueError` for anything that is no encoder"
    name = arch if isinstance(arch, str) else getattr(arch, '__name__', None)
    if not isinstance(arch, str) and (name not in list_models() or get_model_builder(name) is not arch):
        raise ValueError(f"{arch!r} is not a builder of torchvision.models; expected one of torchvision's classifiers "
                         "(`list_encoders()`), as builder or by name, or a timm name (`timm.list_models()`)")
    if name in list_encoders(): return 'torchvision',name
    if name in _AT_TIMM:
        raise ValueError(f"torchvision's {name} cannot be split into feature maps; use timm's {_AT_TIMM[name]!r}")
    if name in list_models():
        raise ValueError(f"torchvision's {name} is not a classifier of images; expected one of `list_encoders()`, or a "
                         "timm name")
    at_timm = name.removeprefix('timm/')
    if not timm.is_model(at_timm):
        names = timm.list_models() if name != at_timm else sorted({*list_encoders(), *timm.list_models()})
        near  = get_close_matches(at_timm, names, n=5)
        raise ValueError(f"no encoder {name!r}; " + (f"did you mean {' or '.join(map(repr, near))}? " if near else '') +
                         "`list_encoders()` lists torchvision's, `timm.list_models()` timm's")
    if '.' in at_timm and at_timm not in (tags := timm.list_models(at_timm.partition('.')[0] + '.*', pretrained=True)):
        raise ValueError(f"timm has no weights {at_timm!r}; this architecture has {tags}")
    return 'timm',at_timm

def _from_torchvision(name, pretrained, n_in, pyramid):
    "The encoder, and a function that returns the names in a file of the whole classifier"
    # torchvision warns that the default initialization of these two will change
    init  = dict(init_weights=True) if name in ('googlenet', 'inception_v3') and not pretrained else {}
    model = get_model(name, weights='DEFAULT' if pretrained else None, **init)
    known = set(model.state_dict())
    if n_in != 3: set_n_in(model, n_in, pretrained)
    body = OrderedDict()
    for k,m in model.named_children():
        if k in _ENDS: break
        if k not in _AUX: body[k] = m
    if name.startswith('densenet'): body['relu'] = nn.ReLU(inplace=True) # a function in its `forward`
    # googlenet and inception change ImageNet's normalization to this one in their `forward`
    t = get_model_weights(name).DEFAULT.transforms()
    mean,std = ((.5,)*3,(.5,)*3) if name in ('googlenet', 'inception_v3') else (t.mean,t.std)
    return TorchvisionEncoder(nn.Sequential(body), name, n_in, pyramid, mean=mean, std=std), lambda: known

def set_n_in(model, n_in, keep):
    "Change the first convolution of `model` to `n_in` channels; `keep`: adapt its weights, instead of random ones"
    name,old = next((k,m) for k,m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(n_in, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    if keep:
        new.weight.data = adapt_input_conv(n_in, old.weight.data)
        if old.bias is not None: new.bias.data = old.bias.data
    parent,_,child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, new)

def _from_timm(name, pretrained, n_in, pyramid):
    "The encoder, and a function that returns the names in a file of the whole classifier"
    # `global_pool` keeps its default: with another one some nets have a norm that is not among the weights, and which
    # timm leaves random
    kind = dict(features_only=True) if pyramid else dict(num_classes=0)
    body = timm.create_model(name, pretrained, in_chans=n_in, **kind)
    cfg  = body.default_cfg
    size = tuple(cfg['input_size'][1:]) if cfg.get('fixed_input_size') else None
    shown = f'timm/{name}' if name in list_encoders() else name
    enc  = TimmEncoder(body, shown, n_in, pyramid, mean=cfg['mean'], std=cfg['std'], input_size=size)
    def known():
        with torch.device('meta'): model = timm.create_model(name, in_chans=n_in)
        return {k for k,_ in (*model.named_parameters(), *model.named_buffers())}
    return enc,known

def read_weights(fname) -> dict[str,Tensor]:
    """The tensors of a file by name, also of a checkpoint with them under 'state_dict' or 'model'. Raises
    `FileNotFoundError`, or `ValueError` for a file without a state dict"""
    if not fname.is_file():
        raise FileNotFoundError(f"no file {fname}; expected `pretrained` as True, False or the path of a state dict")
    try:
        if fname.suffix == '.safetensors': sd = load_file(fname)
        else: sd = torch.load(fname, map_location='cpu', weights_only=True)
    except OSError: raise
    except Exception as e: # of any class: the unpickler reads arbitrary bytes
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise ValueError(f"{fname} cannot be read as a state dict ({why}); "
                         "save one with torch.save(model.state_dict(), path)") from e
    for k in ('state_dict', 'model'):
        if isinstance(sd, dict) and isinstance(sd.get(k), dict): sd = sd[k]
    if not isinstance(sd, dict) or not all(isinstance(o, Tensor) for o in sd.values()):
        raise ValueError(f"{fname} holds {_kind(sd)}, not a state dict; "
                         "save one with torch.save(model.state_dict(), path)")
    return sd

def _kind(sd):
    if not isinstance(sd, dict): return f"a {type(sd).__name__}"
    k,v = next((k,v) for k,v in sd.items() if not isinstance(v, Tensor))
    return f"a {type(v).__name__} under {k!r}"

def _plain(name) -> str:
    """A parameter's name without the changes of timm's `features_only`: 'stages_0' becomes 'stages.0', 'model.norm'
    'norm'"""
    return re.sub(r'^(model|body)\.', '', name).replace('_', '.')

def _unprefixed(sd, names) -> dict[str,Tensor]:
    """`sd` without the prefixes of all its names ('module.', 'body.'), as far as this makes more of them match the
    plain `names`"""
    best,hits = sd,lambda d: sum(_plain(k) in names for k in d)
    while len({k.partition('.')[0] for k in sd}) == 1 and all('.' in k for k in sd):
        sd   = {k.partition('.')[2]: v for k,v in sd.items()}
        best = max(best, sd, key=hits)
    return best

def _load(enc, sd, fname, known):
    "Load all of `enc` from the tensors `sd` of `fname`, which may hold the whole classifier, with the names `known`"
    own   = enc.body.state_dict()
    want  = {_plain(k): (k, v) for k,v in own.items()}
    assert len(want) == len(own)
    sd    = _unprefixed(sd, want)
    file  = {_plain(k): (k, v) for k,v in sd.items()}
    known = {_plain(k) for k in known}
    for k in file.keys() & want.keys(): # a convolution for RGB, where `enc` has other channels
        name,t = file[k]
        if t.ndim == 4 and t.shape[1] == 3 != enc.n_in and want[k][1].shape[1:2] == (enc.n_in,):
            file[k] = name,adapt_input_conv(enc.n_in, t)
    missing    = [want[k][0] for k in want if k not in file and not k.endswith('num.batches.tracked')]
    unexpected = [file[k][0] for k in file if k not in want and k not in known]
    misshapen  = [f"{file[k][0]}: expected {tuple(v.shape)}, got {tuple(file[k][1].shape)}"
                  for k,(_,v) in want.items() if k in file and file[k][1].shape != v.shape]
    bad = [f"{len(o)} {what} ({'; '.join(o[:3])}{'; ...' if len(o) > 3 else ''})"
           for what,o in (('missing', missing), ('unexpected', unexpected), ('of another shape', misshapen)) if o]
    if bad: raise ValueError(f"{fname} does not hold the weights of {enc.name}: {', '.join(bad)}; pass a file of this "
                             "architecture, or choose the architecture of the file")
    enc.body.load_state_dict({k: file[p][1] for p,(k,_) in want.items() if p in file}, strict=False)
