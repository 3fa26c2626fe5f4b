"Nets whose weights come from elsewhere, without the time that random ones take"
import torch
from torch.overrides import TorchFunctionMode

class Undrawn(TorchFunctionMode):
    "Inside of it new weights hold whatever the memory holds"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        drawn = func in (torch.Tensor.normal_, torch.Tensor.uniform_)
        return args[0] if drawn else func(*args, **kwargs or {})
