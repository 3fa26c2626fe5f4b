"Instance segmentation as a task: masks in the batch, masks in pixels of the files, scores, what is refused"
import json, random
from dataclasses import replace
import numpy as np, pytest, torch, torchvision
from fastai.vision.all import Resize, TensorImage, aug_transforms, set_seed
from torch import Tensor, nn
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.items import FileImage, InstanceMasks, ObjectMasks, PixelBBox
from vision_tasks.data.formats.coco import read_coco, write_coco
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import CropView, FitView, JitterView
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.metrics.detection import coco_ap
from vision_tasks.instance import instance_dls, instance_learner
from vision_tasks.models.detection.base import Detector
from vision_tasks.multilabel import multilabel_dls
from vision_tasks.ops.masks import decode_mask, encode_rle, mask_bbox
from test_masks import pasted

PLAIN = JointTransform((64, 64), FitView('pad'), valid='pad', flip=0.)
M = 28

class Oracle(Detector):
    """Finds what it is told: the objects of a batch in eval, with masks of their own; without them a disc in each of
    the `boxes` that it has, x1 y1 x2 y2 score label"""
    max_dets,has_masks = 6,True
    def __init__(self, n_out, boxes=((8., 16, 32, 48, .9, 1), (0, 0, 64, 64, .3, 2))):
        super().__init__()
        self.n_out,self.encoder,self.head = n_out,nn.Conv2d(3, 1, 1),nn.Conv2d(1, 1, 1)
        self.register_buffer('boxes', torch.tensor(boxes))
        x = (torch.arange(M)+.5)/M*2 - 1
        self.register_buffer('disc', (1.2 - (x**2 + x[:,None]**2).sqrt()).clamp(0, 1)*.7)
    def losses_and_dets(self, x, targs, proposals):
        parts = dict(a=self.head(self.encoder(x)).mean(), b=x.new_tensor(2.)) if targs is not None else None
        dets,masks = x.new_zeros(len(x), self.max_dets, 6),x.new_zeros(len(x), self.max_dets, M, M)
        for d,m,t in zip(dets, masks, targs or [None]*len(x)):
            if t is None: found,seen = self.boxes,self.disc.expand(len(self.boxes), M, M)
            else:
                on = t['labels'] > 0
                n  = int(on.sum())
                found = torch.cat([t['boxes'][on], torch.linspace(.9, .4, n)[:,None], t['labels'][on,None]], 1)
                seen  = torchvision.ops.roi_align(t['masks'][on,None].float(), list(t['boxes'][on,None]), M)[:,0]
            d[:len(found)],m[:len(found)] = found[:self.max_dets],seen[:self.max_dets]
        return parts,(dets, masks)

@pytest.fixture(scope='module')
def anns(shapes): return [Annotation(a.path, a.size, a.labels, a.bboxes, masks=a.masks) for a in shapes]

def make_dls(anns, **kw):
    return instance_dls(anns, **{**dict(bs=4, num_workers=0, device='cpu', item_tfms=PLAIN), **kw})

@pytest.fixture
def learn(anns):
    l = instance_learner(make_dls(anns), Oracle, pretrained=False)
    with l.no_bar(), l.no_logging(): yield l

def several(anns): return next(a for a in anns if len(a.labels) > 2)

def of_kind(a, kind):
    "`a` with masks that are polygons, RLE or bool arrays"
    px = lambda m: decode_mask(m, a.size)
    to = dict(polygons=lambda m: m, rle=lambda m: encode_rle(px(m)), bool=px)
    return replace(a, masks=[to[kind](m) for m in a.masks])

def iou(a, b): return ((a & b).flatten(1).sum(1)/(a | b).flatten(1).sum(1).clamp(min=1)).numpy()

# --- what goes in

@pytest.mark.parametrize('kind', ['polygons', 'rle', 'bool'])
def test_a_batch_holds_the_masks_in_pixels_of_the_input_padded_by_zeros(anns, kind):
    dls = make_dls([of_kind(a, kind) for a in anns])
    x,bboxes,labels,masks = dls.valid.one_batch()
    assert type(masks) is InstanceMasks and masks.dtype == torch.uint8
    assert masks.shape == (*labels.shape, 64, 64)
    for a,m in zip(dls.valid.items, masks.as_subclass(Tensor)):
        n = len(a.labels)
        assert not m[n:].any()
        # pictures of 64 pixels: nothing is scaled
        if n: assert iou(m[:n].bool(), torch.tensor(np.stack([decode_mask(o, a.size) for o in a.masks]))).min() > .93

@pytest.mark.parametrize('rotate', [0, 40])
@pytest.mark.parametrize('kind', ['polygons', 'rle', 'bool'])
def test_masks_go_where_the_pixels_of_the_picture_go_and_turned_boxes_are_tight_around_them(anns, kind, rotate):
    "The oracle is the picture itself: an object painted white, all else black, is seen where its mask is"
    random.seed(0)
    a = of_kind(several(anns), kind)
    for view in (JitterView((.6, 1.4)), CropView((.4, 1.)), FitView('squish')):
        tfm = JointTransform((96, 80), train=view, vflip=.5, rotate=rotate, p_rotate=1., fill=(0, 0, 0),
                             min_visible=.01)
        for k in range(3):
            state,found = random.getstate(),[]
            for i,o in enumerate(a.masks):
                random.setstate(state)
                px = torch.from_numpy(decode_mask(o, a.size)).to(torch.uint8)*255
                im,bboxes,masks = (o.as_subclass(Tensor) for o in tfm(item(px, a), split_idx=0))
                seen = im[0] > 127
                if seen.sum() < 60: continue
                ious = iou(seen[None], masks.bool())
                found.append(ious.max())
                b,tight = bboxes[ious.argmax()],torch.from_numpy(mask_bbox(masks[ious.argmax()].bool().numpy()))
                if rotate: assert torch.equal(b, tight)
                else: assert (b - tight).abs().max() < 2.6
            assert not found or min(found) > (.7 if rotate else .8)
        assert found

def item(px, a): return TensorImage(px.expand(3, *px.shape)),PixelBBox.create(a.bboxes, img_size=a.size),ObjectMasks(a)

@pytest.mark.parametrize('view', [CropView((.1, 1.)), JitterView((.3, 2.5), 'pad'), JitterView((.3, 2.5), 'squish')])
def test_run_lengths_are_laid_as_the_same_masks_in_arrays(view):
    rng = np.random.default_rng(0)
    for k in range(60):
        w,h  = rng.integers(3, 40, 2).tolist()
        full = (rng.random((3, h, w)) < .1) | (np.arange(w) < rng.integers(0, w+1))
        full[2,:,rng.random(w) < .7] = False
        b    = np.array([[0, 0, w, h]]*3, np.float32)
        t    = JointTransform((31, 24), view, vflip=.5, min_visible=0.)
        laid = []
        for masks in (list(full), [encode_rle(m) for m in full]):
            random.seed(k)
            x = TensorImage(torch.zeros(3, h, w, dtype=torch.uint8))
            laid.append(t((x, PixelBBox.create(b, img_size=(w, h)),
                           ObjectMasks(Annotation('a.png', (w, h), ['o']*3, b, masks=masks))), split_idx=0)[-1])
        assert torch.equal(*laid)

def test_polygons_that_reach_out_of_the_picture_do_not_paint_its_border(anns):
    a = Annotation(anns[0].path, (64, 64), ['circle'], [[0, 20, 30, 40]], masks=[[[-30, 20, 30, 20, 30, 40, -30, 40]]])
    tfm = JointTransform((128, 64), train='pad', valid='pad', flip=0.)
    _,b,m = tfm(item(torch.zeros(64, 64, dtype=torch.uint8), a), split_idx=1)
    assert m.shape == (1, 64, 128) and torch.from_numpy(mask_bbox(m[0].bool().numpy())).tolist() == [32, 20, 62, 40]

def test_a_polygon_with_nan_is_refused_when_it_is_drawn(anns):
    a = Annotation(anns[0].path, (64, 64), ['circle'], [[0, 20, 30, 40]],
                   masks=[[[2, 20, 30, 20, float('nan'), 40, 2, 40]]])
    with pytest.raises(AnnotationError, match=r"masks, row 0 \(circle\): mask, polygon 0: expected finite pixels"):
        JointTransform(64)(item(torch.zeros(64, 64, dtype=torch.uint8), a), split_idx=1)

def test_an_object_whose_mask_leaves_the_view_goes_with_box_and_label_and_what_is_ignored_needs_no_mask(anns):
    class Left(FitView):
        def __call__(self, w, h, out, bboxes=None): return (0, 0, 32, 64),(0, 0, *out)
    # a frame whose corner is in view, but of whose pixels none are; one to be ignored; one that is all in view
    masks = [[[40, 10, 60, 10, 60, 60, 40, 60]], [], [[2, 2, 20, 2, 20, 20, 2, 20]]]
    a = Annotation(anns[0].path, (64, 64), ['circle', 'star', 'square'],
                   [[5, 10, 60, 60], [0, 30, 30, 60], [2, 2, 20, 20]], masks=masks, ignore=[0, 1, 0])
    dls = make_dls([a, *anns], item_tfms=JointTransform(64, valid=Left(), flip=0.))
    _,bboxes,labels,got = dls.test_dl([a], with_labels=True).one_batch()
    assert labels.tolist() == [[-1, 2]] and bboxes.shape == (1, 2, 4) and not got[0,0].any() and got[0,1].any()

def test_the_masks_of_a_data_set_are_looked_at_before_training(anns):
    a = several(anns)
    def swap(m, **kw): return [replace(a, masks=[m, *a.masks[1:]], **kw), *(o for o in anns if o is not a)]
    for m,words in (([[1, 1, 5, 5]], 'three or more points'), ([[1, 1, 5, 5, 9, 1, 4]], 'three or more points'),
                    (dict(size=[64, 64], counts=[100]), r'sum is h\*w = 4096'), ([], 'the mask is empty'),
                    (np.zeros((64, 64), bool), 'the mask is empty'), (np.zeros((64, 64)), 'mask > 0 for an array')):
        with pytest.raises(AnnotationError, match=rf'{a.path.name}, masks, row 0 \({a.labels[0]}\): .*{words}'):
            make_dls(swap(m))
    assert make_dls(swap([], ignore=np.arange(len(a.labels)) == 0)) is not None
    with pytest.raises(AnnotationError, match=rf'{a.path.name}, masks, row 0 \({a.labels[0]}\): .*three or more'):
        for dl in make_dls(swap([[1, 1, 5, 5]]), check=False).loaders:
            for _ in dl: pass
    with pytest.raises(AnnotationError, match=rf'{a.path.name}, masks, row 0: expected \(h, w\) = \(64, 64\)'):
        replace(a, masks=[dict(size=[32, 64], counts=[2048]), *a.masks[1:]])

def test_boxes_without_masks_are_refused_and_a_picture_without_objects_is_not(anns):
    a = several(anns)
    with pytest.raises(AnnotationError, match=rf'{a.path.name}: {len(a.labels)} boxes, but no masks .*detection_dls'):
        make_dls([replace(a, masks=None), *anns])
    for none in ([], None):
        dls = make_dls([Annotation(o.path, o.size, [], np.zeros((0, 4)), masks=none) for o in anns[:5]], vocab=['star'])
        x,b,l,m = dls.valid.one_batch()
        assert m.shape == (1, 0, 64, 64) and l.shape == (1, 0)

def test_fastais_resize_is_refused_since_masks_do_not_follow_it(anns):
    with pytest.raises(Exception, match='only JointTransform transforms masks with the image'):
        make_dls(anns, item_tfms=Resize(64, method='squish')).train.one_batch()

def test_where_a_turn_shows_no_picture_there_is_no_mask(anns):
    "A cut that is turned leaves corners empty, over which a polygon that the cut divides would reach"
    size,white = anns[0].size,FileImage.create(np.full((64, 64, 3), 255, np.uint8))
    a = Annotation(anns[0].path, size, ['star'], [[0, 0, *size]], masks=[[[0, 0, size[0], 0, *size, 0, size[1]]]])
    turn = JointTransform(64, train=lambda *_: ((16, 16, 48, 48), (0, 0, 64, 64)), flip=0, rotate=40, p_rotate=1.)
    set_seed(0)
    x,m = turn((white, ObjectMasks(a)), split_idx=0)
    shown = x[0] > 200
    assert .6 < shown.float().mean() < .95 and (m[0].bool() == shown).float().mean() > .98

# --- what comes out

def test_the_net_answers_with_detections_and_masks_of_28_pixels_that_are_probabilities(learn):
    dets,masks = learn.get_preds(with_targs=False)[0]
    n = len(learn.dls.valid_ds)
    assert dets.shape == (n, 6, 6) and masks.shape == (n, 6, M, M) and 0 <= masks.min() and .5 < masks.max() <= 1
    said,(d,m),(all_d,all_m) = learn.predict(learn.dls.valid.items[0])
    assert d.shape == (1, 6) and m.shape == (1, M, M) and all_d.shape == (6, 6) and all_m.shape == (6, M, M)
    assert said.labels == [learn.dls.vocab[1]] and len(said.masks) == 1

@pytest.mark.parametrize('tfm', [PLAIN, JointTransform((80, 48), FitView('squish'), valid='squish'),
                                 JointTransform((48, 80), FitView('crop'), valid='crop')], ids=str)
def test_masks_come_back_to_pixels_of_the_file_exactly_where_the_boxes_are(anns, tfm):
    learn = instance_learner(make_dls(anns, item_tfms=tfm), Oracle, pretrained=False)
    w,h = 100,60
    with learn.no_bar(): said, = learn.annotate(np.zeros((h, w, 3), np.uint8), thresh=.2)
    boxes = learn.valid_view((w, h)).undo_bboxes(learn.model.boxes[:,:4].double()).float()   # may reach out
    want  = pasted(learn.model.disc.expand(2, M, M), boxes, (w, h))
    got   = [decode_mask(m, (w, h)) for m in said.masks]
    assert len(got) == 2 and all(isinstance(m, dict) for m in said.masks)
    for a,b in zip(got, want): assert b.any() and (a != b).mean() < 1e-3

def test_polygons_are_an_option_and_hold_the_same_pixels(learn):
    a,b = (learn.annotate(learn.dls.valid.items[:1], masks=o)[0] for o in ('rle', 'polygons'))
    assert isinstance(b.masks[0], list)
    x,y = (torch.from_numpy(decode_mask(o.masks[0], o.size))[None] for o in (a, b))
    assert iou(x, y).min() > .97
    with pytest.raises(ValueError, match="masks: expected one of 'rle', .* got 'png'"): learn.annotate([], masks='png')

def test_polygons_have_no_holes_and_those_of_the_masks_are_filled(anns, monkeypatch):
    learn = instance_learner(make_dls(anns), Oracle, pretrained=False)
    ring = np.zeros((64, 64), bool)
    ring[10:30, 10:30],ring[15:25, 15:25],ring[18:20, 18:20] = True,False,True
    monkeypatch.setattr(learn, 'masks_of', lambda dets, bboxes, size: [encode_rle(ring)]*len(dets))
    with learn.no_bar(): said, = learn.annotate(learn.dls.valid.items[:1], masks='polygons')
    full = np.zeros((64, 64), bool)
    full[10:30, 10:30] = True
    assert said.masks
    for m in said.masks: assert len(m) == 1 and (decode_mask(m, (64, 64)) == full).all()

def test_annotations_keep_runs_and_no_pictures(learn):
    "So that memory does not grow with the files: an answer is smaller than one bool picture of it"
    for a in learn.annotate([np.zeros((600, 800, 3), np.uint8)]*3):
        assert sum(len(m['counts']) for m in a.masks) < 5000

def test_evaluate_is_perfect_for_one_that_knows_the_truth_and_scores_boxes_and_masks(learn):
    scores = learn.evaluate()
    assert scores['map'] == pytest.approx(1) and scores['map50_segm'] == pytest.approx(1) and scores['map_segm'] > .8
    truth,said,loss = learn.in_files()
    assert coco_ap(truth, said, iou_type='segm')['map'] == scores['map_segm'] and loss == scores['valid_loss']
    assert dict(zip(['valid_loss', 'map', 'map_segm'], learn.validate())) == pytest.approx(
        {k: scores[k] for k in ('valid_loss', 'map', 'map_segm')})
    df = learn.evaluate_per_class()
    assert [*df] == 'label n ap ap50 ap75 ar ap_segm ap50_segm ap75_segm ar_segm'.split()
    assert df.ap_segm[df.n > 0].mean() == pytest.approx(scores['map_segm'])

def test_mask_ap_and_box_ap_are_what_pycocotools_says_of_the_written_files(learn, tmp_path):
    coco = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval
    items = learn.dls.valid.items
    # answers of a net that errs: discs in boxes that are off, three in a picture, some of the wrong class
    rng = np.random.default_rng(0)
    def boxes(a):
        b = np.r_[a.bboxes, [[5, 5, 30, 30]]]
        return b + rng.normal(0, 1.5, b.shape)*[1, 1, 0, 0]
    learn.model.disc = (learn.model.disc > .14).float()   # as wide as its box
    said = []
    for a in items:
        b = boxes(a).clip(0, 64).astype(np.float32)
        ids = [learn.dls.vocab.index(o) for o in [*a.labels, 'star']]
        learn.model.boxes = torch.from_numpy(np.c_[b, rng.uniform(.1, .9, len(b)), ids]).float()
        learn.model.max_dets = max(6, len(b))
        said += learn.annotate([a], thresh=0.)
    write_coco(items, tmp_path/'t.json', vocab=learn.dls.vocab[1:])
    write_coco(said, tmp_path/'p.json', vocab=learn.dls.vocab[1:])
    api = coco.COCO(str(tmp_path/'t.json'))
    dets = json.loads((tmp_path/'p.json').read_text())['annotations']
    for kind in ('bbox', 'segm'):
        # results of masks hold no box, so that their area is the mask's
        rows = [{k: o[k] for k in ('image_id', 'category_id', 'score', 'segmentation' if kind == 'segm' else 'bbox')}
                for o in dets]
        e = COCOeval(api, api.loadRes(rows), kind)
        e.evaluate(); e.accumulate(); e.summarize()
        mine = coco_ap(items, said, learn.dls.vocab[1:], iou_type=kind)
        keys = 'map map50 map75 map_small map_medium map_large ar_1 ar_10 ar_100 ar_small ar_medium ar_large'.split()
        theirs = [np.nan if v == -1 else v for v in e.stats]
        assert [mine[k] for k in keys] == pytest.approx(theirs, abs=1e-6, nan_ok=True) and 0 < mine['map'] < 1

# --- nets

def test_a_net_of_the_other_task_is_refused_on_both_sides(anns):
    dls,kw = make_dls(anns),dict(pretrained=False)
    with pytest.raises(ValueError, match="predicts boxes, but no masks: take one of `list_archs\\('instance'\\)`"):
        instance_learner(dls, torchvision.models.detection.ssdlite320_mobilenet_v3_large, **kw)
    with pytest.raises(ValueError, match="instance has no architecture 'ssdlite', only detection"):
        instance_learner(dls, 'ssdlite', **kw)
    boxes = detection_dls(anns, bs=4, num_workers=0, device='cpu', item_tfms=PLAIN)
    with pytest.raises(ValueError, match='learns masks besides boxes: train it with `instance_dls`'):
        detection_learner(boxes, Oracle, **kw)
    with pytest.raises(ValueError, match="pool: expected one of 'align', 'pool', got 'max'"):
        instance_learner(dls, 'mask_rcnn', 'test_resnet', arch_kwargs=dict(pool='max'), **kw)

@pytest.mark.train
def test_a_small_net_learns_the_masks_of_drawn_shapes_and_its_answers_can_be_written_and_read(tmp_path):
    anns = [Annotation(a.path, a.size, a.labels, a.bboxes, masks=a.masks)
            for a in draw_shapes(tmp_path, 2, 64, seed=21, most=3)]
    set_seed(0)
    dls = instance_dls([replace(a, split=s) for s in ('train', 'valid') for a in anns], num_workers=0, device='cpu',
                       item_tfms=PLAIN, batch_tfms=[])
    few = dict(width=.25, rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=20, box_batch_size_per_image=16)
    learn = instance_learner(dls, 'mask_rcnn', encoder='test_resnet', pretrained=False, arch_kwargs=few, metrics=[])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(70, 6e-3)
        scores,said = learn.evaluate(),learn.annotate(anns, thresh=.3)
    assert scores['map50_segm'] > .6      # 2 of 3 classes; of four seeds 1., where 50 epochs once found 2 classes
    write_coco(said, tmp_path/'auto.json')
    back = {a.path.name: a for a in read_coco(tmp_path/'auto.json', anns[0].path.parent)}
    for a in said:
        pairs = list(zip(a.masks, back[a.path.name].masks, strict=True))
        for m,o in pairs: assert np.array_equal(decode_mask(m, a.size), decode_mask(o, a.size))

@pytest.mark.train
@pytest.mark.cuda
def test_on_a_gpu_masks_are_those_of_the_cpu(anns):
    if not torch.cuda.is_available(): pytest.skip('needs a GPU')
    set_seed(0)
    learn = instance_learner(make_dls(anns, device='cuda'), 'mask_rcnn', encoder='test_resnet', pretrained=False,
                             arch_kwargs=dict(width=.25))
    with learn.no_bar(), learn.no_logging():
        learn.fit(5, 5e-3)
        said = learn.annotate(anns[:4], thresh=.2)
        learn.model.cpu(); learn.dls.cpu()
        again = learn.annotate(anns[:4], thresh=.2)
    for a,b in zip(said, again):
        assert abs(len(a.labels) - len(b.labels)) <= 1
        if a.labels == b.labels:
            for m,o in zip(a.masks, b.masks): assert (decode_mask(m, a.size) != decode_mask(o, b.size)).mean() < .02

def test_after_fastais_turns_of_a_batch_boxes_are_tight_around_their_masks(anns):
    turns = aug_transforms(max_rotate=40., max_warp=0., max_lighting=0., p_affine=1., pad_mode='zeros')
    dls = make_dls(anns, batch_tfms=turns)
    for split,dl in enumerate(dls.loaders):
        n = 0
        for x,bboxes,labels,masks in dl:
            for b,l,m in zip(*(o.as_subclass(Tensor).flatten(0, 1) for o in (bboxes, labels, masks))):
                if not m.any(): assert l <= 0 or not (b[2:] > b[:2]).all(); continue
                n += 1
                assert l != 0 and (b.numpy() == mask_bbox(m.numpy() > 0)).all() or split == 1
        assert n

def test_data_of_the_other_task_are_refused_before_training(anns):
    boxes = detection_dls(anns, bs=4, num_workers=0, device='cpu', item_tfms=PLAIN)
    with pytest.raises(ValueError, match='without masks.*`instance_dls`'):
        instance_learner(boxes, Oracle, pretrained=False)
    with pytest.raises(ValueError, match='hold masks.*`detection_dls`'):
        detection_learner(make_dls(anns), 'faster_rcnn', encoder='test_resnet', pretrained=False)
    names = multilabel_dls(anns, bs=4, num_workers=0, device='cpu')
    for learner,task in (instance_learner, 'instance'), (detection_learner, 'detection'):
        with pytest.raises(ValueError, match=f'give no boxes.*`{task}_dls`'): learner(names, pretrained=False)

def test_a_label_that_the_learner_does_not_know_is_an_error_that_names_the_file(learn):
    a = several(learn.dls.valid.items + learn.dls.train.items)
    dl = learn.dls.test_dl([replace(a, labels=['starr', *a.labels[1:]])], with_labels=True)
    with pytest.raises(AnnotationError, match=f"{a.path.name}.*'starr'.*did you mean 'star'"): learn.evaluate(dl=dl)

def test_pictures_without_truth_have_no_scores_and_leave_the_threshold_as_it_is(learn):
    before,dl = learn.loss_func.thresh,learn.dls.test_dl(learn.dls.valid.items)
    for ask in (learn.evaluate, learn.tune_threshold, learn.confusion, learn.plot_top_losses):
        with pytest.raises(ValueError, match='without ground truth: pass dl=annotations'): ask(dl=dl)
    assert learn.loss_func.thresh == before
