"""Arguments are checked where a user passes them: one rule for each kind of argument, and one kind of error

`@checked()` above a public function checks every parameter whose name has a kind in `KINDS`, for a name means the same
in the whole package; `@checked(name=kind)` says otherwise for that function, and `@checked(name=None)` leaves one
alone. A parameter's own default is always accepted, so that `None` need not be named where it is the default"""
from __future__ import annotations
import inspect, os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from numbers import Integral, Real
from reprlib import Repr
import numpy as np

__all__ = ['Kind', 'KINDS', 'checked', 'checked_methods', 'check_thresh', 'brief', 'came', 'nearest', 'error',
           'is_whole', 'is_number', 'whole', 'number', 'numbers', 'choice', 'either', 'several', 'instance', 'FLAG',
           'TEXT', 'PATH', 'NAMES', 'SIZE', 'WIDTH_HEIGHT', 'FUNCTION', 'SEED', 'SHARE', 'FRACTION', 'COUNT',
           'POSITIVE', 'IOU', 'BETA', 'AXES', 'LEAST_THRESH', 'PATHS', 'COLUMN']

# --- values in messages

_REPR = Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 500
for _kind in ('list', 'tuple', 'dict', 'set', 'frozenset', 'deque', 'array'): setattr(_REPR, f'max{_kind}', 20)

def brief(
    o,         # any value, however large
    n:int=80,  # most characters
) -> str:
    "`repr(o)` for a message, cut to `n` characters; of deep and long values no more than that is built"
    s = _REPR.repr(o)
    return s if len(s) <= n else f'{s[:n-3]}...'

def nearest(
    name,  # what was passed
    names, # the names that exist
) -> str:
    "'; did you mean ...?' where one of `names` resembles `name`"
    close = get_close_matches(str(name), [str(o) for o in names], 1)
    return f"; did you mean {close[0]!r}?" if close else ''

def came(o, # any value
):
    "What a message says that it got; the type where the value alone does not show it"
    if isinstance(o, (str, bytes, int, float, complex, bool, type(None), list, tuple, dict, set)): return brief(o)
    shape = getattr(o, 'shape', None)
    if isinstance(shape, tuple) and hasattr(o, 'dtype'):
        return f"{type(o).__name__} of shape {tuple(shape)} and type {o.dtype}"
    return f"{brief(o)} of type {type(o).__name__}"

# --- kinds

@dataclass(frozen=True)
class Kind:
    "What an argument may be"
    expected:str                      # for the message: "expected ..."
    ok:Callable[[object],bool]        # whether a value is one; an exception means that it is not
    todo:Callable|str = ''            # what to do, or value -> that
    convert:Callable = None           # (name, value) -> what the function gets, of which `ok` decides; None: the value

    def __call__(self, name, value):
        "`value`, converted. Raises `ValueError` that names the argument"
        res = value
        try:
            if self.convert is not None: res = self.convert(name, value)
            if self.ok(res): return res
        except ValueError as e:
            if getattr(e, 'ours', False): raise
        except Exception: pass   # a foreign object that can be compared with nothing
        todo = self.todo(value) if callable(self.todo) else self.todo
        raise error(f"{name}: expected {self.expected}, got {came(value)}" + (f"; {todo}" if todo else ''))

def error(text, # the whole message
) -> ValueError:
    "A `ValueError` that a kind passes on as it is"
    e = ValueError(text)
    e.ours = True
    return e

def is_whole(o, # any value
) -> bool:
    "Whether `o` is a whole number, numpy's too; a bool is none"
    return isinstance(o, Integral) and not isinstance(o, (bool, np.bool_))

def is_number(o, # any value
) -> bool:
    "Whether `o` is a finite real number, numpy's too; a bool is none"
    return isinstance(o, Real) and not isinstance(o, (bool, np.bool_)) and abs(o) < float('inf')

def _range(lo, hi):
    if lo is None and hi is None: return ''
    return f" of {lo} or more" if hi is None else f" of at most {hi}" if lo is None else f" from {lo} to {hi}"

def whole(
    lo:int=None,               # smallest; None (default): no limit
    hi:int=2**31 - 1,          # largest; None: no limit
    what:str="a whole number", # how the message names such a value
) -> Kind:
    "Whole numbers from `lo` to `hi`, both included; numpy's too, but no bool"
    text = _range(lo, None if hi == 2**31 - 1 else hi)
    return Kind(what + text, lambda o: is_whole(o) and (lo is None or o >= lo) and (hi is None or o <= hi))

def number(
    lo=None,             # smallest; None (default): no limit
    hi=None,             # largest; None (default): no limit
    open:bool=False,     # exclude `lo` and `hi` themselves
    what:str="a number", # how the message names such a value
) -> Kind:
    "Finite numbers from `lo` to `hi`; `open`: without these two"
    inside = (lambda o: (lo is None or o > lo) and (hi is None or o < hi)) if open else (
              lambda o: (lo is None or o >= lo) and (hi is None or o <= hi))
    text = _range(lo, hi)
    if open: text = f" above {lo}" if hi is None else f" between {lo} and {hi}, both excluded"
    # whole numbers beyond those of C become floats
    convert = lambda name, o: float(o) if is_whole(o) and abs(o) >= 2**53 else o
    return Kind(what + text, lambda o: is_number(o) and inside(o), convert=convert)

def choice(
    *options,      # the values
    what:str=None, # how the message names them; None (default): it lists them
) -> Kind:
    "One of some values, compared with their types: 1 is not True"
    def ok(o): return any(o is v or type(o) is type(v) and o == v for v in options)
    names = [brief(v) for v in options]
    text = what or (f"one of {', '.join(names)}" if len(names) > 1 else names[0])
    return Kind(text, ok, lambda o: nearest(o, [v for v in options if isinstance(v, str)]).removeprefix('; ')
                                    if isinstance(o, str) else '')

def instance(
    *types,   # classes
    what:str, # how the message names such a value
) -> Kind:
    "Instances of one of `types`"
    return Kind(what, lambda o: isinstance(o, types))

def either(*kinds:Kind, # tried in this order
) -> Kind:
    "What is of one of `kinds`; the first that fits converts"
    def convert(name, o):
        inner = []
        for k in kinds:
            try: return k(name, o)
            except ValueError as e: inner.append(e)
        # where it is a list with one bad value, the message is about that
        for e in inner:
            if str(e).startswith(f'{name}, '): raise e
        raise TypeError
    return Kind(', or '.join(k.expected for k in kinds), lambda o: True,
                lambda o: next((t for k in kinds if (t := k.todo(o) if callable(k.todo) else k.todo)), ''), convert)

def several(
    kind:Kind,    # of each value
    what:str,     # for the message, such as "a list of numbers"
    n:int=None,   # how many there are; None (default): `least` or more
    least:int=0,  # fewest values, where `n` is None
    todo='',      # as of `Kind`
) -> Kind:
    "A list of values of `kind`; whatever can be iterated becomes one, except texts, sets and tables"
    def convert(name, o):
        items = list(_items(o))
        if kind.convert is None and all(map(kind.ok, items)): return items   # fast where all is well
        return [kind(f'{name}, number {i}', v) for i,v in enumerate(items)]
    return Kind(what, lambda o: (len(o) == n if n is not None else len(o) >= least), todo, convert)

def numbers(
    *shapes,      # tuples of sizes, where None is any and `...` in front any number of axes; none: any shape
    what:str,     # for the message, such as "(n, 4) boxes"
    types='biuf', # kinds of numpy's types: b bool, i and u whole numbers, f floating point
    lo=None, hi=None, # of every number, of which there is one or more; nan is neither
    todo='',      # as of `Kind`
) -> Kind:
    "Numbers as an array, a tensor or nested lists, or one of them where `()` is a shape; they are not converted"
    def fits(shape, s):
        if s[:1] == (...,): shape,s = shape[max(len(shape) - len(s) + 1, 0):],s[1:]
        return len(shape) == len(s) and all(n in (None, m) for n,m in zip(s, shape))
    def ok(o):
        a = o if hasattr(o, 'is_floating_point') else np.asarray(o)
        return (_type(a) in types and (not shapes or any(fits(tuple(a.shape), s) for s in shapes)) and
                (lo is None or 0 not in a.shape and bool((a >= lo).all())) and (hi is None or bool((a <= hi).all())))
    return Kind(what, ok, todo)

def _type(a):
    "The kind of the type of an array or tensor, as numpy writes it"
    if isinstance(a, np.ndarray): return a.dtype.kind
    return 'f' if a.is_floating_point() else 'c' if a.is_complex() else 'b' if 'bool' in str(a.dtype) else 'i'

def _items(o):
    if isinstance(o, (str, bytes, bytearray, Mapping, Set, os.PathLike)): raise TypeError
    return o.tolist() if hasattr(o, 'tolist') else o

def _path(o): return isinstance(o, (str, os.PathLike)) and bool(os.fspath(o)) and '\0' not in str(o)

FLAG     = Kind("True or False", lambda o: isinstance(o, (bool, np.bool_)))
TEXT     = Kind("a text that is not empty", lambda o: isinstance(o, str) and bool(o.strip()))
PATH     = Kind("a path, as text or `Path`", _path)
PATHS    = several(PATH, "a list of paths")
FUNCTION = Kind("a function", lambda o: callable(o) and not isinstance(o, type),
                lambda o: f"write {o.__name__}()" if isinstance(o, type) else '')
SEED     = whole(0, 2**32 - 1)
SHARE    = Kind("a share between 0 and 1, both excluded", number(0, 1, open=True).ok,
                lambda o: f"write {o/100:g} for {o:g} %" if is_number(o) and 1 < o < 100 else '')
FRACTION = number(0, 1)
COUNT    = whole(1)
POSITIVE = number(0, open=True)
NAMES    = several(Kind("a name, which is a text", lambda o: isinstance(o, str)), "a list of names",
                   todo=lambda o: f"write [{brief(o)}] for one name" if isinstance(o, str) else '')
SIZE     = Kind("pixels: a whole number of 1 or more, or (width, height)",
                lambda o: all(is_whole(v) and 0 < v < 2**31 for v in ([o] if is_whole(o) else o)) and
                          (is_whole(o) or isinstance(o, (tuple, list)) and len(o) == 2))
WIDTH_HEIGHT = Kind("(width, height), two whole numbers of pixels, 1 or more",
                    lambda o: len(o) == 2 and all(is_whole(v) and 0 < v < 2**31 for v in o))
COLUMN   = Kind("a column, by its name or its number from 0", lambda o: isinstance(o, str) or is_whole(o),
                convert=lambda name, o: int(o) if is_whole(o) else o)
IOU      = Kind("an IoU above 0, at most 1, such as 0.5", lambda o: is_number(o) and 0 < o <= 1)
BETA     = Kind("a number above 0, at most 1000000", lambda o: is_number(o) and 0 < o <= 10**6, '', POSITIVE.convert)
AXES     = Kind("an Axes of matplotlib", lambda o: hasattr(o, 'add_patch') and hasattr(o, 'figure'))

# what a name means wherever nothing else is said; `data.annotation` adds those of annotations
KINDS = dict(
    vocab=NAMES, seed=SEED, bs=COUNT, num_workers=whole(0), valid_pct=SHARE, n_out=COUNT, n_in=COUNT,
    allow_outside=FLAG,
    on_error=choice('raise', 'drop'), split=choice('train', 'valid', 'test'), size=SIZE, ax=AXES,
    path=PATH, fname=PATH, dest=PATH, per_class=FLAG, iou=FRACTION, beta=BETA, ps=number(0, 1),
    min_score=FRACTION, max_dets=COUNT, width=POSITIVE, ncols=whole(1, 1000), n_bins=whole(1, 10**6),
    ds_idx=whole(0), with_input=FLAG,
    ci=Kind("a confidence between 0 and 1, both excluded", number(0, 1, open=True).ok))

# --- the border

LEAST_THRESH = -2.**-8   # a threshold that predicts all, tuned where the lowest score is 0, is just below 0

def check_thresh(
    thresh,       # a number, or one per class
    n:int=None,   # classes; None: one number alone
) -> np.ndarray:  # () or (n,) float32
    "`thresh` as an array. Raises `ValueError` where it is neither, or outside [0, 1]"
    try: t = np.asarray(thresh, dtype=np.float32)
    except (TypeError, ValueError, OverflowError): t = np.full((), np.nan)
    inside = t.shape in ((), (n,)) and ((t >= LEAST_THRESH) & (t <= 1)).all()
    if inside and not isinstance(thresh, (bool, str, bytes)): return t
    many = '' if n is None else f", or one for each of the {n} classes"
    raise ValueError(f"thresh: expected a number in [0, 1]{many}, got {came(thresh)}")

def checked(**kinds, # name of a parameter -> its `Kind`, or None for one that is not checked
):
    "Decorator of a function or method whose arguments are checked; `kinds` by name, before those of `KINDS`"
    def decorate(f):
        params = inspect.signature(f).parameters
        unknown = kinds.keys() - params.keys()
        assert not unknown, f"{f.__qualname__} has no parameters {unknown}"
        rules = {}
        for n,p in params.items():
            kind = kinds[n] if n in kinds else KINDS.get(n)
            if kind is not None and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD): rules[n] = (kind, p.default)
        order = [n for n,p in params.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        def one(n, v):
            if n not in rules: return v
            kind,default = rules[n]
            return v if v is default else kind(n, v)
        @wraps(f)
        def wrapper(*args, **kwargs):
            args = [one(n, v) for n,v in zip(order, args)] + list(args[len(order):])
            return f(*args, **{n: one(n, v) for n,v in kwargs.items()})
        wrapper.checked = True
        wrapper.unchecked = f   # for calls of our own that are made for each object, or with names of other types
        return wrapper
    return decorate

def checked_methods(cls, # class whose public methods are checked
):
    "Class decorator: all public methods check the arguments whose names have kinds in `KINDS`"
    for name,f in list(vars(cls).items()):
        if name[0] == '_' or not inspect.isfunction(f) or hasattr(f, 'checked'): continue
        if KINDS.keys() & inspect.signature(f).parameters.keys(): setattr(cls, name, checked()(f))
    return cls
