"The keypoint task: what only it has, and what it says to bad input"
import os
import warnings
from dataclasses import replace
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.all import (Flip, RandomResizedCrop, Resize, Rotate, Zoom, aug_transforms, load_learner, set_seed)
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.synthetic import SHAPE_FLIP_PAIRS, SHAPE_POINTS, draw_shapes
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.crops import crop_instances
from vision_tasks.keypoint import keypoint_dls, keypoint_learner
from vision_tasks.losses.points import PointLoss
from vision_tasks.models.heatmap import HeatmapHead
from vision_tasks.metrics.points import NME, PCK, PointError, normalizer_of

NET = 'shufflenet_v2_x0_5'
NAN = float('nan')

@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    "One shape a picture, of many sizes, with five named points"
    path = tmp_path_factory.mktemp('crops')
    return crop_instances(draw_shapes(path/'shapes', n=24, size=64), path/'crops', pad=.3)

def dls_of(anns, **kw):
    return keypoint_dls(anns, **{**dict(vocab=SHAPE_POINTS, size=64, bs=8, num_workers=0, device='cpu',
                                        flip_pairs=SHAPE_FLIP_PAIRS), **kw})

def learner_of(dls, arch=NET, **kw): return keypoint_learner(dls, arch, **{**dict(pretrained=False), **kw})

@pytest.fixture
def learn(crops, tmp_path):
    set_seed(0)
    learn = learner_of(dls_of(crops, path=tmp_path))
    with learn.no_bar(), learn.no_logging(): yield learn

def file_points(learn, y, items):
    "Targets of a valid batch, back in pixels of the files"
    return learn.in_file(y.as_subclass(Tensor), [a.size for a in items])

def last_layer(learn): return learn.model.head.last

# --- data

@pytest.mark.parametrize('item_tfms', [
    None, JointTransform((64, 48), valid='pad'), Resize((48, 64), 'squish'), Resize((48, 64), 'pad', pad_mode='zeros'),
    Resize((48, 64), 'crop')], ids=str)
def test_targets_are_in_minus_one_to_one_and_come_back_to_file_pixels(crops, item_tfms):
    learn = learner_of(dls_of(crops, item_tfms=item_tfms))
    x,y = learn.dls.valid.one_batch()
    assert y.shape == (len(x), 5, 2) and (y[~y.isnan()].abs() <= 1.4).all()
    items = learn.dls.valid.items[:len(x)]
    back,true = (file_points(learn, y, items),
                 torch.from_numpy(np.stack([a.points.reshape(-1, 2) for a in items])).double())
    inside = ((y > -1) & (y < 1)).all(-1)     # a crop may have left some out
    assert inside.float().mean() > .5 and (back-true)[inside].abs().max() < 1.

def test_training_geometry_keeps_every_point_in_the_picture(crops):
    torch.manual_seed(0)
    dls = dls_of(crops)
    for _ in range(4):
        for x,y in dls.train: assert not y.isnan().any() and (y.abs() <= 1).all()

def test_without_flip_pairs_pictures_are_not_mirrored(crops):
    left,right = 1,2
    assert all((y[:,left,0] < y[:,right,0]).all() for _ in range(4)
               for x,y in dls_of([a for a in crops], flip_pairs=None, item_tfms=None).train)

@pytest.mark.parametrize('how', ['JointTransform', 'aug_transforms'])
def test_whatever_mirrors_a_picture_exchanges_left_and_right(crops, how):
    "The oracle is the picture mirrored by hand, its points renamed by hand"
    plain = JointTransform(64, flip=0.).valid
    kw = dict(item_tfms=JointTransform(64, train=plain, flip=1.), batch_tfms=[]) if how == 'JointTransform' else dict(
        item_tfms=Resize(64, 'squish'), batch_tfms=Flip(p=1.))
    items = [replace(a, split='train') for a in crops[:8]]
    dl = dls_of([*items, replace(crops[9], split='valid')], **kw).train
    x,y = dl.new(shuffle=False, get_idxs=None).one_batch()
    for im,p,a in zip(x, y.as_subclass(Tensor), items):
        rel = (a.points[0]/a.size*[-2, 2] + [1, -1])[[0, 2, 1, 3, 4]]        # centre, left, right, top, bottom
        np.testing.assert_allclose(p, rel, atol=.03)
        assert p[1,0] < p[2,0]                                               # left is left again

def test_a_mirror_without_flip_pairs_is_refused_where_there_are_several_points(crops):
    tell = r"the image is mirrored, but the pairs of its 5 points to swap are unknown: pass flip_pairs"
    stock = dict(item_tfms=Resize(64, 'squish'), batch_tfms=Flip(p=1.))
    for kw in (dict(item_tfms=JointTransform(64, flip=1.)), stock):
        with pytest.raises(ValueError, match=tell): dls_of(crops, flip_pairs=None, **kw).train.one_batch()
    learn = learner_of(dls_of(crops, flip_pairs=None))
    with learn.no_bar(), pytest.raises(ValueError, match=tell): learn.annotate(crops[:2], tta=True)
    assert len(learner_of(dls_of(crops, flip_pairs=[])).annotate(crops[:2], tta=True)) == 2

def test_points_that_a_batch_transform_pushes_out_are_left_out(crops):
    far = Rotate(max_deg=180, p=1., draw=45.)
    y = dls_of(crops, item_tfms=Resize(64, 'squish'), batch_tfms=[far, Zoom(p=1., draw=1.6)]).train.one_batch()[1]
    assert y.isnan().any() and not y.isnan().all() and (y.nan_to_num().abs() <= 1).all()
    assert PointLoss()(torch.zeros(len(y), 10), y).isfinite()

def test_points_outside_their_picture_count_as_not_marked_and_a_warning_says_so(crops):
    far = crops[0].points.copy(); far[0, 2] = -900, 4e4
    some = [replace(crops[0], points=far, split='train'), *(replace(a, split='valid') for a in crops[1:8])]
    some += [replace(some[0], split='valid')]
    with pytest.warns(UserWarning, match=r"2 points in 2 of 9 images lie outside the image, as in .*_0.png; they "
                                         "count as not marked") as w:
        dls = dls_of(some, batch_tfms=[], flip_pairs=None)
    assert len([o for o in w if 'outside' in str(o.message)]) == 1
    y = dls.train.one_batch()[1]
    assert y[0, 2].isnan().all() and not y[0, [0, 1, 3, 4]].isnan().any()
    learn = learner_of(dls)
    with learn.no_bar():
        df = learn.evaluate_per_point().set_index('label')
        assert df.n['right'] == 7 and df.n['left'] == 8 and learn.evaluate()['error_px'] < 100

@pytest.mark.train
def test_one_point_needs_no_names(crops):
    anns = [replace(a, points=a.points[:,:1], visible=None) for a in crops]
    learn = learner_of(dls_of(anns, vocab=None, flip_pairs=None))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert list(learn.dls.vocab) == ['0'] and learn.annotate(crops[:2])[0].points.shape == (1, 2)

@pytest.mark.train
def test_a_picture_without_points_teaches_nothing_and_breaks_nothing(crops):
    none = [replace(a, points=np.full_like(a.points, NAN), visible=None) for a in crops[:6]]
    learn = learner_of(dls_of([*none, *crops[6:]]))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert all(np.isfinite(v) for v in learn.evaluate().values())
        dl = learn.dls.test_dl(none, with_labels=True)
        assert learn.validate(dl=dl)[0] == 0 and np.isnan(learn.evaluate(dl=dl)['error_px'])

@pytest.mark.train
def test_missing_points_have_no_gradient(crops):
    gone = [replace(a, points=np.where(np.arange(5)[:,None] == 0, np.nan, a.points), visible=None) for a in crops]
    learn = learner_of(dls_of(gone))
    with torch.no_grad(): before = last_layer(learn).weight.clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, wd=0.)
    moved = (last_layer(learn).weight - before).abs().flatten(1).amax(1)
    assert moved[0] == 0 and (moved[1:] > 0).all()

def test_points_marked_invisible_by_zero_are_left_out(crops):
    v = np.full((1, 5), 2); v[0, 1] = 0
    dls = dls_of([replace(a, visible=v) for a in crops])
    y = dls.valid.one_batch()[1]
    assert y[:,1].isnan().all() and not y[:,[0, 2, 3, 4]].isnan().any()

# --- learner

@pytest.mark.train
def test_evaluate_is_in_pixels_of_the_file(learn):
    learn.fit(1, 1e-3)
    items = learn.dls.valid.items
    pred = np.stack([a.points for a in learn.annotate(items)])
    e = np.linalg.norm(pred - np.stack([a.points[0] for a in items]), axis=-1)
    diag = np.array([np.hypot(*a.size) for a in items])[:,None]
    s = learn.evaluate()
    assert s['error_px'] == pytest.approx(e.mean(), rel=1e-4) and s['nme'] == pytest.approx((e/diag).mean(), rel=1e-4)
    assert s['pck@.05'] == pytest.approx((e/diag <= .05).mean())
    df = learn.evaluate_per_point()
    assert list(df.label) == list(SHAPE_POINTS)
    np.testing.assert_allclose(df.error_px, e.mean(0), rtol=1e-4)

def test_annotate_and_predict_answer_in_the_picture(learn, crops):
    said = learn.annotate(crops[:4])
    for a,b in zip(said, crops):
        assert a.points.shape == (5, 2) and (a.points >= 0).all() and (a.points <= b.size).all() and a.labels == []
    a,points,raw = learn.predict(crops[0])
    np.testing.assert_allclose(a.points, said[0].points, atol=1e-3)
    assert points.shape == (5, 2) and raw.numel() == 10
    assert len(learn.predict(crops[0], with_input=True)) == 4
    with pytest.raises(ValueError, match="no threshold to tune"): learn.tune_threshold()

@pytest.mark.train
@pytest.mark.parametrize('loss', ['mse', 'l1', 'smooth_l1', 'wing'])
def test_losses_by_name_train(crops, loss):
    learn = learner_of(dls_of(crops), loss_func=loss)
    with learn.no_bar(), learn.no_logging():
        before = last_layer(learn).weight.clone()
        learn.fit(1, 1e-3)
        assert learn.loss_func.kind == loss and np.isfinite(learn.recorder.values[-1]).all()
        assert not torch.equal(before, last_layer(learn).weight)

def test_losses_equal_torchs_over_the_marked_coordinates():
    torch.manual_seed(0)
    x,y = torch.rand(4, 10)*2-1,torch.rand(4, 5, 2)*2-1
    y[0, 1] = y[2] = NAN
    on = ~y.isnan()
    a,b = x.view(4, 5, 2)[on],y[on]
    for kind,want in (('mse', F.mse_loss(a, b)), ('l1', F.l1_loss(a, b)),
                      ('smooth_l1', F.smooth_l1_loss(a, b, beta=.05)/1)):
        torch.testing.assert_close(PointLoss(kind)(x, y), want)
    d,w,e = (a-b).abs(),.1,.02
    torch.testing.assert_close(PointLoss('wing')(x, y), torch.where(d < w, w*(1+d/e).log(), d-w+w*np.log(1+w/e)).mean())
    f = PointLoss(); f.reduction = 'none'
    assert f(x, y).shape == (4, 5, 2) and (f(x, y)[2] == 0).all()
    x.requires_grad_(); PointLoss()(x, torch.full_like(y, NAN)).backward()
    assert (x.grad == 0).all()

@pytest.mark.train
@pytest.mark.parametrize('head', ['heatmap', 'grid', 'pool'])
def test_it_overfits_a_few_pictures_far_below_what_the_mean_shape_reaches(crops, head):
    set_seed(0)
    some = [replace(a, split=s) for a in crops[:8] for s in ('train', 'valid')]
    plain = JointTransform(64, train=JointTransform(64).valid, flip=0.)
    learn = learner_of(dls_of(some, item_tfms=plain, batch_tfms=[]), 'test_resnet', loss_func='mse',
                       arch_kwargs=dict(head=head) if head == 'heatmap' else dict(ps=0., head=head))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(80, 5e-3)
        error = learn.evaluate_per_point().median_px.mean()
    rel = np.stack([a.points[0]/a.size for a in crops[:8]])
    guess = np.median([np.linalg.norm((rel.mean(0)-r)*a.size, axis=-1) for r,a in zip(rel, crops)], 0).mean()
    assert error < .5*guess      # of eight runs .31 to .39 of it ('grid'), .19 to .29 ('pool')

@pytest.mark.train
def test_a_net_of_ones_own_is_taken(crops):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3*64*64, 10))
    net.encoder = net[0]
    learn = learner_of(dls_of(crops), net)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    assert learn.get_preds()[0].shape[0] == len(learn.dls.valid_ds)

def test_the_normalizer_may_name_two_points(crops):
    learn = learner_of(dls_of(crops), by=('left', 'right'))
    with learn.no_bar():
        items = learn.dls.valid.items
        e = np.stack([np.linalg.norm(a.points-b.points[0], axis=-1)/np.linalg.norm(b.points[0, 1]-b.points[0, 2])
                      for a,b in zip(learn.annotate(items), items)])
        scores = learn.evaluate()
        assert scores['nme:left-right'] == pytest.approx(e.mean(), rel=1e-4) != scores['nme']
        np.testing.assert_allclose(learn.evaluate_per_point(by=('left', 'right')).nme, e.mean(0), rtol=1e-4)
        with pytest.raises(ValueError, match="by names 'eye', but the 5 points are"):
            learn.evaluate_per_point(by=('eye', 'left'))

# --- crops

def test_crops_hold_their_instance(tmp_path):
    anns = draw_shapes(tmp_path/'s', n=8, size=(96, 64))
    res = crop_instances(anns, tmp_path/'c')
    assert len(res) == sum(len(a.labels) for a in anns)
    k = 0
    for a in anns:
        for b,p,o in zip(a.bboxes, a.points, a.labels):
            c = res[k]; k += 1
            assert Image.open(c.path).size == c.size and c.labels == [o] and c.group == str(a.path)
            shift = b - c.bboxes[0]
            np.testing.assert_allclose(c.points[0], p - shift[:2])
            x,y = (int(v) for v in shift[:2])
            px = np.asarray(Image.open(a.path).convert('RGB'))[y:y+c.size[1], x:x+c.size[0]]
            assert np.array_equal(np.asarray(Image.open(c.path)), px)
    assert not crop_instances([replace(a, ignore=np.ones(len(a.labels), bool)) for a in anns], tmp_path/'c')

def test_instances_without_a_marked_point_or_of_a_few_pixels_are_dropped_and_counted(tmp_path):
    Image.new('RGB', (60, 40)).save(tmp_path/'a.png')
    nan = float('nan')
    # kept; not marked; marked as 0; marked outside of the crop; 5 pixels, of 30, inside the image; 7 x 9; ignored
    boxes  = [*[[5, 5, 25, 25]]*3, [5, 5, 15, 15], [55, 5, 85, 9], [30, 10, 37, 19], [0, 0, 3, 3]]
    points = [[9, 9], [nan, nan], [9, 9], [40, 30], [57, 7], [33, 12], [1, 1]]
    visible = [2, 0, 0, 2, 2, 1, 2]
    a = Annotation(tmp_path/'a.png', (60, 40), ['x']*7, boxes, points=[[o] for o in points],
                   visible=[[o] for o in visible], ignore=[False]*6 + [True])
    names = lambda res: [o.path.stem for o in res]
    words = r"4 of 6 instances are dropped: 3 have fewer than 1 marked points, 1 a box of less than 8 pixels. .*a.png"
    with pytest.warns(UserWarning, match=words): res = crop_instances([a], tmp_path/'c')
    assert names(res) == ['a_0', 'a_5'] == sorted(o.stem for o in (tmp_path/'c').iterdir())
    with pytest.warns(UserWarning, match="2 of 6 .* 0 have fewer than 0 .* 2 a box of less than 10 pixels"):
        assert names(crop_instances([a], tmp_path/'d', min_points=0, min_size=10)) == ['a_0', 'a_1', 'a_2', 'a_3']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(crop_instances([a], tmp_path/'e', min_points=0, min_size=0)) == 6
        assert len(crop_instances([replace(a, points=None, visible=None)], tmp_path/'f', min_size=0)) == 6

# --- bad input

def test_bad_data_are_told(crops, tmp_path):
    many = draw_shapes(tmp_path/'s', n=8, size=64)
    with pytest.raises(AnnotationError, match="instances in one image, but this task predicts the points of one; "
                                              r"`crop_instances\(annotations\)`"): dls_of(many)
    with pytest.raises(AnnotationError, match=r"_0.png: 4 points, but vocab names 5"):
        dls_of([*crops[1:], replace(crops[0], points=crops[0].points[:,:4], visible=None)])
    with pytest.raises(AnnotationError, match=r"4 points, but .* has 5"):
        dls_of([*crops[1:], replace(crops[0], points=crops[0].points[:,:4], visible=None)], vocab=None, flip_pairs=None)
    with pytest.raises(AnnotationError, match="none of the 24 annotations has points|"
                                              "none of the .* annotations has points"):
        dls_of([replace(a, points=None, visible=None) for a in crops])
    with pytest.raises(AnnotationError, match="no point of the .* annotations is marked inside its image"):
        dls_of([replace(a, points=np.full_like(a.points, NAN), visible=None) for a in crops])
    with pytest.raises(ValueError, match=r"flip_pairs names 'nose', but the 5 points are \['centre'"):
        dls_of(crops, flip_pairs=[('left', 'nose')])
    with pytest.raises(ValueError, match="skeleton names 9"): dls_of(crops, skeleton=[(0, 9)])
    with pytest.raises(ValueError, match=r"flip_pairs: expected a list of pairs .*; 'left' is no pair"):
        dls_of(crops, flip_pairs=('left', 'right'))
    with pytest.raises(ValueError, match="duplicate names"): dls_of(crops, vocab=list('aabcd'), flip_pairs=None)
    with pytest.raises(AnnotationError, match="the data set is empty"): dls_of([])

def test_bad_arguments_of_the_learner_are_told(crops):
    dls = dls_of(crops)
    with pytest.raises(ValueError, match="did you mean 'wing'"): learner_of(dls, loss_func='wingg')
    with pytest.raises(ValueError, match="head is 'heatmap', 'grid' or 'pool', not 'heat'"):
        learner_of(dls, arch_kwargs=dict(head='heat'))
    with pytest.raises(ValueError, match="its last layer needs n_out=10"):
        learn = learner_of(dls, n_out=6)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)

def test_a_transform_that_cannot_be_undone_is_refused_when_the_learner_is_made(crops):
    with pytest.raises(ValueError, match="RandomResizedCrop.* cannot be undone"):
        learner_of(dls_of(crops, item_tfms=RandomResizedCrop(64)))
    assert len(learner_of(dls_of(crops, item_tfms=Resize(64, 'squish'), batch_tfms=aug_transforms(max_warp=0)))
               .annotate(crops[:2])) == 2

def test_normalizers_are_what_they_say_and_zero_is_refused(crops):
    a = Annotation('a.png', (30, 40), points=[[0, 0], [6, 8], [NAN, NAN]])
    assert (normalizer_of(a) == 50 and normalizer_of(a, (0, 1)) == 10 and normalizer_of(a, 7) == 7
            and normalizer_of(a, 'box') == pytest.approx(48**.5))
    assert (np.isnan(normalizer_of(a, (0, 2)))
            and normalizer_of(replace(a, points=a.points[None], labels=['x'], bboxes=[[0, 0, 4, 9]]), 'box') == 6)
    with pytest.raises(AnnotationError, match=r"a.png: the normalizer \(0, 0\) is 0 pixels"): normalizer_of(a, (0, 0))
    with pytest.raises(ValueError, match="by: expected one of 'diagonal', 'box'"): normalizer_of(a, 'width')
    assert normalizer_of(a, ('x', 'y'), ['x', 'y', 'z']) == 10
    with pytest.raises(ValueError, match="by names 'v', but the 3 points"): normalizer_of(a, ('x', 'v'), list('xyz'))
    names = [m.name for m in (NME(), NME('box'), NME(('x', 'y')), NME(30), PCK(.2, (0, 1)))]
    assert names == ['nme', 'nme:box', 'nme:x-y', 'nme:30', 'pck@.2:0-1']

def test_where_a_normalizer_is_unknown_table_and_metrics_exclude_the_image(crops):
    some = [replace(a, points=np.where((np.arange(5) == 1)[:,None] & (i%2 == 0), np.nan, a.points), visible=None)
            for i,a in enumerate(crops)]
    learn = learner_of(dls_of(some), metrics=[NME((1, 2)), PCK(.5, (1, 2))])
    with learn.no_bar():
        s,df = learn.evaluate(),learn.evaluate_per_point(by=(1, 2), thresh=.5)
        n = np.array([sum(not np.isnan(a.points[0, 1, 0]) for a in learn.dls.valid.items)]*5)
        assert 0 < n[0] < len(learn.dls.valid.items)
        assert (df.nme*n).sum()/n.sum() == pytest.approx(s['nme:1-2'], rel=1e-4)
        assert (df['pck@.5']*n).sum()/n.sum() == pytest.approx(s['pck@.5:1-2'])

def test_exported_learners_answer_the_same(learn, crops, tmp_path):
    learn.export(tmp_path/'l.pkl')
    with (l := load_learner(tmp_path/'l.pkl')).no_bar():
        np.testing.assert_allclose(l.annotate(crops[:3])[2].points, learn.annotate(crops[:3])[2].points, atol=1e-3)
    assert (isinstance(learn.metrics[0], PointError) and isinstance(learn.metrics[1], NME)
            and isinstance(learn.metrics[2], PCK))

@pytest.mark.train
@pytest.mark.slow
def test_real_faces_train_from_local_weights_and_beat_the_mean_face():
    data,weights = (os.environ.get(f'VISION_TASKS_{o}') for o in ('DATA', 'WEIGHTS'))
    if not data or not weights: pytest.skip('needs VISION_TASKS_DATA and VISION_TASKS_WEIGHTS')
    read = lambda o: read_df(f'{data}/face_keypoints/{o}_frames_keypoints.csv', f'{data}/face_keypoints/{o}',
                             point_cols=list(range(1, 137)))
    train,valid = read('training'),read('test')
    assert len(train) == 320 and len(valid) == 100 and {a.points.shape for a in train + valid} == {(68, 2)}
    anns = [replace(a, split=s) for s,o in (('train', train), ('valid', valid)) for a in o]
    set_seed(0)
    learn = keypoint_learner(keypoint_dls(anns, size=96, bs=16, num_workers=0, device='cpu'), 'mobilenet_v2',
                             pretrained=f'{weights}/mobilenet_v2_imagenet_features_tv.pth')
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(5, 5e-3)
    mean = np.mean([a.points/a.size for a in train], 0)
    guess = np.mean([np.linalg.norm(a.points - mean*a.size, axis=-1).mean() for a in valid])
    assert learn.evaluate()['error_px'] < .9*guess

def test_the_heads_are_chosen_by_name_and_bounded(crops):
    dls = dls_of(crops)
    for head in ('heatmap', 'grid', 'pool'):
        learn = keypoint_learner(dls, 'test_resnet', pretrained=False, arch_kwargs=dict(head=head))
        assert isinstance(learn.model.head, HeatmapHead) == (head == 'heatmap')
        assert learn.get_preds()[0].abs().max() <= (1.3 if head == 'heatmap' else 1)
    assert isinstance(keypoint_learner(dls, 'test_resnet', pretrained=False).model.head, HeatmapHead)
    small = keypoint_learner(dls, resnet18, pretrained=False, arch_kwargs=dict(width=8))
    assert isinstance(small.model.head, HeatmapHead)
    with pytest.raises(ValueError, match="y_range bounds the heads 'grid' and 'pool'"):
        keypoint_learner(dls, 'test_resnet', pretrained=False, arch_kwargs=dict(y_range=(-1.1, 1.1)))
    with pytest.raises(ValueError, match="head is 'heatmap', 'grid' or 'pool', not 'map'"):
        keypoint_learner(dls, 'test_resnet', pretrained=False, arch_kwargs=dict(head='map'))

def test_small_images_get_finer_maps(crops):
    strides = []
    for size in (64, 160):
        learn = keypoint_learner(dls_of(crops, size=size), 'test_resnet', pretrained=False)
        x = learn.dls.valid.one_batch()[0]
        strides.append(size/(learn.model.head.maps(learn.model.encoder(x)).shape[-1] - 2))
    assert strides == [4, 8]
