"Items of a training set that are mixed with others of the same set"
from __future__ import annotations
import random
from fastai.data.load import SkipItemException
from .mixing import Mixture
from .transforms import JointTransform

__all__ = []

class MixingDL:
    """Part of a DataLoader whose `JointTransform` may mix images: it hands over the other items, drawn from its own
    set. The transform holds no data, so that neither worker processes nor an exported learner carry a second copy"""
    def do_item(self, s):   # index of the item
        joint = self._mixes()
        if joint is None: return super().do_item(s)
        try:
            others = [self.create_item(random.randrange(len(self.dataset))) for _ in range(joint.draw_others())]
            return self.after_item(Mixture(self.create_item(s), others))
        except SkipItemException: return None

    def _mixes(self):
        "The `JointTransform` that mixes images, in training; None if there is none. Raises if it is not the first"
        fs = self.after_item.fs if getattr(self.after_item, 'split_idx', None) == 0 else ()
        at = next((i for i,o in enumerate(fs) if isinstance(o, JointTransform) and o.mixes), None)
        if at: raise ValueError(
            f"JointTransform mixes images, but {type(fs[0]).__name__} comes before it, which takes a single item: put "
            "JointTransform first")
        return None if at is None else fs[at]
