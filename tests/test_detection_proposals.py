"Proposals on their way: found, kept, moved with the picture, padded, given to nets that need them"
import random
import numpy as np
import pytest, torch
from fastai.learner import load_learner
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from vision_tasks.data.annotation import Annotation, vocab_of
from vision_tasks.data.blocks import ProposalsEncode, pad_objects
from vision_tasks.data.items import BBoxLabels, FileImage, PixelBBox, RegionProposals
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import JitterView
from vision_tasks.detection import detection_dls, detection_learner

NET = dict(encoder='test_resnet', pretrained=False)

@pytest.fixture(scope='module')
def anns(tmp_path_factory): return draw_shapes(tmp_path_factory.mktemp('shapes'), n=12, size=64, seed=3)

def made(anns, proposals, **kw):
    return detection_dls(anns, **{**dict(size=64, bs=4, num_workers=0, device='cpu', proposals=proposals), **kw})

def frames(o):
    "A method whose boxes show where they come from: the whole picture and its left half"
    w,h = Image.open(o).size if not isinstance(o, np.ndarray) else o.shape[1::-1]
    return np.array([[0, 0, w, h], [0, 0, w/2, h]], np.float32)

@pytest.mark.parametrize('split_idx', [0, 1])
def test_proposals_go_where_the_boxes_go_and_none_takes_an_object_along(split_idx):
    random.seed(0)
    im,b = FileImage.create(np.zeros((40, 60, 3), np.uint8)),np.array([[5, 6, 30, 20], [40, 3, 58, 39]], np.float32)
    for _ in range(20):
        item = im,RegionProposals.create(b, img_size=(60, 40)),PixelBBox.create(b, img_size=(60, 40)), \
               BBoxLabels.create([1, 2])
        t = JointTransform(64, JitterView((.5, 2.5), 'pad'), rotate=20, min_visible=0.)
        _,p,o,l = t(item, split_idx=split_idx)
        assert_close(p.as_subclass(Tensor), o.as_subclass(Tensor)); assert len(o) == len(l)
    few = JointTransform(64, JitterView((2.5, 2.5), 'pad'), min_visible=.9, flip=0.)   # cut objects go
    _,p,o,_ = few((im, *item[1:]), split_idx=0)
    assert len(p) >= len(o) and (p >= 0).all() and (p <= 64).all()

def test_the_boxes_of_objects_and_not_the_proposals_steer_the_view():
    seen = []
    def view(w, h, out, bboxes): seen.append(bboxes); return (0, 0, w, h),(0, 0, *out)
    size = dict(img_size=(60, 40))
    item = (FileImage.create(np.zeros((40, 60, 3), np.uint8)), RegionProposals.create([[0, 0, 9, 9]], **size),
            PixelBBox.create([[5, 6, 30, 20]], **size), BBoxLabels.create([1]))
    JointTransform(64, view)(item, split_idx=0)
    assert seen[0].tolist() == [[5, 6, 30, 20]]

def test_objects_and_proposals_are_padded_each_to_their_own_most():
    def sample(k, n): return (torch.zeros(3, 8, 8), RegionProposals.create(np.ones((k, 4)), img_size=(8, 8)),
                              PixelBBox.create(np.ones((n, 4)), img_size=(8, 8)), BBoxLabels.create(np.ones(n)))
    for got in (pad_objects([sample(5, 1), sample(0, 2)]), pad_objects([sample(0, 2), sample(5, 0)])):
        assert {tuple(o.shape for o in s[1:]) for s in got} == {((5, 4), (2, 4), (2,))}
    assert got[0][1].sum() == 0 and got[1][2].sum() == 0

def test_batches_hold_the_proposals_of_their_pictures_in_pixels_of_the_input(anns):
    dls = made(anns, frames)
    x,p,b,l = dls.valid.one_batch()
    assert dls.n_inp == 2 and type(p) is RegionProposals
    assert_close(p[0].as_subclass(Tensor), torch.tensor([[0, 0, 64, 64], [0, 0, 32, 64.]]))
    assert len(made(anns, None).valid.one_batch()) == 3

def test_they_are_found_once_and_kept_beside_the_pictures(anns, monkeypatch):
    p = Proposals('grid', n=50, workers=0)
    made(anns, p)
    assert len(list((anns[0].path.parent/'.proposals').iterdir())) >= len(anns)
    monkeypatch.setattr(p, '_find', lambda *o: pytest.fail("found a second time"))
    assert made(anns, p).train.one_batch()[1].shape[1] > 1

@pytest.mark.parametrize('bad', [7, np.zeros((2, 4))])
def test_what_are_no_proposals_is_told(anns, bad):
    with pytest.raises(ValueError, match="a method's name, such as 'selective_search', or a `Proposals`, or another "):
        made(anns, bad)

def test_nets_and_dataloaders_must_agree_on_proposals(anns):
    with pytest.raises(ValueError, match=r"does not find its own .*proposals='selective_search'"):
        detection_learner(made(anns, None), 'fast_rcnn', **NET)
    with pytest.raises(ValueError, match='finds its own proposals: make the DataLoaders without'):
        detection_learner(made(anns, 'grid'), 'faster_rcnn', **NET)

@pytest.mark.train
@pytest.mark.parametrize('arch,kw', [('fast_rcnn', {}), ('rcnn', dict(crop=32, context=4))])
def test_every_verb_works_with_proposals(anns, arch, kw, tmp_path):
    dls   = made(anns, Proposals('grid', n=30), path=tmp_path)
    learn = detection_learner(dls, arch, arch_kwargs=dict(min_score=0., **kw), **NET)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=4, show_plot=False)
        learn.fine_tune(1, 1e-3)
        scores = learn.evaluate()
        assert np.isfinite(scores['valid_loss']) and len(learn.tune_threshold()) == 2
        dets,_ = learn.get_preds()
        assert dets.shape == (len(dls.valid_ds), 100, 6)
        files  = [a.path for a in anns[:3]]
        told   = learn.annotate(files, thresh=0.)
        pixels = learn.annotate([np.array(Image.open(o)) for o in files], thresh=0.)   # proposals for unseen pictures
        x,said,_,_ = learn.predict(files[0], with_input=True)
        assert x.shape == (3, 64, 64) and isinstance(said, Annotation)
        learn.show_results(); learn.dls.show_batch(); learn.plot_top_losses(2)
        learn.export('net.pkl')
        again = load_learner(tmp_path/'net.pkl')
        with again.no_bar(): back = again.annotate(files, thresh=0.)
    for a,b,c in zip(told, pixels, back):
        assert len(a.labels) and a.labels == b.labels == c.labels
        assert_close(a.bboxes, b.bboxes, atol=1e-3, rtol=0); assert_close(a.scores, c.scores)

@pytest.mark.train
def test_later_stages_run_once_after_fine_tune_and_after_each_fit_but_not_after_lr_find(anns):
    learn = detection_learner(made(anns, Proposals('grid', n=40)), 'rcnn', metrics=[],
                              arch_kwargs=dict(crop=32, context=4), **NET)
    seen  = []
    learn.model.fit_stages = lambda batches, **kw: seen.append([len(b) for b in batches])
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=8, show_plot=False); assert not seen
        learn.fine_tune(1); assert len(seen) == 1
        learn.fit_one_cycle(1); assert len(seen) == 2
    n = len(learn.dls.train_ds)
    assert seen[0] == [4]*-(-n//4)     # x, boxes, labels, proposals of the whole training set

def test_later_stages_can_be_fitted_by_other_numbers_and_name_a_class_without_objects_as_the_vocab_does(anns):
    dls   = made(anns, Proposals('grid', n=40), vocab=['ant', *vocab_of(anns), 'zebra'])
    learn = detection_learner(dls, 'rcnn', metrics=[], arch_kwargs=dict(crop=32, context=4), **NET)
    with pytest.warns(UserWarning, match="no object of class 'ant', 'zebra' in the batches"):
        few,many = (learn.fit_stages(max_windows=o) for o in (2, 99))
    assert max(few['positives']) == 2 < max(many['positives']) and learn.model.fitted
    learn = detection_learner(made(anns, None), 'faster_rcnn', metrics=[], **NET)
    assert learn.fit_stages() is None
    with pytest.raises(ValueError, match="TorchvisionDetector has no stages .* and takes no C"): learn.fit_stages(C=1.)

@pytest.mark.parametrize('bad,words', [
    (np.zeros((3, 5)), r'0005.png: expected the method to return .* got shape \(3, 5\)'), (None, r'got None'),
    (np.array([[50, 9, 20, 20]]), 'x1 <= x2, y1 <= y2, got shape'), (np.full((2, 4), np.nan), 'finite')])
def test_a_callable_that_gives_no_boxes_is_told_with_the_picture(anns, bad, words):
    encode = ProposalsEncode(lambda o: bad)
    with pytest.raises(ValueError, match=words): encode(anns[5].path)

@pytest.mark.train
def test_pictures_without_any_proposal_are_ordinary(anns):
    learn = detection_learner(made(anns, lambda o: np.zeros((0, 4), np.float32)), 'fast_rcnn', metrics=[], **NET)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert all(not len(a.labels) for a in learn.annotate([a.path for a in anns], thresh=0.))
