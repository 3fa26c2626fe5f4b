"The public names of the package: what `__all__` of each module lists"
from importlib import import_module
from inspect import isclass
from pkgutil import walk_packages
import vision_tasks

def modules(*parts):
    "The modules of the package, or those below `parts`, such as 'models' or 'data.items'"
    names = [o.name for o in walk_packages(vision_tasks.__path__, 'vision_tasks.') if not o.ispkg]
    names = [o for o in names if o.split('.')[-1] not in ('all', 'demo')]
    ours  = [o for o in names if not parts or any(f'{o}.'.startswith(f'vision_tasks.{p}.') for p in parts)]
    return [import_module(o) for o in ours]

def public(*parts):
    "{name: object} of the `__all__` of these modules"
    return {n: getattr(m, n) for m in modules(*parts) for n in m.__all__}

def for_users(*parts):
    """{name: function or class} of these modules that a notebook has, or whose arguments are checked, as those of
    functions are that a user may import from their module"""
    every = vars(import_module('vision_tasks.all'))
    def checked(o): return hasattr(vars(o).get('__init__'), 'checked') if isclass(o) else hasattr(o, 'checked')
    return {n: o for n,o in public(*parts).items() if callable(o) and (every.get(n) is o or checked(o))}
