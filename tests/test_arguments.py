import inspect
from pathlib import Path
import numpy as np, pytest, torch
from vision_tasks.arguments import (AXES, COUNT, FLAG, FRACTION, FUNCTION, NAMES, PATH, SEED, SHARE, SIZE, TEXT, brief,
                                    checked, choice, either, number, several, whole)
from vision_tasks.data.annotation import ANNOTATIONS, Annotation
from vision_tasks.data.splits import AnnotationSplitter
from vision_tasks.warning import warn

A = Annotation('a.png', (4, 4))

@pytest.mark.parametrize('kind, good, bad', [
    (whole(0, 9),   [0, 9, np.int64(3)],             [-1, 10, True, 1., '1', None, np.True_, 10**30]),
    (number(0, 1),  [0, 1, .5, np.float32(.5)],      [-1e-9, 1.1, float('nan'), True, '1', None, 1j]),
    (number(0, open=True), [1e-9, 5],                [0, -1, float('inf')]),
    (choice('raise', 'drop', 1), ['raise', 1],       ['Raise', True, 1., None, np.zeros(2)]),
    (FLAG,          [True, False, np.True_],         [0, 1, 'True', None]),
    (PATH,          ['a', Path('.')], ['', 'a\0b', None, 3, ['a']]),
    (TEXT,          ['a'],                           ['', ' ', None, b'a']),
    (SHARE,         [.2, 1e-9],                      [0, 1, 20, float('nan'), '.2']),
    (FRACTION,      [0, 1],                          [2, -1]),
    (SEED,          [0, 2**32 - 1],                  [-1, 2**32, 1.]),
    (COUNT,         [1],                             [0, 1.5, 2**31]),
    (FUNCTION,      [len],                           ['len', None]),
    (SIZE,          [1, (3, 4), [3, 4]],             [0, 64., (3,), (3, 4, 5), (0, 4), '64', (3., 4), None, True]),
    (NAMES,         [['a', 'b'], ('a',), np.array(['a']), []], ['cat', ['a', 3], {'a'}, {'a': 1}, None, 3]),
    (ANNOTATIONS,   [[A], (A,), [], iter([A])],      [A, 'a.json', None, [A, 3], 3]),
    (several(whole(0), "a list of numbers", n=2), [[1, 2], np.array([1, 2])], [[1], [1, -1], 'ab', 3, np.array(3)]),
    (either(whole(1), choice('all')), [3, 'all'],    [0, 'none', None]),
    (AXES,          [],                              [None, 3, 'ax'])])
def test_a_kind_takes_what_it_says_and_nothing_else(kind, good, bad):
    for v in good: kind('argument', v)
    for v in bad:
        with pytest.raises(ValueError, match=r"^argument(, number \d)?: expected .*, got ."): kind('argument', v)

def test_a_message_says_what_to_do():
    with pytest.raises(ValueError, match=r"valid_pct: .* got 20; write 0.2 for 20 %"): SHARE('valid_pct', 20)
    with pytest.raises(ValueError, match=r"vocab: .* got 'cat'; write \['cat'\] for one name"): NAMES('vocab', 'cat')
    with pytest.raises(ValueError, match=r"annotations: .*; write \[annotation\] for"): ANNOTATIONS('annotations', A)
    with pytest.raises(ValueError, match=r"annotations, number 1: expected an Annotation, got 3"):
        ANNOTATIONS('annotations', [A, 3])
    with pytest.raises(ValueError, match=r"on_error: expected one of 'raise', 'drop', got 'dorp'; did you mean 'drop'"):
        choice('raise', 'drop')('on_error', 'dorp')
    with pytest.raises(ValueError, match=r"got Tensor of shape \(1000000,\)"): COUNT('n', torch.zeros(10**6))
    with pytest.raises(ValueError) as e: COUNT('n', list(range(10**6)))
    assert len(str(e.value)) < 200

def test_a_decorated_function_checks_by_name_by_order_and_by_keyword():
    @checked(n=whole(1), free=None)
    def f(n, seed=None, *, vocab=(), free=0, **rest):
        "Text"
        return n,seed,vocab,free,rest
    assert f(2, 3, vocab=('a',), free='x', other=[]) == (2, 3, ['a'], 'x', {'other': []})
    assert f(1) == (1, None, (), 0, {}), "defaults are not looked at"
    assert f.__doc__ == 'Text' and list(inspect.signature(f).parameters)[0] == 'n'
    for bad,name in (((0,), 'n'), ((1, -1), 'seed')):
        with pytest.raises(ValueError, match=f"^{name}: expected"): f(*bad)
    with pytest.raises(ValueError, match="^vocab: expected"): f(1, vocab='cat')
    with pytest.raises(TypeError, match="missing"): f()

def test_a_kind_for_a_parameter_that_is_not_there_is_our_own_mistake():
    with pytest.raises(AssertionError, match="no parameters {'m'}"): checked(m=COUNT)(lambda n: n)

def test_the_repr_of_a_deep_value_is_cut_while_it_is_built():
    deep = []
    for _ in range(10**5): deep = [deep]
    assert len(brief(deep)) <= 80

def test_a_warning_shows_the_line_of_the_user(tmp_path):
    annotations = [Annotation(tmp_path/f'{i}.png', (4, 4), group='ab'[i%2]) for i in range(12)]
    with pytest.warns(UserWarning, match="instead of 2") as w: AnnotationSplitter(.2)(annotations)
    assert [o.filename for o in w] == [__file__]
    with pytest.warns(UserWarning, match="text") as w: warn("text")
    assert w[0].filename == __file__
