"The end of mosaic in training, as in YOLOX (Ge et al., 2021, arXiv:2107.08430)"
from __future__ import annotations
from fastai.callback.core import Callback
from ..data.transforms import JointTransform

__all__ = []

class EndMosaic(Callback):
    """Turn off the mosaic of `JointTransform` after the share `mosaic_until` of the epochs, so that training ends with
    whole images as they are predicted. It depends on the number of the epoch alone, so that a training that goes on
    (`start_epoch`) does the same; worker processes start with each epoch and know it"""
    order = -60   # before all that looks at batches
    def _set(self, on):
        for o in getattr(self.learn.dls.train, 'after_item', None).fs:
            if isinstance(o, JointTransform): o.mosaic_on = on(o)

    def before_train(self):
        # a range test has epochs of its own
        test = hasattr(self.learn, 'lr_finder')
        self._set(lambda o: test or self.epoch < o.mosaic_until*self.n_epoch)

    def after_fit(self): self._set(lambda o: True)
