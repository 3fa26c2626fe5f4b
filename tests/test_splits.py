import numpy as np, pytest
from fastai.vision.all import DataBlock
from vision_tasks.data.annotation import Annotation, AnnotationError
from vision_tasks.data.blocks import label_set, path_of
from vision_tasks.data.splits import AnnotationSplitter, StratifiedSplitter, stratified_folds

def anns(n=40, **kw): return [Annotation(f'{i}.jpg', (1, 1), **{k: f(i) for k,f in kw.items()}) for i in range(n)]

def test_own_splits_are_kept_and_test_is_on_neither_side():
    a = anns(9, split=lambda i: ('train', 'valid', 'test')[i%3])
    assert AnnotationSplitter()(a) == ([0, 3, 6], [1, 4, 7])
    a = anns(10, split=lambda i: 'test' if i < 3 else None)
    tr,va = AnnotationSplitter()(a)
    assert sorted(tr+va) == list(range(3, 10))

def test_a_random_split_is_seeded_has_its_share_and_keeps_groups_and_files_whole():
    a = anns(100, group=lambda i: f'person {i//7}' if i < 70 else None)
    a += a[70:80]                                  # the same files once more
    tr,va = AnnotationSplitter(.25, seed=1)(a)
    assert (tr, va) == AnnotationSplitter(.25, seed=1)(a) and va != AnnotationSplitter(.25, seed=2)(a)[1]
    assert sorted(tr+va) == list(range(110)) and 20 <= len(va) <= 35
    assert not {a[i].group for i in tr if a[i].group} & {a[i].group for i in va}
    assert not {a[i].path for i in tr} & {a[i].path for i in va}

def test_splits_that_cannot_be_made_are_told():
    with pytest.raises(AnnotationError, match="the data set is empty"): AnnotationSplitter()([])
    with pytest.raises(AnnotationError, match=r"1 picture\(s\) in 1 group\(s\) cannot be split"):
        AnnotationSplitter()(anns(1))
    with pytest.raises(AnnotationError, match=r"5 picture\(s\) in 1 group\(s\) cannot be split"):
        AnnotationSplitter()(anns(5, group=lambda i: 'one'))
    with pytest.raises(AnnotationError, match="all 4 annotations are marked 'train', none 'valid'"):
        AnnotationSplitter()(anns(4, split=lambda i: 'train'))
    with pytest.raises(AnnotationError, match="1 of 4 annotations have no split, the first is 2.jpg"):
        AnnotationSplitter()(anns(4, split=lambda i: ('train', 'valid', None, 'train')[i]))

def long_tail(n=200, c=12, seed=0):
    rng = np.random.default_rng(seed)
    return anns(n, labels=lambda i: [f'l{j:02}' for j in range(c) if rng.random() < .6/(j+1)**1.3])

@pytest.mark.parametrize('seed', range(5))
def test_a_stratified_split_shows_every_label_that_has_two_pictures_on_both_sides(seed):
    a = long_tail(seed=seed) + anns(2, labels=lambda i: ['rare'])[:2]
    a[-1],a[-2] = (Annotation(f'r{i}.jpg', (1, 1), ['rare']) for i in range(2))
    tr,va = StratifiedSplitter(.2, seed)(a)
    count = lambda idxs, o: sum(o in a[i].labels for i in idxs)
    assert sorted(tr+va) == list(range(len(a))) and abs(len(va)-.2*len(a)) <= 8
    for o in sorted({o for x in a for o in x.labels}):
        n = count(tr, o)+count(va, o)
        if n >= 2: assert count(va, o) >= 1 and count(tr, o) >= 1, o
        assert abs(count(va, o)-.2*n) <= max(3, .1*n), o

def test_a_stratified_split_has_shares_nearer_to_the_whole_than_a_random_one():
    def off(splitter):
        d = 0
        for seed in range(5):
            a = long_tail(seed=seed); _,va = splitter(.2, seed)(a)
            for o in sorted({o for x in a for o in x.labels}):
                d += abs(sum(o in a[i].labels for i in va) - .2*sum(o in x.labels for x in a))
        return d
    assert off(StratifiedSplitter) < .5*off(AnnotationSplitter)

def test_stratified_folds_cover_all_keep_groups_and_balance_labels():
    a = [Annotation(x.path, x.size, x.labels, group=str(i//2)) for i,x in enumerate(long_tail())]
    f = stratified_folds(a, 4)
    assert set(f) == {0, 1, 2, 3} and (f[::2] == f[1::2]).all() and np.ptp(np.bincount(f)) <= 8
    n = [sum('l00' in x.labels for x,k in zip(a, f) if k == j) for j in range(4)]
    assert max(n)-min(n) <= 6
    with pytest.raises(AnnotationError, match="3 files or groups cannot make 5 folds"): stratified_folds(anns(3), 5)

def test_splitters_are_what_fastais_data_block_takes():
    dsets = DataBlock(splitter=AnnotationSplitter(.5), get_x=path_of, get_y=label_set).datasets(anns(10))
    assert len(dsets.train) == len(dsets.valid) == 5
