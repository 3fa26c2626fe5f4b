"Kinds of the arguments of nets and of their builders, as `arguments.KINDS` for the whole package"
from __future__ import annotations
import inspect
import numpy as np
from torch import Tensor, nn
from ..arguments import (COUNT, FLAG, FRACTION, PATH, POSITIVE, SIZE, Kind, checked, choice, instance,
                         is_whole, number, several, whole)

__all__ = ['NETS', 'checked_net', 'N_OUT', 'WIDTH', 'CHANNELS', 'PRETRAINED',
           'WITH_ENCODER', 'MODULE', 'STRIDE', 'STATS', 'CONTEXT', 'WHS', 'TENSOR', 'pair']

N_OUT = whole(1, 10**6, what="the number of classes (of keypoints, two numbers a point), a whole number")
WIDTH = number(0, 100, open=True, what="a factor of the channels,")   # above, a single layer would fill the memory
CHANNELS = whole(1, 2**24, what="channels, a whole number")
MODULE = instance(nn.Module, what="a module (`nn.Module`)")
STRIDE = whole(1, 2**16, what="a stride in pixels, a whole number")

def _pretrained(name, o):
    "A Python bool, for which `is True` holds, or the path as it is"
    if PATH.ok(o): return o
    if FLAG.ok(o): return bool(o)
    raise TypeError

PRETRAINED   = Kind("True, False, or the path of a state dict", lambda o: True, convert=_pretrained)
WITH_ENCODER = Kind("True, False, 'encoder', or the path of a state dict", lambda o: True, convert=_pretrained)
CONTEXT = choice('basic', 'large')
STATS   = several(number(), "a list of numbers, one for each channel", least=1)
TENSOR  = Kind("a tensor (..., h, w)", lambda o: isinstance(o, Tensor) and o.ndim >= 2)

def _whs(name, o):
    "`o` as an array of numbers or a tensor"
    if isinstance(o, (list, tuple)): o = np.asarray(o)
    if isinstance(o, np.ndarray) and o.dtype.kind not in 'iuf': raise TypeError
    return o

WHS = Kind("(n, 2) widths and heights in pixels, above 0, of at least one object",
           lambda o: o.ndim == 2 and o.shape[1] == 2 and len(o) > 0 and bool((o > 0).all()) and
                     bool((o < float('inf')).all()), convert=_whs)

def _grid(name, o):
    "Python ints, for which `isinstance(o, int)` holds"
    if not SIZE.ok(o): raise TypeError
    return int(o) if is_whole(o) else tuple(map(int, o))

def pair(
    kind:Kind,   # of each value
    what:str,    # for messages: expected `what`
) -> Kind:
    "Two values of `kind`, as a tuple"
    both = several(kind, what, n=2)
    return Kind(what, lambda o: True, convert=lambda name, o: tuple(both(name, o)))

def _anchors(name, o):
    "`o` as tuples of floats"
    sizes,ratios = o
    side,ratio = several(POSITIVE, "sizes in pixels", least=1),several(POSITIVE, "ratios of height to width", least=1)
    levels = [tuple(map(float, side(f'{name}, sizes of level {i}', s))) for i,s in enumerate(sizes)]
    return tuple(levels),tuple(map(float, ratio(f'{name}, ratios', ratios)))

# what a parameter of this name takes in all nets
NETS = dict(
    n_out=N_OUT, width=WIDTH, pretrained=PRETRAINED, nms=FRACTION, resize=FLAG, bn=FLAG, crop=COUNT, context=whole(0),
    d=CHANNELS, hidden=CHANNELS, c=CHANNELS, n_in=CHANNELS, patch=whole(1, 2**16), window=whole(1, 2**16),
    stride=STRIDE, at_once=COUNT, chunk=COUNT, n_regions=COUNT, n_best=COUNT, foreground=FRACTION, dense=FLAG,
    aux_loss=FLAG, pool=choice('align', 'pool'), route=choice('conv', 'windows'), padding=choice('valid', 'same'),
    B=whole(1, 1000), body=MODULE, head=MODULE,
    size=Kind(SIZE.expected, lambda o: True, convert=_grid),
    S=Kind("a number of cells, 1 or more, or (columns, rows)", lambda o: True, convert=_grid),
    bg_iou=pair(FRACTION, "two IoUs, from .. to below .."),
    n_windows=pair(whole(0), "two numbers of windows, of objects and of background"),
    sizes=several(POSITIVE, "sizes of windows in pixels, a list of one or more numbers above 0", least=1),
    ratios=several(POSITIVE, "ratios of height to width, a list of one or more numbers above 0", least=1),
    strides=several(STRIDE, "powers of 2 up to 32 in rising order, as (8, 16, 32)", least=1),
    anchors=Kind("(sizes in pixels by level, ratios of height to width), all above 0, as `fit_anchors` returns them",
                 lambda o: all(s for s in o[0]) and len(o[0]) > 0, convert=_anchors))

def checked_net(
    **kinds,   # kinds by the name of the parameter, which replace those of `NETS`
):
    "`arguments.checked` with the kinds of `NETS`"
    def decorate(f): return checked(**{n: NETS[n] for n in inspect.signature(f).parameters if n in NETS} | kinds)(f)
    return decorate
