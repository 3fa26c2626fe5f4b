"How OpenMP's threads wait. Imported before torch, so that it imports nothing that imports torch"
from __future__ import annotations
import os, sys

__all__ = ['wait_passively']

def wait_passively() -> bool:
    """Let OpenMP's threads sleep while they wait, instead of spinning (`OMP_WAIT_POLICY=PASSIVE`): beside another busy
    process, threads that spin take the core that the others wait for, and training takes ten times as long. It must be
    called before torch is imported, which reads the variable then; returns whether that was so. A value that the user
    has set stays"""
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    return 'torch' not in sys.modules
