"Colours of classes: the same in every task and plot, and far apart for colour-blind readers too"
from __future__ import annotations
from functools import lru_cache
import numpy as np
from ..arguments import Kind, checked, is_whole, numbers, several, whole

__all__ = ['palette', 'class_colours', 'is_background', 'text_colour']

# Okabe & Ito's colours for all kinds of colour vision (https://jfly.uni-koeln.de/color/), without black, and without
# yellow, which is hard to see on white
_FIRST = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#d55e00', '#56b4e9')
_VOCAB = several(Kind("a name, or a number", lambda o: isinstance(o, str) or is_whole(o)), "a list of class names")
_MOST  = 256   # distinct colours; then they repeat

_UNPAINTED = '#na#', 'ignored'   # not classes: padding and ignored objects

@checked(n=whole(0, 10**6))
def palette(
    n:int,       # number of colours
) -> np.ndarray: # (n, 3) RGB in [0, 1]
    """`n` colours, each as different as possible from all before it, for normal and for red- and green-blind vision;
    the first ones do not depend on `n`. They repeat after 256"""
    return _distinct()[np.arange(n)%_MOST].reshape(n, 3)

@checked(vocab=_VOCAB)
def class_colours(
    vocab,   # list of c class names, in any order
) -> dict:   # name -> (3,) colour in [0, 1]
    """The colour of each class. It depends only on the set of class names: not on their order, and not on a class for
    the background or for images without an object, so that a class has the same colour in every task. Those two are
    grey"""
    names  = list(map(str, vocab))
    rest   = {n for i,n in enumerate(names) if n in _UNPAINTED or (not i and is_background.unchecked(names))}
    real   = sorted({*names} - rest)
    return {**dict(zip(real, palette(len(real)))), **{n: np.full(3, .5) for n in rest}}

@checked(vocab=_VOCAB)
def is_background(
    vocab,   # list of class names
) -> bool:
    "Whether the first class is called 'background', whatever its case and underscores; False for no classes"
    return len(vocab) > 0 and str(vocab[0]).strip('_').lower() == 'background'

@checked(colour=numbers((3,), (4,), what="red, green and blue in [0, 1]", lo=0, hi=1))
def text_colour(
    colour,  # (3,) RGB in [0, 1], behind the text; a fourth value (alpha) is ignored
) -> str:    # 'black' or 'white'
    "The text colour with the higher contrast to `colour` (WCAG 2.1's ratio of relative luminances)"
    # black's contrast is (l + .05)/.05, white's 1.05/(l + .05): they are equal at sqrt(1.05*.05) - .05
    return 'black' if _linear(np.asarray(colour)[:3])@_LUMINANCE > (1.05*.05)**.5 - .05 else 'white'

# --- perceived distances of colours

_LUMINANCE = np.array([.2126, .7152, .0722])   # of sRGB's primaries

# linear RGB as seen without the L or the M cones: Machado, Oliveira & Fernandes, 2009, table 1, severity 1
_VISION = np.array([np.eye(3),
                    [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
                    [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]]])

# linear RGB -> cone responses -> OKLab: Ottosson, 2020, https://bottosson.github.io/posts/oklab/
_CONES = np.array([[.4122214708, .5363325363, .0514459929], [.2119034982, .6806995451, .1073969566],
                   [.0883024619, .2817188376, .6299787005]])
_LAB   = np.array([[.2104542553, .7936177850, -.0040720468], [1.9779984951, -2.4285922050, .4505937099],
                   [.0259040371, .7827717662, -.8086757660]])

def _linear(rgb): return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4)

def _oklab(linear): return np.cbrt((linear@_CONES.T).clip(0))@_LAB.T

def _rgb(code): return [int(code[i:i+2], 16)/255 for i in (1, 3, 5)]

@lru_cache(1)
def _distinct():   # -> (256, 3)
    "Okabe & Ito's colours, then always the colour farthest from its nearest predecessor, for the worst kind of vision"
    steps = np.linspace(0, 1, 18)
    grid  = np.stack(np.meshgrid(steps, steps, steps, indexing='ij'), -1).reshape(-1, 3)
    light,*ab = _oklab(_linear(grid)).T
    # neither too light for a white page, nor so dark that it looks like void, nor grey, which is not for classes
    grid  = np.concatenate([[_rgb(o) for o in _FIRST], grid[(light > .38) & (light < .86) & (np.hypot(*ab) > .06)]])
    seen  = np.stack([_oklab((_linear(grid)@v.T).clip(0, 1)) for v in _VISION], 1)   # (m, 3 kinds of vision, 3)
    away,chosen = np.full(len(grid), np.inf),[]
    for i in range(_MOST):
        chosen.append(i if i < len(_FIRST) else int(away.argmax()))
        # normal vision is the most common, so that differences that only it sees count too
        d = np.linalg.norm(seen - seen[chosen[-1]], axis=-1)
        away = np.minimum(away, .5*d[:,0] + .5*d.min(1))
    return grid[chosen]
