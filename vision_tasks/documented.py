"""Comments beside parameters become the sections Parameters, Returns and Raises of `__doc__`

`help()`, `?`, editors and API references read `__doc__`; a comment reaches none of them. `vision_tasks/__init__.py`
calls `install` before any other module is imported: from then on every public function, class and method of a module of
this package is documented as soon as the module has run, so that nobody can forget it.

The text of a parameter is, in this order: the comment beside it; for a parameter that `fastcore.delegates` added, that
of the function it comes from; for a method, that of the method it overrides, if that is ours; the one in `MEANINGS`"""
from __future__ import annotations
import gc, inspect, re, sys
from importlib.machinery import PathFinder, SourceFileLoader
from textwrap import wrap
from . import signatures
from .signatures import Parameter, read_signatures

__all__ = ['MEANINGS', 'parameters_of', 'document', 'install']

# --- what a parameter means

# where neither a comment nor an overridden method says it; of a name, of 'function.name', or of the last word of a
# function and a name: 'dls.bs' of `detection_dls`
MEANINGS = {
    'vocab': "list of class names",
    'ds_idx': "set of the DataLoaders: 0 for training, 1 for validation",
    'dl': "in place of that set: a DataLoader with ground truth, or a list of `Annotation`; None (default): the set",
    'ax': "matplotlib Axes to draw on; None (default): new ones",
    'n_in': "channels of the images; 3 for RGB",
    'n_out': "outputs, one per class; background is a class in segmentation only",
    'width': "factor on the number of channels; 1 for those of the paper",
    'ps': "dropout probability, in [0, 1]",
    'forward.x': "(b, n_in, h, w) normalized images",
    # of the DataLoaders; fastai calls these methods with some arguments that mean nothing here
    'show_batch.b': "batch to draw; None (default): the next one",
    'show_results.b': "batch of images and targets",
    'show_results.probs': "probabilities of the batch, for tasks that write them beside the predictions",
    'show_results.losses': "(n,) losses, written above the images; None (default): none",
    'max_n': "images to draw at most",
    'ncols': "images in a row; None (default): as many as fit",
    'unique': "draw one image again and again, to show the augmentation",
    # of the functions of all tasks: '*_dls', '*_block', '*_learner'
    'block.size': "pixels of the network's input: (w, h), or one number for both",
    'block.splitter': "annotations -> indices of the training set, of the validation set; None (default): the split "
                      "that the annotations name, else 20 % at random, with groups kept together",
    'block.batch_tfms': "in place of `LightJitter()`: brightness and contrast when training",
    'dls.vocab': "list of class names; None (default): all that occur, sorted",
    'dls.bs': "images in a batch; at most as many as there are to train on",
    'dls.path': "folder where the learner saves",
    'dls.valid_pct': "share of the validation set, between 0 and 1, where the annotations do not name a split",
    'dls.seed': "of that random split",
    'dls.num_workers': "processes that load images; None (default): one per core",
    'dls.device': "of the batches; None (default): the GPU if there is one",
    'dls.balance': "'labels': images of rare classes are shown more often in an epoch of the same length, by repeat "
                   "factors (Gupta et al., 2019), or by inverse frequencies where an image has one class; None "
                   "(default): each once",
    'dls.cache': "where decoded images and class masks are kept from the first epoch on, reduced to what the views "
                 "use: 'ram', memory that all workers share, or a folder, which later runs use too. The size is "
                 "printed; what does not fit raises. None (default): files are decoded in every epoch",
    'dls.check': "decode all images once, in threads, so that a broken one raises now and not in the first epoch",
    'learner.pretrained': "True: the best weights that the named architecture has, of the whole network if there are "
                          "any, else ImageNet's of its encoder; 'encoder': ImageNet's of the encoder only; the path of "
                          "a state dict of either; False: random weights. Your own `nn.Module` is taken as it is",
    'learner.n_out': "outputs; None (default): one per class of `dls.vocab`",
    'learner.splitter': "model -> list of parameter groups; None (default): `parameter_groups`",
    'learner.normalize': "of the images: True: by the statistics that the weights were trained with, ImageNet's where "
                         "the model names none; `(mean, std)`, numbers per channel for pixels in [0, 1]; None: not at "
                         "all. What the DataLoaders did before is replaced",
    'learner.cbs': "fastai callbacks of every training and validation, beside fastai's default ones",
    'learner.learner_kwargs': "of fastai's `Learner`: `lr`, `opt_func`, `wd`, `path`, ...",
    # of the views
    'largest_scale.w': "width of the image in pixels",
    'largest_scale.h': "height of the image in pixels",
    'largest_scale.out': "(w, h) of the network's input in pixels",
    'ctxs': "ignored; fastai passes it",
    'show_batch.show': "False: draw nothing, and return what fastai draws from",
    'show_results.show': "False: draw nothing; return inputs, targets and predictions for fastai's `Interpretation`",
    'show_batch.kwargs': "ignored; fastai passes some",
    'show_results.kwargs': "ignored; fastai passes some",
    # of `affine_coord`, which fastai's batch transforms call
    'affine_coord.mat': "(b, 2, 3) affine maps of the batch; None (default): none",
    'affine_coord.coord_tfm': "function of the sampling grid, such as a warp; None (default): none",
    'affine_coord.sz': "size of the output in pixels, a number or (h, w); None (default): unchanged",
    'affine_coord.mode': "interpolation of fastai, for pixels",
    'affine_coord.pad_mode': "padding of fastai, for pixels",
    'affine_coord.align_corners': "as in torch's `grid_sample`",
    # of fastai's methods, which the learners override
    'cbs': "fastai callbacks beside those of the learner; None (default): no others",
    'plot_confusion.normalize': "True: shares of the true class in [0, 1]; False: counts",
}

_READ = {}   # module: {qualified name: Signature}

def _signatures(module):
    "Those of a module of ours that has been imported; {} if its source is not there"
    if module not in _READ:
        ours = module is not None and module.partition('.')[0] == __package__
        loader = getattr(sys.modules.get(module), '__loader__', None) if ours else None
        try: source = loader.get_source(module) if hasattr(loader, 'get_source') else None
        except (OSError, ImportError): source = None
        _READ[module] = {} if source is None else read_signatures(source)
    return _READ[module]

def _signature_of(o):
    "`Signature` of a function or class of ours, or None"
    o = o if inspect.isclass(o) else inspect.unwrap(o)
    s = _signatures(getattr(o, '__module__', None)).get(getattr(o, '__qualname__', None))
    if s is not None and s.prose is None: s.prose = inspect.cleandoc(vars(o).get('__doc__') or '' if inspect.isclass(o)
                                                                     else o.__doc__ or '')
    return s

def _function_of(o): return o.__func__ if isinstance(o, (classmethod, staticmethod)) else o

def _overridden(o, owner):
    "Signatures of the methods of ours that the method `o` of the class `owner` overrides; of a class, those it extends"
    if owner is None: return
    for base in owner.__mro__[1:]:
        f = base if inspect.isclass(o) else _function_of(vars(base).get(o.__name__))
        if (inspect.isclass(f) or inspect.isfunction(f)) and (s := _signature_of(f)) is not None: yield s

def parameters_of(
    o,          # function, method or class of ours
    owner=None, # class that it is a method of
) -> list[Parameter]: # in the order of the signature, with the text from wherever it is said
    "The parameters that a user can pass to `o`"
    s = _signature_of(o)
    if s is None: return []
    above = list(_overridden(o, o if inspect.isclass(o) else owner))
    params = s.params
    if inspect.isclass(o):
        made = [a for a in [s, *above] if a.is_class]
        params = made[0].params if made else []
        maker = next(c for c in o.__mro__ if '__init__' in vars(c))
        if '__dataclass_fields__' in vars(maker) and '__init__' not in _own(maker):   # its bases' fields too
            known = {p.name: p for a in reversed(made) for p in a.params}
            params = [known[n] for n,f in o.__dataclass_fields__.items() if f.init and n in known]
    params = _delegated(o, params)
    texts = {p.name: p.text for a in reversed([s, *above]) for p in a.params if p.text}
    def general(name):
        keys = f'{o.__name__}.{name}',f"{o.__name__.rpartition('_')[2]}.{name}",name
        return next((MEANINGS[k] for k in keys if k in MEANINGS), '')
    return [Parameter(p.name, p.stars, p.type, p.default, p.text or texts.get(p.name) or general(p.name))
            for p in params]

def _own(cls):
    "Names that the source of a class defines"
    s = _signatures(cls.__module__)
    return {n.rpartition('.')[2] for n in s if n.rpartition('.')[0] == cls.__qualname__}

def _delegated(o, params):
    "`params` with those that `fastcore.delegates` put in place of `**kwargs`"
    if inspect.isclass(o): to = getattr(vars(o).get('__init__'), '__delwrap__', None)
    else:                  to = getattr(inspect.unwrap(o), '__delwrap__', None)
    if to is None: return params
    known = {p.name: p for p in params}
    theirs = {p.name: p for p in (parameters_of(to) if _signature_of(to) is not None else [])}
    res = []
    for n,p in inspect.signature(o).parameters.items():
        if n == 'self' or n in known and res.append(known[n]) is None: continue
        default = '' if p.default is p.empty else repr(p.default)
        res.append(theirs.get(n) or Parameter(n, {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, ''),
                                              '' if p.annotation is p.empty else inspect.formatannotation(p.annotation),
                                              default))
    return res

# --- __doc__

_RAISES = re.compile(r'(?:(?<=[.;])\s+|(?<=\n)|^)Raises\s+(`\w+`.*?)'
                     r'(?:\.(?=\s+[A-Z`"\'])|\.?\s*$|\.?(?=\n\s*\n))', re.S)
_SPLIT  = re.compile(r'[,;](?: and)?\s+(?=`\w+(?:Error|Exception|Warning|Interrupt)`)')

def _raises(prose):
    "(`prose` without its sentence on what is raised, [(exception, when)])"
    m = _RAISES.search(prose)
    left = prose[:m.start()] + prose[m.end():] if m else ''
    if not left.strip(): return prose,[]    # nothing but that sentence: it is the summary
    found = [re.match(r'`(\w+)`[:,]?\s*(.*)', part, re.S).groups() for part in _SPLIT.split(m[1])]
    return left.strip(),found

def _section(title, rows):
    rows = [f'{head}\n' + ''.join(f'    {line}\n' for o in text.split('\n') for line in wrap(o.strip(), 100))
            for head,text in rows]
    return f"{title}\n{'-'*len(title)}\n{''.join(rows)}".rstrip() if rows else ''

def _rows(params):
    "(head, text) of each parameter; those that share a comment and everything else share a row"
    rows = []
    for p in params:
        about = ', '.join(filter(None, [p.type, p.default and f'default={p.default}']))
        row = [[p.stars + p.name], about, p.text]
        if rows and p.text and '\0' not in p.text and rows[-1][1:] == row[1:]: rows[-1][0] += row[0]
        else: rows.append(row)
    return [(', '.join(names) + (f' : {about}' if about else ''), text) for names,about,text in rows]

def _doc(o, owner=None):
    "`__doc__` of a function or class of ours; None leaves it as it is"
    s = _signature_of(o)
    if s is None: return None
    inherited = [] if inspect.isclass(o) else [a.prose for a in _overridden(o, owner) if a.prose]
    prose = s.prose or next(iter(inherited), '')
    if _DONE.search(prose): return None    # written so, or documented before
    prose,raised = _raises(prose)
    returned = [(s.returns or s.text, s.text if s.returns else '')] if (
               s.text or s.returns not in ('', 'None')) and not s.is_class else []
    parts = [prose, _section('Parameters', _rows(parameters_of(o, owner))), _section('Returns', returned),
             _section('Raises', raised)]
    return '\n\n'.join(filter(None, parts)) if any(parts[1:]) else None

_DONE = re.compile(r'^(Parameters|Returns|Raises)\n-+$', re.M)

def _set(f, doc):
    while f is not None and doc is not None:
        f.__doc__ = doc
        f = getattr(f, '__wrapped__', None)

def document(
    module, # of this package
):
    "Complete `__doc__` of every public function, class and public method that is defined in `module`"
    _READ.pop(module.__name__, None)   # of an earlier import
    for name,o in list(vars(module).items()):
        if name[0] == '_' or getattr(o, '__module__', None) != module.__name__: continue
        if inspect.isfunction(o): _set(o, _doc(o))
        elif inspect.isclass(o):
            for n,f in list(vars(o).items()):
                f = _function_of(f)
                if (n[0] != '_' or n == '__call__') and inspect.isfunction(f): _set(f, _doc(f, o))
            if (doc := _doc(o)) is not None: o.__doc__ = doc

# --- while a module is imported

class _Loader(SourceFileLoader):
    "Loads a module from its source and documents it"
    def exec_module(self, module):
        super().exec_module(module)
        # a tree is thousands of objects that live for a moment: the collector would go through all of torch for them
        enabled = gc.isenabled()
        gc.disable()
        try: document(module)
        finally:
            if enabled: gc.enable()

class _Finder:
    "Finds the modules of this package, for `_Loader`"
    @staticmethod
    def find_spec(name, path=None, target=None):
        if not name.startswith(f'{__package__}.'): return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader: spec.loader = _Loader(name, spec.loader.path)
        return spec

def install():
    "From now on, modules of this package are documented when they are imported; not with `-OO`, which drops docstrings"
    if sys.flags.optimize >= 2 or _Finder in sys.meta_path: return
    sys.meta_path.insert(0, _Finder)
    for module in (signatures, sys.modules[__name__]): document(module)   # which were imported before this
