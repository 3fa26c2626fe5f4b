"Warnings that show the user's own line, however deep in the package they arise"
from __future__ import annotations
import sys, warnings

__all__ = ['warn']

# who may stand between a user and a warning
_NOT_USERS = {__name__.split('.')[0], 'torch', 'fastai', 'fastcore', 'plum', 'contextlib'}

def warn(
    text,                 # the message
    category=UserWarning, # class of the warning
):
    "`warnings.warn` at the innermost line that is neither ours nor fastai's or torch's: the user's"
    frame,level = sys._getframe(1),1
    while frame.f_back is not None and frame.f_globals.get('__name__', '').split('.')[0] in _NOT_USERS:
        frame,level = frame.f_back,level + 1
    warnings.warn(text, category, stacklevel=level + 1)
