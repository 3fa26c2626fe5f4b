"""Training in several processes, one on each GPU or all on a CPU: batches are divided among them, and results are
gathered. It replaces fastai's `DistributedTrainer`, which needs a GPU, counts images twice and plans more steps than it
takes"""
from __future__ import annotations
import os
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from itertools import cycle, islice
from numbers import Number
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.data.load import DataLoader
from fastai.imports import noop
from fastai.learner import Metric
from fastai.torch_core import num_distrib, rank_distrib, set_seed, to_cpu
from fastcore.foundation import L
from timm.layers import convert_sync_batchnorm   # torch's own would drop the activation of timm's `BatchNormAct2d`
from .arguments import FLAG, Kind, checked

__all__ = ['Distributed']

# --- who takes what

def training_share(
    idxs:list,      # of an epoch, in its order, the same in every process
    rank:int,       # of this process, 0 to world - 1
    world:int,      # processes
    drop_last:bool, # drop what does not divide into equal shares; otherwise the first ones are repeated
) -> list:          # as many in every process, at least one
    "Indices of the images that process `rank` trains on"
    n = max(len(idxs)//world if drop_last else -(-len(idxs)//world), 1)
    return list(islice(cycle(idxs), n*world))[rank::world]

def validation_share(
    idxs:list,      # in their order, the same in every process
    rank:int,       # of this process, 0 to world - 1
    world:int,      # processes
    bs:int,         # images in a batch
    n_batches:int,  # that one process would take
) -> list:          # none where there are fewer batches than processes
    "Indices of the images that process `rank` predicts: whole batches, those that one process would take, each once"
    first,last = (-(-r*n_batches//world) for r in (rank, rank+1))
    return idxs[first*bs:last*bs]

# --- what they counted

JOINS = dict(sum=lambda v: sum(v[1:], v[0]), max=lambda v: _extreme(v, True), min=lambda v: _extreme(v, False),
             cat=lambda v: _cat(v), same=lambda v: _same(v))

def _extreme(values, largest):
    "The largest or smallest of `values`, element by element where they are tensors or arrays"
    if not any(isinstance(v, (Tensor, np.ndarray)) for v in values): return max(values) if largest else min(values)
    a = torch.stack([torch.as_tensor(v) for v in values])
    a = a.amax(0) if largest else a.amin(0)
    return a if isinstance(values[0], Tensor) else a.numpy()

def _cat(values):
    if all(isinstance(v, Tensor) for v in values): return torch.cat(values)
    if all(isinstance(v, np.ndarray) for v in values): return np.concatenate(values)
    return sum(values[1:], values[0])

def _same(values):
    if all(np.array_equal(v, values[0]) for v in values): return values[0]
    raise ValueError(f"expected the same in every process, got {' and '.join(repr(v)[:40] for v in values[:2])}")

def counted(metric) -> list:
    """The names of what `metric` counts: those that its `reset` sets, and those that its attribute `joins` names (see
    `Distributed`); resets it"""
    names,cls = {},type(metric)
    def note(self, k, v): names[k] = None; cls.__setattr__(self, k, v)
    metric.__class__ = type(cls.__name__, (cls,), {'__setattr__': note})
    try: metric.reset()
    finally: object.__setattr__(metric, '__class__', cls)
    how = getattr(metric, 'joins', {})
    for k,o in how.items():
        if k not in vars(metric): raise ValueError(
            f"{cls.__name__}.joins names {k!r}, but the metric has no such attribute after reset")
        if not callable(o) and o not in JOINS: raise ValueError(
            f"{cls.__name__}.joins[{k!r}] is {o!r}; expected one of {', '.join(JOINS)}, or a function of the list of "
            "the processes' values")
    names |= dict.fromkeys(how)
    if not names and cls.reset is not Metric.reset:
        raise ValueError(f"{cls.__name__}.reset sets no attribute, so that what several processes counted cannot be "
                         "joined: let it set what `accumulate` counts, or name that in `joins`")
    return list(names)

def joined(
    values:list, # of one attribute of a metric, a value for each process
    how=None,    # a key of `JOINS`, or a function of the list of values; None: by their type
):               # one value; None where all are
    """What several processes counted as one. Values of None, of processes that counted nothing, are dropped. By type,
    numbers and tensors are summed, lists are concatenated, dicts are joined by key, and all else must be the same"""
    values = [v for v in values if v is not None]
    if not values: return None
    if how is not None: return (how if callable(how) else JOINS[how])(values)
    if all(isinstance(v, (list, L)) for v in values): return sum(values[1:], values[0])
    flags = any(isinstance(v, (bool, np.bool_)) for v in values)       # whose sum is a number
    if not flags and all(isinstance(v, (Number, Tensor, np.ndarray)) for v in values): return sum(values[1:], values[0])
    if all(isinstance(v, dict) for v in values):
        return {k: joined([v.get(k) for v in values]) for k in dict.fromkeys(k for v in values for k in v)}
    if all(v == values[0] for v in values): return values[0]
    raise ValueError(f"cannot join what several processes counted, {' and '.join(repr(v)[:40] for v in values[:2])}: "
                    "expected numbers, tensors, lists, dicts of these, or the same everywhere; a metric's attribute "
                    "`joins` may say how: {attribute: 'max'} or a function")

# --- the callback

class Distributed(Callback):
    """Train the model on a share of the images in each process, with the mean of their gradients; validate a share of
    the batches in each, and give every process the predictions and metrics of all.

    A metric's state is what its `reset` sets. After the last batch the states of all processes are joined by their
    type: numbers and tensors are summed, lists concatenated, dicts joined key by key, anything else must be the same.
    Where that is wrong, as for a running maximum, the metric says how in an attribute `joins`, a dict from the name of
    the attribute to 'sum', 'max', 'min', 'cat', 'same', or a function of the list of the processes' values (by rank,
    without None)"""
    order = -5   # when the model is on its device; before predictions are put together and metrics are read
    @checked(device=Kind("a device, such as 'cpu' or 'cuda'", lambda o: o is None or torch.device(o)), sync_bn=FLAG)
    def __init__(self,
        device,       # of the data
        sync_bn=True, # on GPUs, BatchNorm takes its statistics over the batches of all processes
        **kwargs,     # of accelerate's `Accelerator`
    ):
        super().__init__()
        if num_distrib() < 2 and not dist.is_initialized(): raise ValueError(
            "there is one process alone: start several with `torchrun` or `accelerate launch`, and write "
            "`with learn.distrib_ctx(): ...`")
        try: from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError as e:
            raise ImportError("accelerate is needed to train in several processes: pip install accelerate") from e
        cpu = torch.device(device or 'cpu').type == 'cpu'
        # a head may have no gradient in a batch without objects
        ours = dict(cpu=cpu, mixed_precision='no',        # which is fastai's affair: `to_fp16`, `to_bf16`
                    kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
        self.accelerator,self.sync_bn = Accelerator(**{**ours, **kwargs}),sync_bn and not cpu
        self.rank,self.world = rank_distrib(),num_distrib()
        # objects travel between CPUs, whatever gradients do
        self.group = None if dist.get_backend() == 'gloo' else dist.new_group(backend='gloo')
        self.bare = self.wrapped = None
        self.norms,self.counting = {},[]

    def gather(self, o, # tensor, or a nest of tensors, of this process
    ) -> list:
        "`o` of all processes, by rank, on the CPU"
        res = [None]*self.world
        dist.all_gather_object(res, to_cpu(o), group=self.group)
        return res

    def of_first(self, o, # any object that can be pickled
    ):
        "`o` of rank 0"
        res = [o]
        dist.broadcast_object_list(res, src=0, group=self.group)
        return res[0]

    # --- the model: in several processes it is wrapped while it trains, and only then

    def wrap(self):
        self.bare = self.learn.model
        if self.sync_bn:
            named = self.bare.named_modules(remove_duplicate=False)
            self.norms = {k: m for k,m in named if isinstance(m, nn.modules.batchnorm._BatchNorm)}
            convert_sync_batchnorm(self.bare)
        self.wrapped = self.accelerator.prepare(self.bare)

    def unwrap(self):
        if self.wrapped is None: return
        for k,m in self.norms.items():   # they share weights and statistics with what took their place
            m.train(self.bare.get_submodule(k).training)
            self.bare.set_submodule(k, m)
        self.learn.model,self.bare,self.wrapped,self.norms = self.bare,None,None,{}

    def same_buffers(self, model=None, # `nn.Module`; None (default): the learner's
    ):
        "BatchNorm's statistics, and what else every process has of its own, become those of rank 0"
        for b in (self.bare if model is None else model).buffers(): dist.broadcast(b, 0)

    # --- training

    def before_fit(self):
        if self.rank:
            for cb in self.learn.cbs:
                if isinstance(cb, CSVLogger): cb.run = False     # until the fit is over
        finder = getattr(self.learn, 'lr_finder', None)
        if finder is not None: self.learn.n_epoch = finder.num_it//len(self.to_train(self.dls.train)) + 1

    def before_epoch(self):
        # to bring the weights back, `lr_find` waits for all, but fastai gives the file to rank 0 alone
        finder = getattr(self.learn, 'lr_finder', None)
        if finder is None or not self.rank or self.epoch: return
        torch.save(dict(model=self.learn.model.state_dict(), opt=self.opt.state_dict()),
                   self.path/self.model_dir/finder.tmp_p/'_tmp.pth')

    def to_train(self, dl) -> DataLoader:
        "The DataLoader of this process for an epoch: as many steps as all others"
        idxs = training_share(self.of_first(list(dl.get_idxs())), self.rank, self.world, dl.drop_last)
        return dl.new(get_idxs=partial(list, idxs), n=len(idxs), bs=min(dl.bs, len(idxs)), shuffle=False)

    def before_train(self):
        if self.wrapped is None: self.wrap()
        self.learn.dl,self.learn.model = self.to_train(self.learn.dl),self.wrapped
        self.start(self.recorder._train_mets[1:] if hasattr(self.learn, 'recorder') else [])

    def after_train(self):
        self.learn.model = self.bare
        self.same_buffers()
        if self.counting: self.finish()

    def after_fit(self):
        if self.wrapped is None: return
        if self.learn.model is self.wrapped: self.same_buffers()   # it was broken off in the middle of an epoch
        self.unwrap()

    # --- validation

    def before_validate(self):
        dl = self.learn.dl
        alone = any(getattr(cb, 'every_process', False) for cb in self.learn.cbs)
        # one batch is less work than to divide it; and a call of rank 0 alone, such as `predict`, waits for nobody
        self.shared = isinstance(dl, DataLoader) and len(dl) > 1 and not alone
        if not self.shared: return
        idxs = validation_share(self.of_first(list(dl.get_idxs())), self.rank, self.world, dl.bs, len(dl))
        self.learn.dl = dl.new(get_idxs=partial(list, idxs), n=len(idxs), shuffle=False)
        self.start(self.recorder._valid_mets if hasattr(self.learn, 'recorder') else [])

    def after_validate(self):
        if not self.shared: return
        self.shared,preds = False,getattr(self.learn, 'gather_preds', None)
        if preds is not None:
            self.counting.append((preds, [k for k in ('inputs', 'preds', 'targets', 'losses') if k in vars(preds)]))
        self.finish()

    def start(self, metrics, # list of metrics about to count a set
    ):
        self.counting = [(m, counted(m)) for m in metrics]

    def finish(self):
        "Every process gets what all have counted"
        mine = [{k: vars(o)[k] for k in names} for o,names in self.counting]
        for (o,names),*states in zip(self.counting, *self.gather(mine)):
            how = getattr(o, 'joins', {}) if isinstance(o, Metric) else {}
            for k in names: vars(o)[k] = joined([s[k] for s in states], how.get(k))
        self.counting = []

@contextmanager
def in_processes(learn, sync_bn=True, **kwargs):
    """`learn` while it works in the processes that `torchrun` or `accelerate launch` started, of which rank 0 alone
    prints and saves; where there is one, nothing changes"""
    if num_distrib() < 2 or hasattr(learn, 'distributed'):
        yield learn
        return
    cb,logger,bar = Distributed(learn.dls.device, sync_bn, **kwargs),learn.logger,hasattr(learn, 'progress')
    device = cb.accelerator.device
    if device.type != 'cpu': learn.dls.to(device); learn.model.to(device)      # each process has a GPU of its own
    set_seed(int(torch.randint(2**31, ())) + cb.rank)      # each process augments in its own way
    with ExitStack() as after:
        after.callback(learn.remove_cb, cb)
        after.callback(cb.unwrap)
        learn.add_cb(cb)
        if cb.rank:
            after.enter_context(redirect_stdout(after.enter_context(open(os.devnull, 'w'))))
            after.callback(setattr, learn, 'logger', logger)
            learn.logger = noop
            if bar:
                learn.remove_cb(ProgressCallback)
                after.callback(learn.add_cb, ProgressCallback)
        yield learn
