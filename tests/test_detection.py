"Detection as a task: what goes into a batch, what comes out in pixels of the files, what is refused"
import json, os
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch, torchvision
from fastai.vision.all import (DihedralItem, FlipItem, MixUp, Normalize, RandomCrop, Resize, aug_transforms,
                               set_seed)
from torch import Tensor, nn
from torch.testing import assert_close
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.items import FileImage, ObjectBBoxes, ObjectLabels
from vision_tasks.data.formats.coco import read_coco, write_coco
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import FitView
from vision_tasks.data.formats.yolo import read_yolo
from vision_tasks.detection import detection_dls, detection_learner, fit_anchors
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.losses.detection import DetectionLoss
from vision_tasks.models.detection.base import Detector
from vision_tasks.models.detection.yolo import yolo_v1
from vision_tasks.models.registry import arch_facts

PLAIN = JointTransform((64, 64), FitView('pad'), valid='pad', flip=0.)

class Oracle(Detector):
    """Finds what it is told: the objects of a batch in eval; without them one box for each of the `boxes` that it has,
    x1 y1 x2 y2 score label"""
    max_dets = 6
    def __init__(self, n_out, boxes=((8., 16, 32, 48, .9, 1), (0, 0, 64, 64, .3, 2))):
        super().__init__()
        self.n_out,self.encoder,self.head = n_out,nn.Conv2d(3, 1, 1),nn.Conv2d(1, 1, 1)
        self.register_buffer('boxes', torch.tensor(boxes))
    def losses_and_dets(self, x, targs, proposals):
        parts = dict(a=self.head(self.encoder(x)).mean(), b=x.new_tensor(2.)) if targs is not None else None
        dets = x.new_zeros(len(x), self.max_dets, 6)
        for d,t in zip(dets, targs or [None]*len(x)):
            if t is None: found = self.boxes
            else:
                on = t['labels'] > 0
                n  = int(on.sum())
                found = torch.cat([t['boxes'][on], torch.linspace(.9, .4, n)[:,None], t['labels'][on,None]], 1)
            d[:len(found)] = found[:self.max_dets]
        return parts,dets

@pytest.fixture(scope='module')
def anns(shapes): return [Annotation(a.path, a.size, a.labels, a.bboxes) for a in shapes]

def make_dls(anns, **kw):
    return detection_dls(anns, **{**dict(bs=4, num_workers=0, device='cpu', item_tfms=PLAIN), **kw})

@pytest.fixture
def learn(anns):
    l = detection_learner(make_dls(anns), Oracle, pretrained=False)
    with l.no_bar(), l.no_logging(): yield l

def test_a_net_of_ones_own_comes_as_it_is_and_one_by_name_with_a_frozen_encoder(anns, tmp_path):
    own = lambda n_out: yolo_v1(n_out, S=2, size=64, encoder='test_resnet', width=.05)
    torch.save(own(1).encoder.body.state_dict(), tmp_path/'w.pth')
    kw  = dict(arch_kwargs=dict(S=2, width=.05), encoder='test_resnet')
    nets = [detection_learner(make_dls(anns), o, **k).model
            for o,k in ((own, {}), (own(4), {}), ('yolo_v1', dict(kw, pretrained=tmp_path/'w.pth')))]
    assert [all(p.requires_grad for p in o.encoder.parameters()) for o in nets] == [True, True, False]

# --- what goes in

def test_a_batch_holds_boxes_in_pixels_of_the_input_and_ids_that_begin_at_1_padded_by_zeros(anns):
    dls = make_dls(anns)
    x,bboxes,labels = dls.valid.one_batch()
    assert list(dls.vocab) == ['#na#', *sorted({o for a in anns for o in a.labels})]
    for a,b,l in zip(dls.valid.items, bboxes, labels):
        n = len(a.labels)
        view = PLAIN.view(a.size)
        assert_close(b[:n].as_subclass(Tensor), view.bboxes(torch.tensor(a.bboxes)), atol=1e-3, rtol=0)
        assert [dls.vocab[i] for i in l[:n].tolist()] == a.labels and not b[n:].any() and not l[n:].any()

def test_what_is_to_be_ignored_has_the_id_minus_1_and_is_drawn(anns):
    some = [replace(a, ignore=np.arange(len(a.labels)) == 0) for a in anns]
    dls = make_dls(some)
    x,bboxes,labels = dls.valid.one_batch()
    for a,l in zip(dls.valid.items, labels): assert (l[:1] == -1).all() or not a.labels
    assert dls.valid.decode_batch((x, bboxes, labels))[0][2][0] in ('ignored', '#na#')
    dls.show_batch()

def test_fastais_batch_transforms_move_the_boxes_and_refuse_to_mirror_the_border(anns):
    dls = make_dls(anns, batch_tfms=aug_transforms(max_rotate=0, max_warp=0, max_zoom=1., p_affine=1., max_lighting=0,
                                                   pad_mode='zeros'))
    for _,b,l in dls.train:
        real = b.as_subclass(Tensor)[l.as_subclass(Tensor) > 0]
        assert (real[:,2:] > real[:,:2]).all()
    with pytest.raises(Exception, match="pad_mode='reflection' paints objects without boxes"):
        make_dls(anns, batch_tfms=aug_transforms()).train.one_batch()

@pytest.mark.parametrize('tfm', [Resize((32, 48), method='squish'), Resize(32), RandomCrop(40)], ids=str)
def test_boxes_follow_fastais_transforms_of_items_as_the_picture_does(anns, tfm):
    dls = make_dls(anns, item_tfms=tfm, batch_tfms=[])
    white = np.zeros((64, 64, 3), np.uint8)
    white[10:30, 24:40] = 255
    a = replace(anns[0], bboxes=np.array([[24, 10, 40, 30]]), labels=anns[0].labels[:1])
    x,b,_ = dls.valid.after_item((FileImage.create(white), ObjectBBoxes()(a), ObjectLabels(dls.vocab[1:])(a)))
    ys,xs = (x[0] > 127).nonzero(as_tuple=True)
    assert_close(b[0].as_subclass(torch.Tensor), torch.stack([xs.min(), ys.min(), xs.max()+1, ys.max()+1]).float(),
                 atol=1, rtol=0)

@pytest.mark.parametrize('tfms,why', [([PLAIN, FlipItem(1.)], 'JointTransform.*flip'),
                                      ([DihedralItem(1.)], 'JointTransform'),
                                      ([PLAIN, RandomCrop(32)], 'its boxes belong to one of 32x32'),
                                      ([PLAIN, Resize(32)], 'its boxes belong to one of 32x32')], ids=str)
def test_transforms_of_items_that_boxes_and_picture_cannot_follow_alike_are_refused(anns, tfms, why):
    with pytest.raises(Exception, match=why): make_dls(anns, item_tfms=tfms).train.one_batch()

def test_boxes_are_clipped_those_without_an_area_dropped_and_one_warning_counts_both(anns):
    a = next(a for a in anns if len(a.labels) > 1)
    out = a.bboxes.copy()
    out[0] = -50,-50,-10,-10
    out[1,2] = a.size[0]+30
    with pytest.warns(UserWarning, match='boxes of 1 of .* were clipped, and 1 objects without an area'):
        dls = make_dls([replace(a, bboxes=out), *[o for o in anns if o is not a]])
    mine = next(o for o in dls.train.items+dls.valid.items if o.path == a.path)
    assert mine.labels == a.labels[1:] and (mine.bboxes[:,2] <= a.size[0]).all()

def test_pictures_whose_boxes_nobody_annotated_and_unknown_labels_are_refused(anns):
    with pytest.raises(AnnotationError, match=r'boxes are not annotated .* bboxes=np.zeros\(\(0, 4\)\)'):
        make_dls([*anns, replace(anns[0], bboxes=None)])
    with pytest.raises(AnnotationError, match='not in the vocab'): make_dls(anns, vocab=['circle'])
    with pytest.raises(AnnotationError, match='none of the .* annotations has a label'):
        make_dls([replace(a, labels=[], bboxes=np.zeros((0, 4))) for a in anns])

@pytest.mark.train
@pytest.mark.parametrize('arch', ['ssdlite', 'retinanet', 'fcos'])
def test_a_data_set_without_any_object_teaches_background(anns, arch):
    none = [replace(a, labels=[], bboxes=np.zeros((0, 4))) for a in anns[:8]]
    learn = detection_learner(make_dls(none, vocab=['circle']), arch, encoder='test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        loss,score = learn.validate()
        assert 0 < loss < np.inf and np.isnan(score)
        assert np.isnan(learn.evaluate()['map']) and learn.annotate(none, thresh=.99)[0].labels == []

@pytest.mark.train
def test_five_hundred_objects_and_pictures_of_one_pixel_or_ten_thousand_are_ordinary(anns, tmp_path):
    from PIL import Image
    files = [tmp_path/f'{i}.png' for i in range(3)]
    sizes = (300, 200),(1, 1),(10_000, 40)
    for f,s in zip(files, sizes): Image.new('RGB', s, 'grey').save(f)
    x,y = np.meshgrid(np.arange(25)*12, np.arange(20)*10)
    many = np.stack([x, y, x+9, y+8], -1).reshape(-1, 4)
    boxes = many,np.array([[0, 0, 1, 1]]),np.array([[0, 0, 10_000, 40]])
    some = [Annotation(f, s, ['circle']*len(b), b) for f,s,b in zip(files, sizes, boxes)]
    learn = detection_learner(make_dls([*some, *anns[:5]], vocab=['circle', 'square', 'star', 'triangle'], bs=8,
                                       item_tfms=JointTransform(128, FitView('pad'), valid='pad', flip=0.)),
                              'ssdlite', encoder='test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert np.isfinite(learn.recorder.values[-1][:2]).all()
        said = learn.annotate(some, thresh=0.)
        assert len(said[0].labels) <= learn.model.max_dets
        for a in said: assert (a.bboxes >= 0).all() and (a.bboxes[:,2:] <= a.size).all()

# --- what comes out

@pytest.mark.parametrize('tfm', [PLAIN, JointTransform((80, 48), FitView('squish')),
                                 JointTransform((48, 80), FitView('crop'), valid='crop'),
                                 Resize(64, method='squish'), Resize(64, method='pad', pad_mode='zeros')], ids=str)
def test_boxes_come_back_to_pixels_of_the_file(anns, tfm):
    learn = detection_learner(make_dls(anns, item_tfms=tfm), Oracle, pretrained=False)
    a = Annotation(anns[0].path, (100, 60))
    view = learn.valid_view(a.size)
    px = np.zeros((60, 100, 3), np.uint8)
    with learn.no_bar(): said, = learn.annotate(px, thresh=.5)
    want = view.undo_bboxes(torch.tensor([[8., 16, 32, 48]])).clamp(min=0).minimum(torch.tensor([100, 60]*2))
    assert_close(torch.tensor(said.bboxes), want.float(), atol=1e-3, rtol=0)
    assert said.labels == [learn.dls.vocab[1]] and said.scores.tolist() == pytest.approx([.9])

def test_evaluate_is_perfect_for_one_that_knows_the_truth_and_says_what_pycocotools_would(learn):
    scores = learn.evaluate()
    assert scores['map'] == pytest.approx(1) and scores['ar_100'] == pytest.approx(1)
    truth,said,loss = learn.in_files()
    assert coco_ap(truth, said)['map'] == scores['map'] and loss == scores['valid_loss']
    df = learn.evaluate_per_class()
    assert (df.ap[df.n > 0] == 1).all() and df.n.sum() == sum(len(a.labels) for a in learn.dls.valid.items)

def by_pycocotools(truth, said, folder):
    "COCO's mean AP of the files that `write_coco` writes of truth and answers"
    coco = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval
    write_coco(truth, folder/'t.json'); write_coco(said, folder/'p.json')
    gt,dt = (json.loads((folder/f'{o}.json').read_text()) for o in 'tp')
    ids,files = {c['name']: c['id'] for c in gt['categories']},{i['file_name']: i['id'] for i in gt['images']}
    names,of  = {c['id']: c['name'] for c in dt['categories']},{i['id']: files[i['file_name']] for i in dt['images']}
    rows = [dict(image_id=of[o['image_id']], category_id=ids[names[o['category_id']]], bbox=o['bbox'], score=o['score'])
            for o in dt['annotations'] if names[o['category_id']] in ids]
    api = coco.COCO(str(folder/'t.json'))
    e = COCOeval(api, api.loadRes(rows), 'bbox')
    e.evaluate(); e.accumulate(); e.summarize()
    return e.stats[0]

def test_evaluate_agrees_with_the_written_file_in_pycocotools(learn, tmp_path):
    truth,said,_ = learn.in_files()
    rng = np.random.default_rng(0)
    said = [replace(a, bboxes=(a.bboxes + rng.normal(0, 2, a.bboxes.shape)*[1, 1, 0, 0]).astype(np.float32))
            for a in said]
    want = by_pycocotools(truth, said, tmp_path)
    assert coco_ap(truth, said)['map'] == pytest.approx(want, abs=1e-6) and 0 < want < 1

@pytest.mark.train
@pytest.mark.slow
@pytest.mark.parametrize('name', ['nuts', 'coco128'])
def test_on_real_pictures_evaluate_is_what_pycocotools_says_of_the_written_predictions(name, tmp_path):
    if not os.environ.get('VISION_TASKS_DATA'): pytest.skip('VISION_TASKS_DATA is not set')
    data = Path(os.environ['VISION_TASKS_DATA'])/name
    anns = read_coco(next(data.rglob('trainval.json')), data/'images') if name == 'nuts' else \
           read_yolo(data, split='train', on_error='drop')
    anns = [replace(a, masks=None, split=None) for a in anns]
    set_seed(0)
    dls = detection_dls(anns, size=96, bs=8, num_workers=0, device='cpu')
    learn = detection_learner(dls, 'ssdlite', encoder='test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(30 if name == 'nuts' else 2, 4e-3)
        scores,(truth,said,_) = learn.evaluate(),learn.in_files()
    assert scores['map'] == pytest.approx(by_pycocotools(truth, said, tmp_path), abs=1e-6)

def test_the_tuned_threshold_decides_and_is_each_classs_own(learn):
    a, = learn.annotate(learn.dls.valid.items[:1])
    assert len(a.labels) == 1                       # .9 but not .3
    t,v = learn.tune_threshold(per_class=True)
    assert len(t) == len(v) == len(learn.dls.vocab)-1
    learn.loss_func.thresh = np.array([.95, .2, .5, .5])
    a, = learn.annotate(learn.dls.valid.items[:1])
    assert a.labels == [learn.dls.vocab[2]]
    dec = learn.predict(learn.dls.valid.items[0])[1]
    assert dec.shape == (1, 6) and dec[0,5] == 2
    for bad in (-.1, 1.5, [.5]*3):
        with pytest.raises(ValueError, match='thresh: expected a number in .* or one for each of the 4 classes'):
            learn.annotate(learn.dls.valid.items[:1], thresh=bad)

def test_the_confusion_matrix_has_a_row_and_a_column_for_background(learn):
    cm = learn.confusion(thresh=.1)
    n = [sum(a.labels.count(o) for a in learn.dls.valid.items) for o in learn.dls.vocab[1:]]
    assert list(cm.columns) == list(cm.index) == [*learn.dls.vocab[1:], '#na#'] and np.diag(cm)[:-1].tolist() == n
    assert len(learn.plot_confusion(thresh=.1).images) == 1

def test_the_loss_is_the_weighted_sum_of_the_detectors_own_and_is_measured_in_validation(anns):
    learn = detection_learner(make_dls(anns), Oracle, pretrained=False, loss_func=DetectionLoss(dict(a=0., b=3.)))
    with learn.no_bar(): assert learn.validate()[0] == pytest.approx(6)
    with pytest.raises(ValueError, match=r"weights names \['c'\], but the losses of this detector are \['a', 'b'\]"):
        DetectionLoss(dict(c=1.))(dict(a=torch.ones(1), b=torch.ones(1)))

# --- nets

def test_torchvisions_builder_its_name_and_a_detector_are_the_same_and_the_net_normalises_itself(anns):
    dls,kw = make_dls(anns),dict(pretrained=False)
    nets = [torchvision.models.detection.ssdlite320_mobilenet_v3_large, 'ssdlite320_mobilenet_v3_large']
    models = []
    for o in nets:
        set_seed(0)
        models.append(detection_learner(dls, o, **kw).model)
    models.append(detection_learner(dls, models[0], **kw).model)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))
    assert models[2] is models[0] and models[0].n_out == 4
    assert not any(isinstance(o, Normalize) for dl in dls.loaders for o in dl.after_batch.fs)

def test_the_size_of_the_images_reaches_torchvisions_two_stage_nets_too(anns):
    for arch in ('fasterrcnn_mobilenet_v3_large_fpn', torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn):
        net = detection_learner(make_dls(anns), arch, pretrained=False).model.net
        assert net.rpn._post_nms_top_n == dict(training=200, testing=100)
        assert net.roi_heads.fg_bg_sampler.batch_size_per_image == 64

def test_detectors_have_recipes_of_their_own_and_another_with_coco_weights(anns):
    kw = dict(encoder='test_resnet', arch_kwargs=dict(width=.25))
    rates = {o: detection_learner(make_dls(anns), o, pretrained=False, **kw).recipe.base_lr
             for o in ('ssdlite', 'faster_rcnn', 'fcos', 'retinanet')}
    assert rates == dict(ssdlite=1e-2, faster_rcnn=1e-3, fcos=1e-3, retinanet=1e-3)
    for task,name in (('detection', 'fasterrcnn_resnet50_fpn_v2'), ('instance', 'maskrcnn_resnet50_fpn')):
        facts = arch_facts(name, task)
        assert facts['recipe_all']['base_lr'] == 5e-4 < facts['recipe']['base_lr'] and facts['recipe']['grad_clip'] == 1

def test_what_is_no_detector_is_refused(anns):
    dls = make_dls(anns)
    with pytest.raises(ValueError, match='expected a `Detector`.* got a Linear; subclass'):
        detection_learner(dls, nn.Linear(2, 2))
    with pytest.raises(ValueError, match='arch: expected .* a builder, or a name, got 3'): detection_learner(dls, 3)
    with pytest.raises(ValueError, match="no architecture 'ssdlit'"): detection_learner(dls, 'ssdlit')
    for arch in ('faster_rcnn', 'retinanet', 'fcos', 'ssdlite', 'ssdlite320_mobilenet_v3_large'):
        encoder = None if '320' in arch else 'test_resnet'
        with pytest.raises(ValueError, match="'widht'.*; see the arguments of its builder"):
            detection_learner(dls, arch, encoder, pretrained=False, arch_kwargs=dict(widht=2))

def test_torchvisions_keypoint_detector_is_refused_by_name_and_as_a_builder(anns):
    for o in ('keypointrcnn_resnet50_fpn', torchvision.models.detection.keypointrcnn_resnet50_fpn):
        with pytest.raises(ValueError, match="learns the keypoints of people .* this task does not have"):
            detection_learner(make_dls(anns), o, pretrained=False)

def test_mixup_is_refused(learn):
    with pytest.raises(ValueError, match='MixUp mixes images and one label each, which boxes cannot follow'):
        learn.fit(1, cbs=MixUp())

def test_anchors_are_fitted_in_pixels_of_the_networks_input(anns):
    big = [replace(a, size=(2*a.size[0], 2*a.size[1]), bboxes=2*a.bboxes) for a in anns]
    one,two = fit_anchors(anns, size=64, levels=2),fit_anchors(big, size=64, levels=2)
    assert_close(torch.tensor(one[0]), torch.tensor(two[0])) ; assert one[1] == pytest.approx(two[1])
    side = [np.sqrt(np.prod(b[2:]-b[:2])) for a in anns for b in a.bboxes*64/max(a.size)]
    assert min(side) <= min(one[0][0]) < max(one[0][-1]) <= max(side)

# --- it learns

@pytest.mark.train
def test_a_small_detector_finds_drawn_shapes_and_its_answers_are_annotations_that_can_be_written(anns, tmp_path):
    set_seed(0)
    learn = detection_learner(detection_dls(anns, size=64, bs=8, num_workers=0, device='cpu'), 'ssdlite',
                              encoder='test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(30, 5e-3)
        assert learn.evaluate(0)['map50'] > .4      # SSE4.1, AVX2 and torch 2.8: .85 to .88
        learn.tune_threshold(ds_idx=0)
        said = learn.annotate(anns[:4])
    assert any(a.labels for a in said)
    write_coco(said, tmp_path/'auto.json')
    back = {a.path.name: a for a in read_coco(tmp_path/'auto.json', anns[0].path.parent)}
    for a in said: assert back[a.path.name].labels == a.labels
