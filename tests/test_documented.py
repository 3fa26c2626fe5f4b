"What a comment beside a parameter says is what `help()` shows"
import importlib, inspect, io, pkgutil, pydoc, subprocess, sys, textwrap
from pathlib import Path
import pytest
from fastcore.docments import docments
import vision_tasks
from vision_tasks import signatures
from vision_tasks.documented import document, parameters_of
from vision_tasks.signatures import read_signatures


def read(source, name='f'): return read_signatures(textwrap.dedent(source))[name]

def texts(source, name='f'): return {p.name: p.text for p in read(source, name).params}

@pytest.fixture
def module(tmp_path, monkeypatch):
    "Writes a module into the package for one test, and imports it"
    monkeypatch.setattr(vision_tasks, '__path__', [*vision_tasks.__path__, str(tmp_path)])
    names = []
    def make(source, name='made_in_a_test'):
        (tmp_path/f'{name}.py').write_text(textwrap.dedent(source))
        names.append(f'vision_tasks.{name}')
        importlib.invalidate_caches()
        return importlib.import_module(names[-1])
    yield make
    for n in names:
        sys.modules.pop(n, None)
        delattr(vision_tasks, n.rpartition('.')[2])

# --- comments in the source

def test_a_comment_goes_on_in_the_lines_below_it():
    assert texts('''
        def f(
            a,   # (n, 4) pixels,
                 # of the file
            b=3, # None: all

            c=4, # last,
            # however it is aligned
        ):
            "doc"
        ''') == dict(a='(n, 4) pixels,\nof the file', b='None: all', c='last,\nhowever it is aligned')

def test_the_comment_beside_the_type_of_the_result_is_about_the_result():
    s = read('''
        def f(
            a:int, # a number
        ) -> list[int]: # numbers,
                        # sorted
            # why it is done so
            return [a]
        ''')
    assert (s.returns, s.text) == ('list[int]', 'numbers,\nsorted')

@pytest.mark.parametrize('source, text', [
    ('def f(a):   # (n, 4)\n    "doc"', '(n, 4)'),
    ('def f(\n    a, # one\n    b): # both\n    "doc"', 'both'),
    ('def f(\n    a=":#", # one\n):\n    "doc" # no', ''),
    ('def f(a): return a   # why', ''),
    ('def f(a) -> int:\n    # why\n    return a', ''),
    ('def f(): # nothing goes in\n    "doc"', 'nothing goes in')])
def test_a_comment_behind_the_colon_is_about_the_result_unless_code_stands_before_it(source, text):
    s = read(source)
    assert s.text == text and 'both' not in [p.text for p in s.params]

def test_parameters_on_one_line_share_its_comment():
    assert texts('''
        def f(a, b, # both
              c,
              d): pass
        ''') == dict(a='both', b='both', c='', d='')

def test_a_comment_above_a_parameter_is_its_own_where_the_line_above_has_none():
    assert texts('''
        def f(
            # first
            # of all
            a,
            b, # second
            # still second
            c,
        ): pass
        ''') == dict(a='first\nof all', b='second\nstill second', c='')

def test_a_number_sign_in_a_string_or_in_a_default_of_several_lines_begins_no_comment():
    s = read('''
        @decorator(lambda o: '#')   # of the decorator
        def f(
            a:"#"='#1', # first # with another
            b={'x': 1,  # inside
               'y': '#2'}, # second
            c=lambda o=(1, '#'): o, # third
            é='é#', # fourth
        ): pass
        ''')
    assert [p.text for p in s.params] == ['first # with another', 'second', 'third', 'fourth']
    assert [p.default for p in s.params] == ["'#1'", "{'x': 1, 'y': '#2'}", "lambda o=(1, '#'): o", "'é#'"]

def test_all_kinds_of_parameters_are_read():
    s = read('''
        async def f(
            a, /,     # by place
            b=1,      # default
            *args:int, # more
            c,        # by name
            d:str='x', # both
            **kwargs, # rest
        ): pass
        ''')
    assert [(p.stars + p.name, p.type, p.default, p.text) for p in s.params] == [
        ('a', '', '', 'by place'), ('b', '', '1', 'default'), ('*args', 'int', '', 'more'), ('c', '', '', 'by name'),
        ('d', 'str', "'x'", 'both'), ('**kwargs', '', '', 'rest')]
    assert texts('def f(a, *, b): pass') == dict(a='', b='')

def test_methods_have_no_self_and_static_methods_lose_nothing():
    source = '''
        class A:
            def f(self, x): pass # code
            @classmethod
            def g(cls,
                  x): pass
            @staticmethod
            def h(x, # first
            ): pass
        '''
    assert texts(source, 'A.f') == texts(source, 'A.g') == dict(x='')
    assert texts(source, 'A.h') == dict(x='first')

def test_the_parameters_of_a_class_are_those_of_init_or_the_fields_of_a_dataclass():
    source = '''
        class A:
            "doc"
            def __init__(self,
                         a=1): # not a result
                self.a = a
        @dataclass(frozen=True)
        class B:
            size:tuple          # (w, h)
            names:list = field(default_factory=list) # of
                                                     # the classes
            kind:ClassVar = 3   # no parameter
            def f(self): pass
        class C:
            x:int = 3 # no dataclass
        '''
    assert texts(source, 'A') == dict(a='')
    assert texts(source, 'B') == dict(size='(w, h)', names='of\nthe classes')
    assert texts(source, 'C') == {}

@pytest.mark.parametrize('source', [
    "def f(\n    a:int,  # one\n    b=3,    # two\n) -> str:  # three\n    pass",
    "def f(a, # one\n      b:list[int]=None, # two\n      ): pass",
    "def f(\n    # above\n    a,\n    b=1,\n): pass",
    "def f(a:int, b=2)->int: # result\n    pass",
    "def f(\n    a='x', # (n, 4) 'pixels'\n    *, b, # by name\n): pass"])
def test_where_comments_have_one_line_fastcore_reads_the_same(source, tmp_path, monkeypatch):
    (tmp_path/'simple.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'simple', raising=False)
    theirs = docments(importlib.import_module('simple').f)
    sys.modules.pop('simple')
    s = read_signatures(source)['f']
    assert {**{p.name: p.text or None for p in s.params}, 'return': s.text or None} == {'return': None, **theirs}

HARD = '''
"""A module whose docstring shows code:
def f(x): # no function
    ...
class logits come first"""
X = """
def shown(y): # not a function either
"""
if X:
    def f(
        a, # below an if
    ): pass
@decorator(a=(1,
    2), b=")")
def g(
    a=(")", "#("), # brackets in strings
    b={1: 2,
       3: 4}, # of two lines
): return a # why
class A(B,
        C):
    "doc"
    def f(self, x): return [
        x,
    ]
    @property
    def g(self): pass
    @staticmethod
    def h(
        x, # all of it
    ):
        def inner(
            y, # inner
        ): pass
'''

def test_reading_headers_alone_finds_what_parsing_everything_finds(monkeypatch):
    sources = [HARD, *(p.read_text() for p in Path(vision_tasks.__file__).parent.rglob('*.py'))]
    fast = [read_signatures(s) for s in sources]
    assert fast[0]['f'].params[0].text == 'below an if' and fast[0]['A.h'].params[0].text == 'all of it'
    assert [p.text for p in fast[0]['g'].params] == ['brackets in strings', 'of two lines']
    monkeypatch.setattr(signatures, '_headers', '\n'.join)
    assert fast == [read_signatures(s) for s in sources]

# --- sections of __doc__

SOURCE = '''
    from dataclasses import dataclass
    from functools import wraps
    def passed(f):
        @wraps(f)
        def g(*args, **kwargs): return f(*args, **kwargs)
        return g

    @passed
    def scale(
        boxes, # (n, 4) pixels
        lo:float=0, hi:float=0, # range,
                                # in pixels
        mode:str='x', # 'x' or 'y'
    ) -> list[float]: # (n,) pixels
        """Width of each box. Raises `ValueError` where there
        is none, and `KeyError` for unknown modes. Ties count once"""

    class Base:
        "A base"
        def f(self,
            x,   # (n,) numbers
            y=1, # a number
        ):
            "What f does"
        def g(self, x): "Raises `ValueError`: there is no g"

    class Sub(Base):
        def f(self, x,
              y=2, # another number
              z=3): pass
        def _f(self, x): "private"
    def _private(x): "private"
    '''

def test_sections_follow_the_prose_and_nothing_is_said_twice(module):
    f = module(SOURCE).scale
    assert f.__doc__ == f.__wrapped__.__doc__ == textwrap.dedent('''\
        Width of each box. Ties count once

        Parameters
        ----------
        boxes
            (n, 4) pixels
        lo, hi : float, default=0
            range,
            in pixels
        mode : str, default='x'
            'x' or 'y'

        Returns
        -------
        list[float]
            (n,) pixels

        Raises
        ------
        ValueError
            where there
            is none
        KeyError
            for unknown modes''')

def test_help_and_getdoc_show_the_sections(module):
    m = module(SOURCE)
    for o in (m.scale, m.Base.f, m.Sub.f):
        out = io.StringIO()
        pydoc.Helper(output=out)(o)
        for line in inspect.getdoc(o).split('\n'): assert line in out.getvalue()
        assert 'Parameters\n----------' in inspect.getdoc(o)

def test_a_method_says_what_the_one_that_it_overrides_says_and_its_own_comments_win(module):
    m = module(SOURCE)
    assert {p.name: p.text for p in parameters_of(m.Sub.f, m.Sub)} == dict(x='(n,) numbers', y='another number', z='')
    assert m.Sub.f.__doc__.startswith('What f does\n\nParameters') and 'another number' in m.Sub.f.__doc__
    assert m.Base.f.__doc__.count('a number') == 1

def test_a_docstring_that_is_all_about_an_error_keeps_its_sentence(module):
    m = module(SOURCE)
    assert m.Base.g.__doc__.startswith('Raises `ValueError`: there is no g\n\nParameters') and (
           'Raises\n' not in m.Base.g.__doc__)

def test_private_names_stay_as_they_are(module):
    m = module(SOURCE)
    assert m._private.__doc__ == m.Sub._f.__doc__ == 'private'

def test_a_dataclass_shows_the_fields_of_its_bases_too(module):
    m = module('''
        from dataclasses import dataclass, field
        @dataclass
        class A:
            "An A"
            a:int # first
        @dataclass
        class B(A):
            "A B"
            b:list = field(default_factory=list) # second
            c:int = field(default=0, init=False) # no parameter
        class C(B): "A C"
        ''')
    assert m.B.__doc__ == ('A B\n\nParameters\n----------\na : int\n    first\nb : list, default=list()\n    second')
    assert m.C.__doc__ == m.B.__doc__.replace('A B', 'A C')

def test_a_delegated_signature_has_the_texts_of_where_it_comes_from(module):
    m = module('''
        from fastcore.meta import delegates
        def inner(
            a, # first
            size:int=3, # pixels
        ): pass
        @delegates(inner)
        def outer(
            b=1, # own
            **kwargs,
        ): "Outer"
        ''')
    assert list(inspect.signature(m.outer).parameters) == ['b', 'size']
    assert m.outer.__doc__ == ('Outer\n\nParameters\n----------\n'
                               'b : default=1\n    own\nsize : int, default=3\n    pixels')

def test_a_delegated_signature_of_another_package_has_names_and_defaults(module):
    m = module('''
        from textwrap import shorten
        from fastcore.meta import delegates
        def theirs(a, deep:bool=True): pass
        theirs.__module__ = 'elsewhere'
        @delegates(shorten)
        def outer(
            b=1, # own
            **kwargs, # as of `shorten`
        ): "Outer"
        @delegates(theirs)
        def other(**kwargs): "Other"
        ''')
    assert 'b : default=1\n    own' in m.outer.__doc__
    assert m.other.__doc__.endswith('deep : bool, default=True')

def test_a_module_that_says_nothing_about_documentation_is_documented(module):
    assert 'x\n    pixels' in module('def f(\n    x, # pixels\n): "doc"').f.__doc__

def test_documenting_twice_changes_nothing(module):
    m = module(SOURCE)
    before = {n: (o.__doc__, getattr(getattr(o, 'f', None), '__doc__', None)) for n,o in vars(m).items()}
    document(m)
    assert before == {n: (o.__doc__, getattr(getattr(o, 'f', None), '__doc__', None)) for n,o in vars(m).items()}

def test_without_docstrings_there_is_nothing_to_complete():
    code = "from vision_tasks.warning import warn; print(warn.__doc__)"
    def run(*args): return subprocess.run([sys.executable, *args, '-c', code], capture_output=True, text=True,
                                          check=True, cwd=Path(__file__).parent.parent).stdout
    assert run('-OO') == 'None\n' and 'Parameters' in run()

def test_without_a_source_the_docstring_stays_as_it_is(module, tmp_path):
    import py_compile
    (tmp_path/'bare.py').write_text('def f(\n    x, # pixels\n): "doc"')
    py_compile.compile(str(tmp_path/'bare.py'), str(tmp_path/'compiled.pyc'))
    assert (tmp_path/'compiled.pyc').exists()
    (tmp_path/'bare.py').unlink()
    (tmp_path/'compiled.pyc').rename(tmp_path/'made_compiled.pyc')
    importlib.invalidate_caches()
    assert importlib.import_module('vision_tasks.made_compiled').f.__doc__ == 'doc'
    sys.modules.pop('vision_tasks.made_compiled')

# --- every parameter of this package

def modules():
    return [importlib.import_module(m.name) for m in pkgutil.walk_packages(vision_tasks.__path__, 'vision_tasks.')
            if m.name.rpartition('.')[2] not in ('all', '__main__')]

def public(module):
    "(qualified name, object, class or None) of the functions, classes and public methods that `module` defines"
    for n in getattr(module, '__all__', ()):
        o = getattr(module, n)
        if getattr(o, '__module__', None) != module.__name__: continue
        if inspect.isfunction(o): yield n,o,None
        if not inspect.isclass(o): continue
        yield n,o,None
        for k,f in vars(o).items():
            f = getattr(f, '__func__', f)
            if k[0] != '_' and inspect.isfunction(f) and f.__module__ == module.__name__: yield f'{n}.{k}',f,o

def names(o, owner):
    "Parameters as `inspect` sees them, with stars; of a class whose `__init__` is not ours, none"
    if inspect.isclass(o):
        init = getattr(inspect.unwrap(o.__init__), '__module__', None) or ''
        if not init.startswith('vision_tasks') and '__dataclass_fields__' not in vars(o): return []
        o,owner = o.__init__,o
    static = owner is not None and isinstance(vars(owner).get(o.__name__), staticmethod)
    params = list(inspect.signature(o).parameters.values())
    return [{p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '') + p.name
            for p in params[owner is not None and not static:]]

def test_every_parameter_of_every_public_function_is_in_its_doc():
    missing,n = [],0
    for module in modules():
        for name,o,owner in public(module):
            shown = (inspect.getdoc(o) or '').partition('Parameters\n----------\n')[2].partition('\n\n')[0]
            heads = [h.strip() for line in shown.split('\n') if not line.startswith(' ')
                     for h in line.partition(' : ')[0].split(',')]
            missing += [f'{module.__name__}.{name}({p})' for p in names(o, owner) if p not in heads]
            n += len(heads)
    assert not missing and n > 1000

def undocumented():
    res = {}
    for module in modules():
        some = sorted(f'{name}({p.name})' for name,o,owner in public(module) for p in parameters_of(o, owner)
                      if not p.text)
        if some: res[module.__name__] = some
    return res

def test_something_is_said_about_every_parameter():
    assert undocumented() == {}, "write a comment beside these parameters"
