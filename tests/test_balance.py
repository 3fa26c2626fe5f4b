"Balanced sampling: factors by hand, frequencies by counting epochs"
import pickle, random
from collections import Counter
from dataclasses import replace
import numpy as np, pytest
from fastai.torch_core import set_seed
from vision_tasks.classification import classification_dls
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.balance import BalancedShuffle, inverse_frequencies, repeat_factors
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.detection import detection_dls
from vision_tasks.instance import instance_dls
from vision_tasks.localization import largest_object, localization_dls
from vision_tasks.multilabel import multilabel_dls, multilabel_learner

def test_repeat_factors_are_those_of_the_paper():
    labels = [['a']]*80 + [['a', 'b']]*16 + [['c', 'c']]*4
    r = repeat_factors(labels, thresh=.2)                 # shares .96, .16, .04
    assert r[:80] == pytest.approx(1.) and r[80:96] == pytest.approx((.2/.16)**.5) and r[96:] == pytest.approx(5**.5)
    assert repeat_factors(labels)[96] == pytest.approx((.16/.04)**.5)     # the median share by default
    assert list(repeat_factors([[], []])) == [1, 1]

def test_inverse_frequencies_show_all_classes_equally_often():
    labels = ['a']*90 + ['b']*9 + ['c']
    w = inverse_frequencies(labels)
    assert w.mean() == pytest.approx(1.)
    for o in 'abc': assert sum(v for v,l in zip(w, labels) if l == o) == pytest.approx(100/3)

def test_an_epoch_has_every_image_as_often_as_its_weight_says():
    weights = np.random.default_rng(0).uniform(.3, 3, 50)
    shuffle = BalancedShuffle(weights)
    want,seen = 50*weights/weights.sum(),Counter()
    random.seed(0)
    for _ in range(400):
        epoch = shuffle(list(range(50)))
        n = Counter(epoch)
        assert len(epoch) == 50 and all(abs(n[i] - o) < 1 for i,o in enumerate(want))
        seen += n
    assert np.abs(np.array([seen[i] for i in range(50)])/400 - want).max() < .1

@pytest.fixture(scope='module')
def anns(tmp_path_factory):
    """40 drawn images for training, 10 for validation"""
    drawn = draw_shapes(tmp_path_factory.mktemp('shapes'), 50, 64)
    return [replace(a, split='valid' if i%5 == 0 else 'train') for i,a in enumerate(drawn)]

def shown(dls, n=30):
    "How often an epoch shows each label, in the mean"
    count = Counter()
    for _ in range(n):
        for i in dls.train.get_idxs(): count.update(set(dls.train.items[i].labels))
    return {o: k/n for o,k in count.items()}

@pytest.mark.parametrize('make', [multilabel_dls, detection_dls, instance_dls])
def test_rare_labels_are_shown_more_often_and_epochs_are_as_long(make, anns):
    few = [a for a in anns if a.split == 'valid' or 'star' not in a.labels]
    few += [a for a in anns if a.split == 'train' and 'star' in a.labels][:2]
    set_seed(0)
    plain,dls = (make(few, size=32, bs=4, num_workers=0, device='cpu', balance=o) for o in (None, 'labels'))
    assert shown(plain)['star'] == 2 < shown(dls)['star']
    assert len(dls.train) == len(plain.train) and dls.train.n == plain.train.n
    assert len(dls.train.get_idxs()) == len(plain.train.get_idxs())
    assert dls.valid.get_idxs() == plain.valid.get_idxs()

@pytest.mark.parametrize('make, prepare', [
    (classification_dls, lambda a: [Annotation(o.path, o.size, o.labels[:1], split=o.split) for o in a]),
    (localization_dls, largest_object)])
def test_single_classes_are_shown_equally_often(make, prepare, anns):
    some = prepare([a for a in anns if len(a.labels)])
    set_seed(0)
    dls = make(some, size=32, bs=4, num_workers=0, device='cpu', balance='labels')
    n = shown(dls, 60)
    each = len(dls.train.items)/len(n)
    assert all(abs(o - each) < .5 for o in n.values()), n

def test_workers_callbacks_and_export_follow(anns, tmp_path):
    dls = multilabel_dls(anns, size=32, bs=4, num_workers=2, device='cpu', balance='labels', path=tmp_path)
    learn = multilabel_learner(dls, 'test_resnet', pretrained=False, metrics=[])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(learn.recorder.losses) == len(dls.train)
    learn.export('a.pkl')
    again = pickle.loads(pickle.dumps(dls.train.shuffle_fn))
    assert list(again.weights) == list(dls.train.shuffle_fn.weights) and again([]) == []

def test_other_images_than_those_it_was_made_for_are_refused():
    with pytest.raises(ValueError, match="the weights are those of 3 images, but the set has 2"):
        BalancedShuffle([1., 1, 2])([0, 1])
    with pytest.raises(ValueError, match="balance: expected one of 'labels', None, got 'classes'"):
        multilabel_dls([], balance='classes')
