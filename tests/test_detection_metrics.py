"Scores of detection against pycocotools, against VOC's rule spelled out, and against brute force"
import contextlib, io, json
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchmetrics.detection import MeanAveragePrecision
from vision_tasks.data.annotation import Annotation, select_objects
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.coco import write_coco
from vision_tasks.metrics.detection import MeanAP, coco_ap, voc_ap
from vision_tasks.metrics.detection_curves import best_detection_threshold, detection_confusion, detection_curve
from vision_tasks.metrics.matching import match_detections
from vision_tasks.show.detection_plots import plot_f_threshold, plot_precision_recall
from vision_tasks.training.learner import TaskLearner
from vision_tasks.multilabel import multilabel_dls
from vision_tasks.ops.masks import decode_mask, encode_rle
from vision_tasks.ops.colours import class_colours
from vision_tasks.show.plots import plot_confusion

W,H,VOCAB = 320,240,['ant', 'bee', 'cat']

def boxes(rng, n):
    "Boxes of all of COCO's sizes"
    wh = np.exp(rng.uniform(1.5, 5.3, (n, 2))).clip(4, [W-8, H-8])
    xy = rng.random((n, 2))*([W, H]-wh)
    return np.c_[xy, xy+wh].astype(np.float32)

def uncrossed(b): return np.c_[np.minimum(b[:,:2], b[:,2:]), np.maximum(b[:,:2], b[:,2:])]

def pair(rng, i, crowds=True, levels=12, vocab=VOCAB):
    "Truth and detections of a picture: moved truths, repeated ones, some of another class, and boxes of nothing"
    n = rng.integers(0, 7)*(i%5 > 0)                            # every fifth is empty
    truth = Annotation(f'{i}.jpg', (W, H), list(rng.choice(vocab, n)), boxes(rng, n),
                       ignore=rng.random(n) < .25 if crowds else None)
    src = rng.integers(0, n, 2*n) if n else []
    b = truth.bboxes[src]
    b = b + rng.normal(0, .08, b.shape)*np.tile(b[:,2:]-b[:,:2], 2)
    b = np.r_[uncrossed(b), boxes(rng, 3)] if i%7 else np.empty((0, 4))
    labels = [truth.labels[j] if rng.random() < .8 else rng.choice(vocab) for j in src] + list(rng.choice(vocab, 3))
    scores = rng.integers(0, levels+1, len(b))/levels           # many are equal
    return truth,Annotation(f'{i}.jpg', (W, H), labels[:len(b)], b, scores=scores)

def data(seed, n=20, **kwargs):
    rng = np.random.default_rng(seed)
    return map(list, zip(*(pair(rng, i, **kwargs) for i in range(n))))

def evaluated(tmp_path, truth, preds, iou_type='bbox', caps=(1, 10, 100), use_cats=1):
    "pycocotools' evaluation of the files that `write_coco` writes"
    write_coco(truth, tmp_path/'t.json', images='.', vocab=VOCAB)
    write_coco(preds, tmp_path/'p.json', images='.', vocab=VOCAB)
    keys = ('image_id', 'category_id', 'score', 'bbox' if iou_type == 'bbox' else 'segmentation')
    dets = [{k: o[k] for k in keys} for o in json.loads((tmp_path/'p.json').read_text())['annotations']]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(tmp_path/'t.json')
        e = COCOeval(gt, gt.loadRes(dets) if dets else COCO(), iou_type)
        if not dets: e.cocoDt.dataset = dict(images=gt.dataset['images'], annotations=[]); e.cocoDt.createIndex()
        e.params.maxDets,e.params.useCats = list(caps),use_cats
        e.evaluate(); e.accumulate()
        if tuple(caps) == (1, 10, 100): e.summarize()
    return e

NAMES = ['map', 'map50', 'map75', 'map_small', 'map_medium', 'map_large', 'ar_1', 'ar_10', 'ar_100', 'ar_small',
         'ar_medium', 'ar_large']

def same(ours, theirs):
    assert np.allclose(ours, np.where(np.asarray(theirs) < 0, np.nan, theirs), 0, 1e-6, equal_nan=True)

def mean(x): return x[x > -1].mean() if (x > -1).any() else -1

def same_per_class(table, e):
    p,r = e.eval['precision'],e.eval['recall']
    assert list(table.label) == VOCAB
    for k in range(len(VOCAB)):
        same(table.loc[k, ['ap', 'ap50', 'ap75', 'ar']].to_numpy(float),
             [mean(p[:,:,k,0,-1]), mean(p[0,:,k,0,-1]), mean(p[5,:,k,0,-1]), mean(r[:,k,0,-1])])

@pytest.mark.parametrize('seed', range(4))
def test_box_ap_is_that_of_pycocotools_with_crowds_ties_and_empty_pictures(seed, tmp_path):
    truth,preds = data(seed)
    e,ours = evaluated(tmp_path, truth, preds),coco_ap(truth, preds)
    assert list(ours) == NAMES and .05 < ours['map'] < .95
    same(list(ours.values()), e.stats)
    table = coco_ap(truth, preds, per_class=True)
    same_per_class(table, e)
    assert table.n.sum() == sum((~a.ignore).sum() for a in truth) and table.ap.mean() == pytest.approx(ours['map'])

def in_masks(annotations, rng):
    "Ellipses in the boxes as polygons, some of two parts, RLE of both kinds, and arrays"
    def mask(b):
        a = np.linspace(0, 2*np.pi, 12, endpoint=False)
        poly = ((b[:2]+b[2:])/2 + np.c_[np.cos(a), np.sin(a)]*(b[2:]-b[:2])/2).clip(0).ravel().tolist()
        kind,m = rng.integers(0, 5),decode_mask([poly], (W, H))
        counts = lambda: np.diff(np.r_[0, np.flatnonzero(np.diff(m.T.ravel(), prepend=False)), m.size]).tolist()
        return [[poly], [poly, [1, 1, 9, 1, 9, 9]], encode_rle(m), dict(size=[H, W], counts=counts()), m][kind]
    return [replace(a, masks=[mask(b) for b in a.bboxes]) for a in annotations]

@pytest.mark.parametrize('seed', range(2))
def test_mask_ap_is_that_of_pycocotools_for_polygons_rle_and_arrays(seed, tmp_path):
    truth,preds = data(seed)
    rng = np.random.default_rng(seed)
    truth,preds = in_masks(truth, rng),in_masks(preds, rng)
    # COCO takes results as RLE alone
    as_rle = [replace(p, masks=[encode_rle(decode_mask(m, p.size)) for m in p.masks]) for p in preds]
    e,ours = evaluated(tmp_path, truth, as_rle, 'segm'),coco_ap(truth, preds, iou_type='segm')
    assert .05 < ours['map'] < .95 and ours['map'] != coco_ap(truth, preds)['map']
    same(list(ours.values()), e.stats)
    same_per_class(coco_ap(truth, preds, iou_type='segm', per_class=True), e)

def test_the_area_of_a_truth_with_a_mask_is_the_masks_for_boxes_too(tmp_path):
    # the box is 60x60, medium; a small triangle of it is the object
    truth = [Annotation('a.jpg', (W, H), ['ant'], [[0, 0, 60, 60]], masks=[[[0, 0, 30, 0, 0, 30]]])]
    preds = [Annotation('a.jpg', (W, H), ['ant'], [[0, 0, 60, 60]], scores=[.9])]
    ours = coco_ap(truth, preds, VOCAB)
    assert ours['map_small'] == pytest.approx(1) and np.isnan(ours['map_medium'])
    same(list(ours.values()), evaluated(tmp_path, truth, preds).stats)

def test_the_empty_mask_is_neither_found_nor_finds():
    box,full = [[0, 0, 60, 60]],[[[0, 0, 60, 0, 60, 60, 0, 60]]]
    a,p = (Annotation('a.jpg', (W, H), ['ant'], box, masks=full, scores=o) for o in (None, [.9]))
    ap = lambda a, p: coco_ap([a], [p], iou_type='segm')['map']
    assert [ap(a, p), ap(replace(a, masks=[[]]), p), ap(a, replace(p, masks=[[]]))] == pytest.approx([1, 0, 0])

@pytest.mark.parametrize('max_dets,caps', [(3, (1, 3)), (1, (1,)), (10, (1, 10)), (300, (1, 10, 300))])
def test_max_dets_cuts_as_pycocotools_does(max_dets, caps, tmp_path):
    truth,preds = data(5, n=12)
    ours,e = coco_ap(truth, preds, max_dets=max_dets),evaluated(tmp_path, truth, preds, caps=caps)
    assert [o for o in ours if o[:3] == 'ar_' and o[3:].isdigit()] == [f'ar_{o}' for o in caps]
    same([ours['map'], *(ours[f'ar_{o}'] for o in caps)],
         [mean(e.eval['precision'][:,:,:,0,-1]), *(mean(e.eval['recall'][:,:,0,i]) for i in range(len(caps)))])

def test_without_predictions_figures_are_0_where_there_is_truth_as_those_of_pycocotools(tmp_path):
    truth,preds = data(6)
    none = [select_objects(p, []) for p in preds]
    ours = coco_ap(truth, none)
    same(list(ours.values()), evaluated(tmp_path, truth, none).stats)
    assert ours['map'] == ours['ar_100'] == 0 == voc_ap(truth, none)

def test_without_truth_all_figures_are_nan(tmp_path):
    truth,preds = data(6)
    empty = [select_objects(a, []) for a in truth]
    same(list(coco_ap(empty, preds, VOCAB).values()), evaluated(tmp_path, empty, preds).stats)
    crowds = [replace(a, ignore=[True]*len(a.labels)) for a in truth]
    for t,p,vocab in ((empty, preds, VOCAB), ([], [], VOCAB), ([], [], None), (empty, empty, None),
                      (crowds, preds, None)):
        assert np.isnan(list(coco_ap(t, p, vocab).values())).all() and np.isnan(voc_ap(t, p, vocab))
        assert coco_ap(t, p, vocab, per_class=True).ap.isna().all()

def test_a_class_without_truth_is_nan_and_takes_no_part_in_the_mean():
    truth,preds = data(7)
    more = [*VOCAB, '#na#', 'dog']
    for f in (coco_ap, voc_ap):
        table = f(truth, preds, more, per_class=True)
        assert list(table.label) == [*VOCAB, 'dog'] and np.isnan(table.ap[3]) and table.n[3] == 0
    assert coco_ap(truth, preds, more) == coco_ap(truth, preds) and voc_ap(truth, preds, more) == voc_ap(truth, preds)

# --- PASCAL VOC

def iou_of(a, b):
    w,h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = max(w, 0)*max(h, 0)
    return inter/(np.prod(a[2:]-a[:2]) + np.prod(b[2:]-b[:2]) - inter)

def voc_by_hand(truth, preds, name, iou, points):
    "AP of a class, one detection after the other as the devkit's VOCevaldet does"
    dets = [(s, i, b) for i,p in enumerate(preds) for s,l,b in zip(p.scores, p.labels, p.bboxes.astype(float))
            if l == name]
    dets.sort(key=lambda o: -o[0])
    n,found,tp,fp = sum(l == name and not g for a in truth for l,g in zip(a.labels, a.ignore)),set(),[],[]
    for s,i,b in dets:
        best = max(((iou_of(b, t), -j) for j,(t,l) in enumerate(zip(truth[i].bboxes.astype(float), truth[i].labels))
                    if l == name), default=(-1, 0))
        j = -best[1]
        if best[0] < iou: tp.append(0); fp.append(1)
        elif truth[i].ignore[j]: tp.append(0); fp.append(0)
        elif (i, j) in found: tp.append(0); fp.append(1)
        else: found.add((i, j)); tp.append(1); fp.append(0)
    tp,fp = np.cumsum(tp),np.cumsum(fp)
    recall,precision = tp/n,tp/np.maximum(tp+fp, 1)
    if points == 11: return np.mean([max(precision[recall >= k/10], default=0) for k in range(11)])
    r,p = np.r_[0, recall, 1],np.r_[0, precision, 0]
    for k in range(len(p)-2, -1, -1): p[k] = max(p[k], p[k+1])
    return sum((r[k]-r[k-1])*p[k] for k in range(1, len(r)) if r[k] != r[k-1])

@pytest.mark.parametrize('points', [None, 11])
@pytest.mark.parametrize('iou', [.3, .5])
@pytest.mark.parametrize('seed', range(3))
def test_voc_ap_is_the_devkits_rule_one_detection_after_the_other(seed, iou, points):
    truth,preds = data(seed)
    table = voc_ap(truth, preds, iou=iou, points=points, per_class=True)
    assert np.allclose(table.ap, [voc_by_hand(truth, preds, o, iou, points) for o in VOCAB], 0, 1e-12)
    assert voc_ap(truth, preds, iou=iou, points=points) == pytest.approx(table.ap.mean())

def test_voc_ap_of_a_case_counted_by_hand():
    a = Annotation('a.jpg', (W, H), ['ant']*2, [[0, 0, 10, 10], [50, 0, 60, 10]])
    p = Annotation('a.jpg', (W, H), ['ant']*3, [[0, 0, 10, 10], [100, 0, 110, 10], [50, 0, 60, 10]],
                   scores=[.9, .8, .7])
    # hit, false, hit: precision 1 up to recall .5, then 2/3
    assert voc_ap([a], [p]) == pytest.approx(.5 + .5*2/3)
    assert voc_ap([a], [p], points=11) == pytest.approx((6 + 5*2/3)/11)
    difficult = replace(a, ignore=[False, True])
    assert voc_ap([difficult], [p]) == 1 and voc_ap([difficult], [p], per_class=True).n[0] == 1

def test_the_iou_is_the_devkits_for_boxes_that_include_their_last_pixel():
    a,b = np.array([[1, 1, 10, 10], [3, 2, 13, 10]])   # VOC's pixels, counted from 1
    w,h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
    devkit = w*h/(np.prod(a[2:]-a[:2]+1) + np.prod(b[2:]-b[:2]+1) - w*h)
    ours = [Annotation('a.jpg', (W, H), ['ant'], [o-[1, 1, 0, 0]], scores=[.5]) for o in (a, b)]
    assert match_detections(ours[:1], ours[1:]).iou[0] == pytest.approx(devkit)

def test_a_second_detection_may_take_another_truth_by_cocos_rule_but_not_by_vocs():
    a = Annotation('a.jpg', (W, H), ['ant']*2, [[0, 0, 10, 10], [0, 0, 10, 6]])
    p = Annotation('a.jpg', (W, H), ['ant']*2, [[0, 0, 10, 10], [0, 0, 10, 9]], scores=[.9, .8])
    assert match_detections([a], [p]).target.tolist() == [0, 1] and voc_ap([a], [p]) == .5

def test_where_all_that_is_found_is_found_first_coco_and_voc_agree():
    truth,_ = data(3, crowds=False)
    rng = np.random.default_rng(0)
    some = [select_objects(a, rng.random(len(a.labels)) < .6) for a in truth]
    found = [Annotation(a.path, a.size, a.labels, a.bboxes, scores=[.9]*len(a.labels)) for a in some]
    # precision is 1 up to the recall reached, which COCO reads at 101 points
    assert coco_ap(truth, found)['map50'] == pytest.approx(voc_ap(truth, found), abs=.01) and voc_ap(truth, found) < .9

# --- matching

@pytest.mark.parametrize('iou', [.5, .75])
@pytest.mark.parametrize('seed', range(3))
def test_matches_are_those_of_pycocotools(seed, iou, tmp_path):
    truth,preds = data(seed)
    e,ours = evaluated(tmp_path, truth, preds),match_detections(truth, preds, iou)
    at = {.5: 0, .75: 5}[iou]
    n = [len(p.labels) for p in preds]
    first_t = np.cumsum([0, *(len(a.labels) for a in truth)])   # write_coco counts objects from 1, in their order
    assert len(ours) == sum(n) and (ours.image == np.repeat(np.arange(len(n)), n)).all()
    seen = 0
    for o in e.evalImgs[:len(truth)*len(VOCAB)*4]:
        if o is None or o['aRng'] != [0, 1e10]: continue
        for id,match,ignored in zip(o['dtIds'], o['dtMatches'][at], o['dtIgnore'][at]):
            row = ours.iloc[id-1]
            assert row.ignored == bool(ignored) and row.hit == bool(match and not ignored)
            assert row.target == (int(match)-1-first_t[row.image] if match else -1)
            seen += 1
    assert seen == len(ours) and ours.hit.any() and ours.ignored.any() and (~ours.hit & ~ours.ignored).any()

def test_each_truth_is_found_once_and_the_iou_is_that_of_the_two_boxes():
    truth,preds = data(8)
    m = match_detections(truth, preds)
    hits = m[m.hit]
    assert not hits.duplicated(['image', 'target']).any() and m.iou[m.target < 0].isna().all()
    for o in hits.itertuples():
        a,b = preds[o.image].bboxes[o.row].astype(float),truth[o.image].bboxes[o.target].astype(float)
        assert o.iou == pytest.approx(iou_of(a, b)) and o.iou >= .5
        assert truth[o.image].labels[o.target] == preds[o.image].labels[o.row] == o.label

# --- one threshold

def kept(preds, thresh): return [select_objects(p, np.flatnonzero(p.scores > np.float32(thresh))) for p in preds]

def scores_of(truth, preds, name=None, beta=1.):
    "Precision, recall and F-beta of what is there, counted anew"
    m = match_detections(truth, preds, vocab=VOCAB)
    on = ~m.ignored if name is None else (~m.ignored & (m.label == name))
    n = sum((name in (None, l)) and not g for a in truth for l,g in zip(a.labels, a.ignore))
    tp,k = m.hit[on].sum(),on.sum()
    return tp/max(k, 1),tp/n,(1+beta**2)*tp/(beta**2*n+k)

@pytest.mark.parametrize('name', [None, 'bee'])
def test_the_curve_is_what_matching_anew_above_each_score_gives(name):
    truth,preds = data(9)
    curve = detection_curve(truth, preds, name, beta=2)
    assert curve.score.is_monotonic_increasing and curve.recall.is_monotonic_decreasing and len(curve) > 8
    for o in curve.itertuples():
        assert scores_of(truth, kept(preds, o.score-1e-4), name, 2) == pytest.approx((o.precision, o.recall, o.fbeta))

@pytest.mark.parametrize('beta', [1., .5])
@pytest.mark.parametrize('seed', range(3))
def test_the_best_threshold_is_the_best_of_all_found_by_brute_force(seed, beta):
    truth,preds = data(seed)
    cuts = np.unique(np.r_[-1, np.concatenate([p.scores for p in preds])])
    thresh,value = best_detection_threshold(truth, preds, beta=beta)
    assert value == pytest.approx(max(scores_of(truth, kept(preds, c), beta=beta)[2] for c in cuts))
    assert scores_of(truth, kept(preds, thresh), beta=beta)[2] == pytest.approx(value)
    ts,vs = best_detection_threshold(truth, preds, beta=beta, per_class=True)
    assert ts.dtype == vs.dtype == np.float32
    for name,t,v in zip(VOCAB, ts, vs):
        assert v == pytest.approx(max(scores_of(truth, kept(preds, c), name, beta)[2] for c in cuts))
        assert scores_of(truth, kept(preds, t), name, beta)[2] == pytest.approx(v)

def one_class(scores, hits, n=None):
    "A picture in which the detections with these scores are hits or not; `n` truths in all"
    spots = [[20*i, 0, 20*i+10, 10] for i in range(len(hits))]
    at = [b for b,h in zip(spots, hits) if h] + [[0, 100+20*i, 10, 110+20*i] for i in range((n or 0)-sum(hits))]
    truth = Annotation('a.jpg', (W, H), ['ant']*len(at), np.reshape(at, (-1, 4)))
    return [truth],[Annotation('a.jpg', (W, H), ['ant']*len(hits), np.reshape(spots, (-1, 4)), scores=scores)]

@pytest.mark.parametrize('scores,hits,n,thresh,value', [
    ([.2, .8], [0, 1], 1, .5, 1),                 # midway
    ([.4, .8], [1, 1], 2, .2, 1),                 # all stay: half the lowest
    ([0., .8], [1, 1], 2, -2.**-10, 1),           # even one of 0
    ([.5, .75], [0, 0], 2, .625, 0),              # never found: the cut nearest .5, below or above .5
    ([], [], 2, .5, 0),                           # nothing detected
    ([.5, .75], [0, 0], 0, .5, np.nan),           # no truth
    ([.25, float(np.nextafter(np.float32(.25), np.float32(1)))], [0, 1], 1, .25, 1)])   # no number between: the lower
def test_thresholds_follow_the_rules_of_the_house(scores, hits, n, thresh, value):
    truth,preds = one_class(scores, hits, n)
    for per_class in (False, True):
        got = best_detection_threshold(truth, preds, per_class=per_class, vocab=['ant'])
        assert np.array_equal(np.float32(np.ravel(got)), np.float32([thresh, value]), equal_nan=True)

# --- confusion

def test_confusion_of_a_case_counted_by_hand():
    far = [[200, 200, 210, 210]]
    a = Annotation('a.jpg', (W, H), ['ant', 'bee', 'cat', 'ant'], [[0, 0, 10, 10], [50, 0, 60, 10], [100, 0, 110, 10],
                   [150, 0, 190, 40]], ignore=[0, 0, 0, 1])
    # an ant found, a bee taken for a cat, the cat seen too weakly, one in the crowd, one of nothing
    p = Annotation('a.jpg', (W, H), ['ant', 'cat', 'cat', 'bee', 'bee'], [*a.bboxes[:3], [155, 5, 165, 15], *far],
                   scores=[.9, .8, .5, .7, .6])
    got = detection_confusion([a], [p])
    names = [*VOCAB, '#na#']
    want = pd.DataFrame(0, index=names, columns=names)
    want.loc['ant', 'ant'] = want.loc['bee', 'cat'] = want.loc['cat', '#na#'] = want.loc['#na#', 'bee'] = 1
    pd.testing.assert_frame_equal(got, want)
    assert detection_confusion([a], [p], thresh=[.5, .5, .4]).loc['cat', 'cat'] == 1

@pytest.mark.parametrize('seed', range(3))
def test_confusion_is_pycocotools_matching_with_classes_left_aside(seed, tmp_path):
    truth,preds = data(seed, levels=10**6)   # no ties: without classes pycocotools takes those by class
    e = evaluated(tmp_path, truth, preds, use_cats=0)
    t,d = ([l for a in o for l in a.labels] for o in (truth, preds))
    want = pd.DataFrame(0, index=[*VOCAB, '#na#'], columns=[*VOCAB, '#na#'])
    found = set()
    for o in e.evalImgs:
        if o is None or o['aRng'] != [0, 1e10]: continue
        for id,match,ignored in zip(o['dtIds'], o['dtMatches'][0], o['dtIgnore'][0]):
            if not ignored: want.loc[t[int(match)-1] if match else '#na#', d[id-1]] += 1; found.add(int(match))
    for i,(l,g) in enumerate(((l, g) for a in truth for l,g in zip(a.labels, a.ignore)), 1):
        if i not in found and not g: want.loc[l, '#na#'] += 1
    got = detection_confusion(truth, preds, thresh=0)
    pd.testing.assert_frame_equal(got, want)
    assert got.loc[VOCAB].to_numpy().sum() == sum((~a.ignore).sum() for a in truth)

# --- pictures

def test_plots_show_each_class_with_truth_and_all_together():
    truth,preds = data(1)
    ax = plot_precision_recall(truth, preds, [*VOCAB, 'dog'])
    texts = [o.get_text() for o in ax.get_legend().get_texts()]
    assert [o.split(',')[0] for o in texts] == [*VOCAB, 'All together']
    curve = detection_curve(truth, preds, 'ant')
    assert np.allclose(ax.lines[0].get_xdata()[1:], curve.recall[::-1])
    assert np.allclose(ax.lines[0].get_ydata()[1:], curve.precision[::-1])
    ax = plot_f_threshold(truth, preds, beta=2)
    thresh,value = best_detection_threshold(truth, preds, beta=2)
    assert ax.get_legend().get_texts()[-1].get_text() == f'All together, {value:.3f} at {thresh:.3f}'
    assert detection_confusion(truth, preds).shape == (4, 4) and plot_confusion(detection_confusion(truth, preds))

def test_legends_of_plots_are_beside_the_curves_which_have_the_colours_of_their_classes():
    truth,preds = data(1)
    for f in (plot_precision_recall, plot_f_threshold):
        ax = f(truth, preds)
        ax.figure.canvas.draw()
        legend = ax.get_legend().get_window_extent()
        assert legend.x0 >= ax.get_window_extent().x1 and legend.x1 <= ax.figure.bbox.x1
        colours = {o.get_label().split(',')[0]: o.get_color() for o in ax.lines if ', ' in o.get_label()}
        assert all(np.array_equal(colours[o], class_colours(VOCAB)[o]) for o in VOCAB)
        assert ax.get_xlabel()[0].isupper() and ax.get_ylabel()[0].isupper() and ax.get_title('left')[0].isupper()

def test_plots_of_many_classes_name_none_and_those_without_truth_or_answers_are_drawn():
    many = [f'class {i:02}' for i in range(30)]
    truth,preds = data(1, vocab=many)
    n = len({o for a in truth for o,crowd in zip(a.labels, a.ignore) if not crowd})
    for f in (plot_precision_recall, plot_f_threshold):
        texts = [o.get_text() for o in f(truth, preds, many).get_legend().get_texts()]
        assert texts[0] == f'Each of {n} classes' and len(texts) == 2
        assert f(truth, kept(preds, 1), many).get_legend() and f([select_objects(a, []) for a in truth], preds, many)

# --- bad input

ALL = [coco_ap, voc_ap, match_detections, detection_curve, plot_precision_recall, plot_f_threshold,
       best_detection_threshold, detection_confusion]

@pytest.mark.parametrize('f', ALL)
def test_bad_input_is_told(f):
    truth,preds = data(2, n=4)
    with pytest.raises(ValueError, match='4 annotations but 3 predictions; expected one for each'): f(truth, preds[:3])
    with pytest.raises(ValueError, match='image 0 is 0.jpg in annotations but 1.jpg in predictions; .* same order'):
        f(truth, [preds[1], preds[0], *preds[2:]])
    with pytest.raises(AnnotationError, match='1.jpg: prediction 1 has no scores'):
        f(truth, [preds[0], replace(preds[1], scores=None), *preds[2:]])
    with pytest.raises(AnnotationError, match='0.jpg: annotation 0 has no bboxes'):
        f([Annotation('0.jpg', (W, H)), *truth[1:]], preds)
    with pytest.raises(ValueError, match="jpg: class 'cat' is not among the 2 of the vocab.*; pass vocab="):
        f(truth, preds, vocab=VOCAB[:2])
    strange = replace(preds[1], labels=['bees', *preds[1].labels[1:]])
    with pytest.raises(ValueError, match="1.jpg: class 'bees' is not among the 3 of the vocab; did you mean 'bee'"):
        f(truth, [preds[0], strange, *preds[2:]], vocab=VOCAB)

def test_settings_that_mean_nothing_are_told():
    truth,preds = data(2, n=4)
    with pytest.raises(ValueError, match="iou_type: expected one of 'bbox'"): coco_ap(truth, preds, VOCAB, 'box')
    with pytest.raises(ValueError, match='max_dets: expected a whole'): coco_ap(truth, preds, VOCAB, max_dets=0)
    with pytest.raises(AnnotationError, match=r"1.jpg: no masks for \d boxes; iou_type='segm'"):
        coco_ap(truth, preds, VOCAB, 'segm')
    with pytest.raises(AnnotationError, match='a.jpg, masks, row 0: expected polygons of three or more points'):
        broken = Annotation('a.jpg', (W, H), ['ant'], [[0, 0, 9, 9]], masks=[[[1, 2, 3, 4]]], scores=[.5])
        coco_ap([broken], [broken], iou_type='segm')
    with pytest.raises(ValueError, match='points: expected 11, got 10'): voc_ap(truth, preds, VOCAB, points=10)
    with pytest.raises(ValueError, match='no class .dragon.; there are ant'):
        detection_curve(truth, preds, 'dragon', vocab=VOCAB)
    with pytest.raises(ValueError, match='beta: expected a number above 0, at most 1000000, got 0'):
        best_detection_threshold(truth, preds, beta=0, vocab=VOCAB)
    with pytest.raises(ValueError, match='thresh: expected .* or one for each of the 3 classes'):
        detection_confusion(truth, preds, VOCAB, thresh=[.5, .5])
    with pytest.raises(ValueError, match='every: expected a whole number of 1 or more'): MeanAP(every=0)
    with pytest.raises(ValueError, match="iou_type: expected one of 'bbox'"): MeanAP(iou_type='mask')
    with pytest.raises(ValueError, match='a class appears twice in vocab'): voc_ap(truth, preds, ['ant', *VOCAB])
    for f in (voc_ap, match_detections, detection_confusion):
        with pytest.raises(ValueError, match='iou: expected an IoU .* got 50'): f(truth, preds, vocab=VOCAB, iou=50)

# --- while a model learns

class OneNumber(nn.Module):
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
    def forward(self, x): return self.w.expand(len(x), 3, 6)

class FakeDetector(TaskLearner):
    "Answers the truth, moved a little, with scores of its own"
    def probabilities(self, pred): return pred
    def to_annotations(self, dets, pictures, thresh):
        assert dets.shape[1:] == (3, 6) and len(dets) == len(pictures) and thresh == 0
        return [self.answers[path] for path,_ in pictures]

@pytest.fixture(scope='module')
def fake(shapes):
    dls = multilabel_dls(shapes, size=32, bs=5, num_workers=0)
    learn = FakeDetector(dls, OneNumber(), loss_func=lambda p, y: p.mean()*0, metrics=MeanAP())
    rng = np.random.default_rng(0)
    def answer(a):
        b = a.bboxes + rng.normal(0, 2, a.bboxes.shape)
        return Annotation(a.path, a.size, a.labels, uncrossed(b), scores=rng.random(len(b)))
    learn.answers = {a.path: answer(a) for a in shapes}
    return learn

def of_valid(learn, **kwargs):
    valid = list(learn.dls.valid.items)
    return coco_ap(valid, [learn.answers[a.path] for a in valid], list(learn.dls.vocab), **kwargs)['map']

@pytest.mark.train
def test_mean_ap_is_that_of_all_batches_of_the_validation_set(fake):
    want = of_valid(fake)
    assert 0 < want < 1 and len(fake.dls.valid) > 1
    with fake.no_bar(), fake.no_logging(): fake.fit(1)
    assert fake.recorder.metric_names[3] == 'map' and fake.recorder.values[-1][2] == want
    assert fake.validate()[1] == want and fake.evaluate()['map'] == want

@pytest.mark.train
def test_mean_ap_of_every_other_epoch_is_nan_between_but_never_in_the_last_nor_in_validate(fake):
    want = of_valid(fake, max_dets=1)
    with fake.scored_by([MeanAP(every=2, max_dets=1)]):
        with fake.no_bar(), fake.no_logging(): fake.fit(3)
        assert np.array_equal([o[2] for o in fake.recorder.values], [np.nan, want, want], equal_nan=True)
        fake.epoch = 0                                             # as when a fit was stopped
        assert fake.validate()[1] == want

def test_mean_ap_has_a_name_of_its_own_for_masks():
    assert [MeanAP().name, MeanAP(iou_type='segm').name] == ['map', 'map_segm']

def test_coco_ap_is_that_of_torchmetrics_too():
    truth,preds = data(4, crowds=False, levels=10**6)   # no ties, whose order is torchmetrics' own
    ids = lambda a: torch.tensor([VOCAB.index(o) for o in a.labels], dtype=torch.long)
    m = MeanAveragePrecision(backend='pycocotools')
    m.update([dict(boxes=torch.tensor(p.bboxes), scores=torch.tensor(p.scores), labels=ids(p)) for p in preds],
             [dict(boxes=torch.tensor(a.bboxes), labels=ids(a)) for a in truth])
    theirs,ours = m.compute(),coco_ap(truth, preds)
    for o,t in dict(map='map', map50='map_50', map75='map_75', map_large='map_large', ar_10='mar_10').items():
        assert ours[o] == pytest.approx(float(theirs[t]), abs=1e-6)
