"What distinguishes one task from another, in one record; its DataLoaders and learners are made from it"
from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
from ..models.layers import check_n_out
from .build import input_stats, is_named, normalize_once, parameter_groups
from .checks import check_data
from .memory_format import to_channels_last
from .loaders import balanced, cached, loaders_of_block, splitter_of
from .recipes import Recipe
from ..warning import warn

__all__ = []

@dataclass(frozen=True)
class Task:
    "The parts of a task"
    name:str            # as the registry knows it
    learner:type        # subclass of `TaskLearner`
    block:Callable      # (vocab, splitter=..., **block_kwargs) -> DataBlock
    prepare:Callable    # (annotations, vocab or None, **options) -> annotations, vocab: checked, clipped, completed
    build:Callable      # (dls, arch, encoder, n_out, pretrained, arch_kwargs) -> model, what is pretrained of it
    loss:Callable       # (name, loss or None, n_out) -> loss
    metrics:Callable    # () -> list of metrics, those of `valid` in the log
    n_out:Callable      # dls.vocab -> number of outputs
    recipe:Recipe       # of `fine_tune`
    single:bool = False # one label for each image, so that `balance` shows all classes equally often

    # the learner's class knows its task, so that a learner that is made by hand has its recipe too
    def __post_init__(self): self.learner.task,self.learner.recipe = self,self.recipe

def task_dls(task, annotations, vocab, bs, path, valid_pct, seed, num_workers, device, check, block_kwargs, cache,
             balance=None, **options):
    "The DataLoaders of `task`: its annotations are checked and prepared first, so that training does not fail later"
    annotations,vocab = task.prepare(check_data(annotations), None if vocab is None else list(vocab), **options)
    splitter = splitter_of(block_kwargs, valid_pct, seed)
    block = task.block(vocab, splitter=splitter, **block_kwargs)
    dls = loaders_of_block(block, annotations, bs, path, num_workers, device, check is True)
    return cached(balanced(dls, balance, task.single), cache)

def task_learner(task, dls, arch, encoder, pretrained, n_out, arch_kwargs, loss_func, metrics, splitter, normalize, cbs,
                 learner_kwargs):
    """The learner of `task` on `dls`: it normalizes as its weights need, what is pretrained is frozen, and its recipe
    is that of the task and the architecture"""
    n_out = check_n_out(task.n_out(dls.vocab) if n_out is None else n_out)
    model,weights = task.build(dls, arch, encoder, n_out, pretrained, arch_kwargs)
    if is_named(arch): to_channels_last(model)   # faster, or as fast (benchmarks/channels_last.py); equal results
    stats = input_stats(model, normalize)
    normalize_once(dls.loaders, *stats)
    if splitter is None:
        splitter = parameter_groups
        if getattr(model, 'encoder', None) is None: warn(
            f"{type(model).__name__} has no attribute `encoder`, so all its parameters are one group and `fine_tune` "
            "trains them all from the start; pass a `splitter` to freeze a part at first")
    learn = task.learner(dls, model, loss_func=task.loss(loss_func, n_out), splitter=splitter, cbs=cbs,
                         metrics=task.metrics() if metrics is None else metrics, **learner_kwargs)
    learn.stats  = stats
    learn.recipe = task.recipe.replace(**getattr(model, 'recipe', {}))
    if not weights and is_named(arch): learn.recipe = learn.recipe.from_scratch()
    if learn.in_pixels: learn.check_view()
    if weights and getattr(model, 'encoder', None) is not None: learn.freeze()
    return learn
