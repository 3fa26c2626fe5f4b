"What the pixels of mask files mean: class names by value or by colour"
from __future__ import annotations
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
import numpy as np
from ...arguments import PATH, Kind, brief, checked, either, instance, is_whole, nearest, several
from ..class_masks import MaskTable
from ..errors import AnnotationError
from ..reading import read_yaml
from ...ops.masks import VOID

__all__ = ['read_codes']
CODES   = either(several(Kind("a name", lambda o: isinstance(o, str)), "a list of names"),
                 instance(Mapping, what="{value: name}"), Kind("a yaml file of either", PATH.ok))
COLORS  = Kind("{value or (r, g, b): name or index}, or a list of values or colours in the order of codes",
               lambda o: isinstance(o, (Mapping, list, tuple)) or isinstance(o, np.ndarray) and o.ndim > 0)
VOID_VALUES    = Kind("a value, a colour (r, g, b), or a list of such, () for none",
                      lambda o: is_whole(o) or isinstance(o, (list, tuple)) or isinstance(o, np.ndarray) and o.ndim > 0)

@checked()
def read_codes(
    fname,          # yaml file with `classes` or `names`: a list, or a table of values and names
) -> dict[int,str]: # {value in the mask files: class name}
    """Read the classes of mask files, for `read_masks`; `list(codes.values())` is the vocab. Values may skip numbers.
    Names are read as text, also `no` and `007`. Raises `AnnotationError`"""
    fname = Path(fname)
    try: data = read_yaml(fname)
    except FileNotFoundError:
        raise AnnotationError(f"{fname}: no such yaml file; "
                              "codes is a list of names, {value: name}, or such a file") from None
    found = [data[k] for k in ('classes', 'names') if k in data] if isinstance(data, dict) else []
    if len(found) != 1 or not isinstance(found[0], (list, dict)):
        what = brief(sorted(data) if isinstance(data, dict) else data)
        raise AnnotationError(f"{fname}: expected `classes` or `names`, a list or a table of values and names, "
                              f"got {what}; fix the file, or pass codes as {{value: name}}")
    codes = found[0] if isinstance(found[0], dict) else dict(enumerate(found[0]))
    try: codes = {int(k): v for k,v in codes.items()}
    except ValueError:
        raise AnnotationError(f"{fname}: expected whole numbers as values, got {brief(list(codes))}; "
                              "fix the file") from None
    if len(codes) < len(found[0]): raise AnnotationError(f"{fname}: a value appears twice (01 is 1); fix the file")
    far = [v for v in codes if abs(v) >= 2**31]
    if far: raise AnnotationError(f"{fname}: expected values below 2**31, got {brief(far[0])}; fix the file")
    try: return values_of_codes(codes)
    except ValueError as e: raise AnnotationError(f"{fname}: {e}") from None

def values_of_codes(codes):   # -> {value: name}, in the order of the class indices
    "`codes` of any kind as class names by value, checked"
    if isinstance(codes, (str, Path)): return read_codes(codes)
    codes = dict(codes) if isinstance(codes, Mapping) else dict(enumerate(codes))
    for v,o in codes.items():
        if not isinstance(o, str) or not o.strip() or not isinstance(v, Integral):
            raise ValueError(f"codes: expected names, or {{whole number: name}}, got {brief(v)}: {brief(o)}")
    names = list(codes.values())
    twice = [o for o in names if names.count(o) > 1]
    if twice:
        raise ValueError(f"codes: {brief(twice[0])} appears twice; every class needs its own name; for several "
                         "values of one class pass colors={value: name}")
    if not names: raise ValueError("codes is empty; expected class names")
    if len(names) > VOID and names[VOID] != 'void':
        raise ValueError(f"codes: index {VOID} is always void, so of {len(names)} codes that "
                         f"one must be 'void', not {brief(names[VOID])}; insert it there")
    return codes

def mask_table(codes, colors, void):   # codes {value: name} -> MaskTable
    "The `MaskTable` that `codes`, `colors` and `void` describe"
    names = list(codes.values())
    if colors is None: items = list(zip(codes, names))
    elif list(codes) != list(range(len(codes))):
        raise ValueError("codes and colors both have values; with colors, codes is a list of names")
    elif isinstance(colors, Mapping): items = list(colors.items())
    elif len(colors) == len(names):   items = list(zip(colors, names))
    else: raise ValueError(f"colors: expected one for each of the {len(names)} codes, got {len(colors)}")
    colours,table = bool(items) and not isinstance(items[0][0], Integral),{}
    def put(key, i):
        if table.setdefault(_number(key, colours), i) == i: return
        both = ' and '.join('void' if j == VOID else repr(names[j]) for j in (table[_number(key, colours)], i))
        raise ValueError(f"{key!r} is both {both}; remove it from one of them")
    for k,o in items: put(k, _index(o, names))
    if void is None: void = [] if colours or 255 in table else 255
    for k in [void] if isinstance(void, Integral) or colours and _is_colour(void) else void: put(k, VOID)
    values,indices = np.array(sorted(table.items()), np.int32).T
    return MaskTable(values, indices.astype(np.uint8 if indices.max() < 256 else np.int32), colours)

def _is_colour(o):
    return (isinstance(o, (tuple, list, np.ndarray)) and len(o) == 3 and
            all(isinstance(c, Integral) and 0 <= c < 256 for c in o))

def _number(k, colours):
    if colours and _is_colour(k): r,g,b = map(int, k); return 65536*r + 256*g + b
    if not colours and isinstance(k, Integral) and abs(k) < 2**31: return int(k)
    raise ValueError(f"expected {'colours (r, g, b) of 0 to 255' if colours else 'whole numbers'}, got {brief(k)}; "
                     "colors and void hold either colours or values")

def _index(o, names):
    "The class index of a name or an index"
    if isinstance(o, str) and o in names: return names.index(o)
    if isinstance(o, Integral) and (0 <= o < len(names) or o == VOID): return int(o)
    raise ValueError(f"colors: {brief(o)} is not one of the {len(names)} codes, by name or index{nearest(o, names)}")
