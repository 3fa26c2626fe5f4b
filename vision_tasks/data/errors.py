"The error for annotations that cannot be used"
from __future__ import annotations

__all__ = ['AnnotationError']

class AnnotationError(ValueError):
    "An annotation that has no meaning; the message names file, field and row"
