"Architectures by task and name: a new one is a file whose builder is decorated by `@register`, and one import line"
from __future__ import annotations
from collections.abc import Callable
from difflib import get_close_matches
from ..arguments import TEXT, brief, checked, nearest

__all__ = ['TASKS', 'register', 'list_archs', 'get_arch', 'arch_facts']

TASKS = ('classification', 'multilabel', 'keypoint', 'localization', 'segmentation', 'detection', 'instance')
_archs = {} # (task, name) -> (builder, facts)

def _check_task(task):
    if isinstance(task, str) and task in TASKS: return
    raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {brief(task)}"
                     f"{nearest(task, TASKS) if isinstance(task, str) else ''}")

@checked(name=TEXT)
def register(
    task:str,       # one of `TASKS`
    name:str=None,  # name of the architecture; None (default): the builder's own
    **facts,        # what tests need to know of the architecture: smallest or allowed sizes, smallest batch, ...
) -> Callable:      # decorator that returns the builder unchanged, so that one builder can have several
    "Register a builder for `task` under `name`, together with `facts`. Raises `ValueError` for a name that is taken"
    _check_task(task)
    def add(builder):
        n = name or getattr(builder, '__name__', None)
        if not isinstance(n, str):
            raise ValueError(f"{builder!r} has no name of its own; write @register({task!r}, 'its_name')")
        if (task, n) in _archs:
            origin = getattr(_archs[task, n][0], '__module__', 'elsewhere')
            raise ValueError(f"{task} already has an architecture {n!r}, from {origin}; choose another `name`")
        _archs[task, n] = builder,facts
        return builder
    return add

def list_archs(
    task:str=None,  # one of `TASKS`; None (default): all tasks, each name once
) -> list[str]:
    "The registered names, sorted"
    if task is not None: _check_task(task)
    return sorted({n for t,n in _archs if task in (None, t)})

def _entry(name, task):
    _check_task(task)
    if not isinstance(name, str):
        raise ValueError(f"name: expected the name of an architecture, which is a text, got {brief(name)}; "
                         f"`list_archs({task!r})` names all")
    if (task, name) in _archs: return _archs[task, name]
    names = list_archs(task)
    near  = get_close_matches(str(name), names) or names[:10]
    elsewhere = [t for t in TASKS if (t, name) in _archs]
    raise ValueError(f"{task} has no architecture {name!r}" +
                     (f", only {' and '.join(elsewhere)}" if elsewhere else '') +
                     (f"; did you mean {' or '.join(map(repr, near))}?" if near else "; none is registered.") +
                     f" `list_archs({task!r})` names all")

def get_arch(
    name:str,     # as in `list_archs(task)`
    task:str,     # one of `TASKS`
) -> Callable:
    "The builder of `name` for `task`. Raises `ValueError` for unknown names, with the nearest ones"
    return _entry(name, task)[0]

def arch_facts(
    name:str,     # as in `list_archs(task)`
    task:str,     # one of `TASKS`
) -> dict:        # a copy
    "The facts with which the architecture was registered. Raises `ValueError` for unknown names"
    return dict(_entry(name, task)[1])
