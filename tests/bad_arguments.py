"""The argument matrix: every argument of every public function meets values that make no sense

Each of the files test_arguments_*.py has a table `CALLS` of calls that work. `faults` replaces one argument after the
other by each of `BAD`, and lists what a user should not see: an error that is not ours, or no error where `ACCEPTS`
does not say that the value makes sense. `ACCEPTS` is written by hand and knows nothing of the kinds in the package"""
import inspect, math, traceback
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
import numpy as np, torch
import vision_tasks
from vision_tasks.data.annotation import Annotation

ROOT = str(Path(vision_tasks.__file__).parent)

BAD = {
    'None': None, '0': 0, '-1': -1, '1': 1, '2': 2, '10**30': 10**30, '.5': .5, '1.5': 1.5, '-.5': -.5,
    '1e308': 1e308, 'nan': math.nan, 'inf': math.inf, 'True': True, "''": '', "'nonsense'": 'nonsense', "'1'": '1',
    "b'x'": b'x', '[]': [], '[None]': [None], "['x', 'y']": ['x', 'y'], '(1, 2, 3)': (1, 2, 3), '{}': {},
    "{'a': 1}": {'a': 1}, 'object()': object(), 'a path': Path('no/such/file'), 'nan array': np.array([np.nan]),
    'empty tensor': torch.zeros(0), '1j': 1j, 'a class': dict, 'an annotation': Annotation('no/such.png', (4, 4))}
# for the ordinary suite: those that most faults came from
FEW = ['None', '-1', '10**30', 'nan', "'nonsense'", 'object()']

def whole(lo, hi=2**31 - 1):
    return lambda v: isinstance(v, Integral) and not isinstance(v, bool) and lo <= v <= hi
def number(lo=-1.7e308, hi=1.7e308):
    return lambda v: isinstance(v, Real) and not isinstance(v, bool) and lo <= v <= hi
def one_of(*options): return lambda v: any(type(v) is type(o) and v == o for o in options)
def names(v): return isinstance(v, Sequence) and not isinstance(v, (str, bytes)) and all(isinstance(o, str) for o in v)
def flag(v): return isinstance(v, bool)
def text(v): return isinstance(v, str) and bool(v)
def path(v): return isinstance(v, (str, Path)) and str(v) != ''
def table(v): return isinstance(v, Mapping) and all(isinstance(k, str) for k in v)
def either(*some): return lambda v: any(o(v) for o in some)
def never(v): return False
def anything(v): return True

# what makes sense, by the name of the parameter, or by 'function.parameter' where a name means something else there
ACCEPTS = dict(
    vocab=names, seed=whole(0, 2**32 - 1), bs=whole(1), num_workers=whole(0, 64), valid_pct=number(1e-9, 1 - 1e-9),
    n_out=whole(1), n_in=whole(1), path=path, fname=path, dest=path, per_class=flag, iou=number(0, 1),
    beta=number(1e-300), ps=number(0, 1), min_score=number(0, 1), max_dets=whole(1), width=number(1e-300),
    ncols=whole(1), size=either(whole(1), one_of((1, 2))), title=text, alpha=number(0, 1), check=flag,
    annotations=one_of([]), predictions=one_of([]))

def faults(calls, values=BAD, accepts=None, works=True):
    """['function(argument=value): what happened'] of `calls`, {name: () -> (function, keyword arguments)}, made anew
    for each value. `works`: the calls are made once without a bad value too"""
    accepts,found = {**ACCEPTS, **(accepts or {})},[]
    for call,make in calls.items():
        f,kw = make()
        if works: f(**kw)
        for arg in kw:
            rule = accepts.get(f'{call}.{arg}', accepts.get(arg, never))
            for label in values:
                came = _outcome(make, arg, BAD[label])
                if came == 'refused' or came == 'returned' and (rule(BAD[label]) or _is_default(f, arg, BAD[label])):
                    continue
                found.append(f'{call}({arg}={label}): {came}')
    return found

def count(calls, values=BAD, accepts=None):
    "(calls, foreign messages, values wrongly taken) of `faults`"
    n = sum(len(make()[1]) for make in calls.values())*len(values)
    found = faults(calls, values, accepts, works=False)
    taken = sum(o.endswith(': returned') for o in found)
    return n,len(found) - taken,taken

def assert_no_faults(calls, values=BAD, accepts=None, works=True):
    "`faults`, of which there are none, line by line where there are"
    found = faults(calls, values, accepts, works)
    if found: raise AssertionError('\n'.join([f"{len(found)} faults", *found]))

def _is_default(f, arg, value):
    p = inspect.signature(f).parameters.get(arg)
    return p is not None and type(p.default) is type(value) and (p.default is value or p.default == value)

def _outcome(make, arg, value):
    f,kw = make()
    try: f(**{**kw, arg: value})
    except Exception as e:
        if isinstance(e, OSError) and e.filename: return 'refused'   # Python's own, which names the file
        frame = traceback.extract_tb(e.__traceback__)[-1]
        ours = frame.filename.startswith(ROOT) and type(e).__module__ in ('builtins', 'vision_tasks.data.errors')
        if ours and isinstance(e, (ValueError, OSError)) and 'raise' in (frame.line or ''): return 'refused'
        # `raise` over several lines shows another one of them
        if ours and isinstance(e, (ValueError, OSError)) and not _foreign(frame): return 'refused'
        return f'{type(e).__name__}: {str(e)[:90]} ({frame.filename.rpartition("/")[2]}:{frame.lineno})'
    return 'returned'

def _foreign(frame):
    "Whether the line at which an error left our file is no `raise` statement: a conversion, a comparison"
    import ast
    for node in ast.walk(_tree(frame.filename)):
        if isinstance(node, ast.Raise) and node.lineno <= frame.lineno <= node.end_lineno: return False
    return True

_trees = {}
def _tree(file):
    import ast
    if file not in _trees: _trees[file] = ast.parse(Path(file).read_text())
    return _trees[file]
