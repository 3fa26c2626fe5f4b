"Compilation of a learner's model by `torch.compile`"
from __future__ import annotations
import torch
from torch import Tensor
from fastai.torch_core import get_model
from ..arguments import FUNCTION, Kind, checked, checked_methods, either

__all__ = ['Compiling']

BACKEND = either(Kind("a backend of `torch.compile`", lambda o: o in torch.compiler.list_backends(exclude_tags=()),
                      "`torch.compiler.list_backends()` has the names"), FUNCTION)

def plain(o):
    "A tensor without its subclass, which the compiled code cannot make; any other argument as it is"
    return o.as_subclass(Tensor) if isinstance(o, Tensor) else o

@checked_methods
class Compiling:
    "What compiles the model of a `TaskLearner`"
    @checked(backend=BACKEND)
    def compile(self,
        backend='inductor', # of `torch.compile`: a name, or a function; on a CPU 'inductor' needs a C++ compiler
        **kwargs,           # of `torch.compile`: `mode`, `dynamic`, `fullgraph`, ...
    ):
        """Compile the model in place, by `torch.compile`, and return the learner. The names of the parameters stay, so
        that `save`, `load`, `freeze` and `unfreeze` work as before; an exported learner is not compiled, until its
        `compile` is called. Compilation takes minutes on a CPU, at the first batch of each kind: in training and in
        evaluation, with the encoder frozen and not. It pays in long trainings.

        The first validation batch goes through the model at once, so that an error of the backend comes now. Tested on
        multilabel, keypoint and segmentation; the graphs of detectors depend on what they detect, so that they gain
        little"""
        model = get_model(self.model)
        model.compile(backend=backend, **kwargs)
        compiled = model._compiled_call_impl
        # dynamo cannot return to fastai's subclasses of tensors where a graph breaks
        model._compiled_call_impl = lambda *args, **kwargs: compiled(*map(plain, args), **kwargs)
        if len(self.dls.valid.dataset): self._try_compiled()
        return self

    def _try_compiled(self):
        "One batch through the model, in evaluation; where that fails the model is as it was"
        b,mode = self.dls.valid.one_batch(),self.model.training
        try:
            with torch.no_grad(): self.model.to(self.dls.device).eval()(*b[:self.dls.n_inp])
        except Exception:
            get_model(self.model)._compiled_call_impl = None
            raise
        finally: self.model.train(mode)
