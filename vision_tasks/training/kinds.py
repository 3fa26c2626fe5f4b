"Kinds of the arguments of blocks, DataLoaders and learners of all tasks"
from __future__ import annotations
from collections.abc import Mapping
import numpy as np
import torch
from torch import nn
from fastcore.foundation import L
from fasttransform import Transform
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Metric
from ..arguments import (FLAG, FRACTION, FUNCTION, KINDS, NAMES, PATH, TEXT, Kind, brief, choice, either, instance,
                         is_number, is_whole, number, several)
from ..data.annotation import Annotation
from ..models.kinds import MODULE, N_OUT

__all__ = ['PAIRS', 'CLASSES', 'RATE', 'ONE_RATE', 'MOMS', 'CBS', 'LOADERS', 'BLOCK', 'DLS', 'CHECK',
           'FASTAI', 'LEARNER', 'check_ds_idx']

# fastai makes an instance of a class of transforms
_TFM   = Kind("a transform", lambda o: FUNCTION.ok(o) or isinstance(o, type) and issubclass(o, Transform))
TFMS   = either(_TFM, several(_TFM, "a list of transforms"))
DEVICE = Kind("a device of this machine, such as 'cpu' or 'cuda'", lambda o: torch.empty(0, device=o) is not None)
PAIRS  = Kind("a list of pairs, such as ('left_eye', 'right_eye')",
              lambda o: isinstance(o, (list, tuple, L, np.ndarray)))
CLASSES = several(Kind("a name, which is a text", lambda o: isinstance(o, str) and bool(o)), "a list of names", least=1,
                  todo=NAMES.todo)
MOST   = 10**6   # of a learning rate
RATE   = either(number(0, MOST), Kind("a slice of two rates", lambda o: isinstance(o, slice) and o.step is None and
                                is_number(o.stop) and 0 < o.stop <= MOST and
                                (o.start is None or is_number(o.start) and 0 <= o.start <= MOST)),
                several(number(0, MOST), "a rate for each parameter group", least=1))
ONE_RATE = number(0, MOST, open=True)
MOMS   = several(FRACTION, "three momentums in [0, 1]", n=3)
_CALLBACK = Kind("a callback", lambda o: isinstance(o, Callback) or isinstance(o, type) and issubclass(o, Callback))
CBS    = either(_CALLBACK, several(_CALLBACK, "a list of callbacks"))
LOADERS = instance(DataLoaders, what="DataLoaders, as the task's `*_dls` makes them")
_BUILDER = Kind("a builder", lambda o: FUNCTION.ok(o) or isinstance(o, type) and issubclass(o, nn.Module))
_METRIC  = Kind("a metric: a function of (predictions, targets), or a `Metric`",
                lambda o: FUNCTION.ok(o) or isinstance(o, Metric), FUNCTION.todo)

KINDS['dl'] = Kind("a DataLoader, or a list of Annotation",
                   lambda o: hasattr(o, 'dataset') or isinstance(o, (list, tuple, L, Annotation)))
# of those `*_dls` that have it
KINDS['balance'] = choice('labels', None)
BLOCK = dict(vocab=CLASSES, splitter=FUNCTION, item_tfms=TFMS, batch_tfms=TFMS)
CACHE = either(choice('ram'), PATH)
DLS   = dict(device=DEVICE, cache=CACHE)
CHECK = choice('masks', True, False)
# of fastai's own `Learner`
FASTAI = dict(dls=LOADERS, opt_func=FUNCTION, lr=RATE, splitter=FUNCTION, cbs=CBS,
              metrics=either(_METRIC, several(_METRIC, "a list of metrics")), path=PATH, model_dir=PATH, wd=number(0),
              wd_bn_bias=FLAG, train_bn=FLAG, moms=MOMS, default_cbs=FLAG)
LEARNER = dict(
    dls=LOADERS, n_out=N_OUT,
    arch=either(MODULE, _BUILDER,
                Kind("a name", TEXT.ok, "`list_archs(task)` and `list_encoders()` have the names")),
    encoder=either(MODULE, _BUILDER, Kind("a name", TEXT.ok)),
    pretrained=either(FLAG, PATH),
    arch_kwargs=Kind("a dict of the builder's arguments", lambda o: isinstance(o, Mapping) and
                     all(isinstance(k, str) and k.isidentifier() for k in o)),
    loss_func=either(FUNCTION, Kind("the name of a loss", TEXT.ok)), metrics=FASTAI['metrics'], splitter=FUNCTION,
    cbs=CBS)

def check_ds_idx(
    ds_idx,            # of a set
    dls:DataLoaders,   # `DataLoaders` of a learner
):
    "Raise `ValueError` where `dls` have no set of that number"
    n = len(dls.loaders)
    if is_whole(ds_idx) and 0 <= ds_idx < n: return
    sets = ' or '.join(['0 (training)', '1 (validation)', *map(str, range(2, n))][:n])
    raise ValueError(f"ds_idx: expected {sets}, got {brief(ds_idx)}; pass dl=annotations for another set")
