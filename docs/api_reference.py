"""Pages of the API reference, one per module, made by walking the package: a module that moves, or a new one, needs no
edit here. As a Sphinx extension it renders the backticks of our docstrings"""
import importlib, inspect, pkgutil, re
from pathlib import Path
from sphinx.util.nodes import make_refnode
import vision_tasks

# those that exist come first, in this order; folder or module -> title of its group; other folders get their own name
TASKS   = 'multilabel classification keypoint localization segmentation detection instance'.split()
GROUPS  = {'tasks': 'Tasks', 'training': 'Training', 'losses': 'Losses', 'metrics': 'Metrics', 'show': 'Plots',
           'data': 'Data', 'data.formats': 'Data formats', 'models': 'Models',
           'models.segmentation': 'Segmentation models',
           'models.detection': 'Detection models', 'ops': 'Operations', 'ship': 'Export', '': 'Foundations'}
LEFT_OUT = ('all', 'demo')      # stars only; a command
WHAT = {
    'tasks': "What a user names: for each task its block, its DataLoaders and its learner.",
    'data.formats': "One module per format: a reader and, for most, a writer.",
    '': "What the other modules stand on.",
}

def modules():
    "The modules of the package that say what is public, by their name below the package"
    res = {}
    for o in pkgutil.walk_packages(vision_tasks.__path__, 'vision_tasks.'):
        name = o.name.removeprefix('vision_tasks.')
        if name in LEFT_OUT or name.rpartition('.')[2].startswith('_'): continue
        module = importlib.import_module(o.name)
        if own_names(module): res[name] = module
    return res

def own_names(module):
    "The names of `__all__` that `module` defines itself; a constant is that of the module, not of the folder"
    def own(o):
        if inspect.isclass(o) or inspect.isroutine(o): return o.__module__ == module.__name__
        return not hasattr(module, '__path__')
    return [n for n in getattr(module, '__all__', []) if own(getattr(module, n))]

def directive(module, name):
    "The lines that document one name"
    o,full = getattr(module, name),f'{module.__name__}.{name}'
    if inspect.isclass(o):
        kind = 'autoexception' if issubclass(o, Exception) else 'autoclass'
        shown = ['   :show-inheritance:'] if o.__bases__ != (object,) else []
        return [f'.. {kind}:: {full}', *shown, '']
    if inspect.isroutine(o): return [f'.. autofunction:: {full}', '']
    value = ' '.join(repr(o).split())
    return [f'.. py:data:: {name}', *([f'   :value: {value}'] if len(value) <= 100 else []), '',
            *(f'   {l}' for l in as_rst(comment_above(module, name))), '']

def comment_above(module, name):
    "The comment above or beside a constant, as lines"
    lines = inspect.getsource(module).split('\n')
    at = next((i for i,l in enumerate(lines) if re.match(rf'{name}\b[^(]*=', l)), None)
    if at is None: return []
    beside = lines[at].rpartition('#')[2].strip() if re.search(r'\s# ', lines[at]) else ''
    above,i = [],at
    while i and lines[i-1].startswith('# '): above.insert(0, lines[i-1][2:]); i -= 1
    return [l for l in [beside] if l] or above

def page(name, module):
    "The page of a module as reStructuredText"
    title = f'{name}'
    lines = [title, '='*len(title), '', f'.. py:module:: {module.__name__}', '']
    if module.__doc__: lines += [*as_rst(spaced(inspect.cleandoc(module.__doc__).split('\n'))), '']
    for n in own_names(module): lines += directive(module, n)
    return '\n'.join(lines)

def group(name):
    "The folder that a module lies in; 'tasks' for those of a task, '' for the others on top"
    if name in TASKS: return 'tasks'
    return name.rpartition('.')[0] if name not in GROUPS else name

def write_pages(
    folder:Path, # is made anew
):
    "Write a page for each module, one for each group, and the index of all names"
    folder.mkdir(parents=True)
    found,groups = modules(),{}
    for name,module in found.items():
        (folder/f'{name}.rst').write_text(page(name, module), encoding='utf-8')
        groups.setdefault(group(name), []).append(name)
    listed  = {n for m in found.values() for n in m.__all__}
    missing = sorted(listed - {n for m in found.values() for n in own_names(m)})
    if missing: raise ValueError(f"public names without a page: {missing}; no module with __all__ defines them")
    order = [o for o in GROUPS if o in groups] + sorted(set(groups) - set(GROUPS))
    text = ["# API reference", "",
            "Every public name of every module, with its parameters. `from vision_tasks.all import *` gives you the "
            "names of fastai.vision.all and those of the tasks, readers, transforms, metrics and plots; the others are "
            "imported from their module. `help(name)` and `name?` show the same text.", ""]
    for g in order:
        text += [f"## {GROUPS.get(g, g.capitalize())}", "", *([WHAT[g], ''] if g in WHAT else []),
                 '| module | what |', '|---|---|']
        for name in groups[g]:
            first = ' '.join(inspect.cleandoc(found[name].__doc__ or '').split('\n\n')[0].split()).replace('|', r'\|')
            text.append(f'| [{name}](<{name}.rst>) | {first} |')
        text += ['', '```{toctree}', ':hidden:', f':caption: {GROUPS.get(g, g.capitalize())}', '',
                 *(f"{n.rpartition('.')[2]} <{n}>" for n in groups[g]), '```', '']
    (folder/'index.md').write_text('\n'.join(text), encoding='utf-8')

def copy_notebooks(source:Path, folder:Path):
    "Copy the notebooks to where Sphinx reads them"
    folder.mkdir(parents=True)
    for o in sorted(source.glob('*.ipynb')): (folder/o.name).write_text(o.read_text(encoding='utf-8'), encoding='utf-8')

# --- our docstrings are plain text with code in single backticks

CODE   = re.compile(r'(``.+?``|`[^`]+`)', re.S)
# what reStructuredText would read as emphasis, a reference or a target, and is none here
MARKUP = re.compile(r'(?<!\\)([*|]|(?<=\w)_(?!\w))')

def spaced(lines):
    "`lines` with a blank line before and after each list, as reStructuredText wants it"
    res,inside = [],False
    for l in lines:
        item = re.match(r'- |\d\. ', l)
        if res and res[-1].strip() and (item and not inside or inside and not item and l[:1].strip()): res.append('')
        inside = bool(item or inside and (not l[:1].strip()))
        res.append(l)
    return res

def as_rst(lines):
    "Lines of one of our docstrings as reStructuredText"
    text = '\n'.join(lines)
    def one(part):
        if not part.startswith('`'): return MARKUP.sub(r'\\\1', part)
        if part.startswith('``'): return part
        return f':py:obj:`~{part[1:-1]}`' if re.fullmatch(r'[A-Za-z_][\w.]*', part[1:-1]) else f'``{part[1:-1]}``'
    res = ''
    for part in CODE.split(text):
        new = one(part)
        # markup must be set apart from a word that touches it: `Annotation`s
        touches = res and (res[-1].isalnum() and part.startswith('`') or res[-1] == '`' and part[:1].isalnum())
        res += rf'\ {new}' if touches else new
    return res.split('\n')

# "name, name : type, default=value" above an indented text or at the end, as `vision_tasks.documented` writes it
HEAD = re.compile(r'^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : (.*))?$')

def process(app, what, name, obj, options, lines):
    "Before napoleon reads the sections: types and defaults become code; names of parameters, with their stars, stay"
    lines[:] = spaced(lines)
    section,new = False,as_rst(lines)
    for i,o in enumerate(lines):
        if o in ('Parameters', 'Returns', 'Raises') and lines[i+1:i+2] == ['-'*len(o)]: section = o
        elif section == 'Parameters' and (m := HEAD.match(o)): new[i] = m[1] + (f' : {typed(m[2])}' if m[2] else '')
    lines[:] = new

def typed(about):
    "'int, default=5' as code"
    kind,has,default = re.fullmatch(r'(.*?)(?:(?:^|, )(default=)(.*))?', about).groups('')
    parts = [f'``{kind.rstrip(", ")}``'] * bool(kind) + [f'default ``{default}``'] * bool(has)
    return ', '.join(parts)

def resolve(app, env, node, contnode):
    "A name in backticks links to the object of this name, wherever it is defined, if there is only one"
    if node.get('reftype') != 'obj': return None
    target = node['reftarget'].lstrip('~')
    domain = env.get_domain('py')
    found = [(full,o) for full,o in domain.objects.items() if full.endswith(f'.{target}') and o.objtype != 'module']
    if len(found) != 1: return None
    full,o = found[0]
    return make_refnode(app.builder, node['refdoc'], o.docname, o.node_id, contnode, full)

def setup(app):
    app.connect('autodoc-process-docstring', process, priority=400)
    app.connect('missing-reference', resolve)
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
