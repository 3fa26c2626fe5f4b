"Average precision of detections, in pixels of the image files, by the rules of COCO and PASCAL VOC"
from __future__ import annotations
import numpy as np, pandas as pd
from fastai.learner import Metric
from fastai.torch_core import to_detach
from faster_coco_eval import COCO, COCOeval_faster, mask as coco_masks
from ..arguments import COUNT, IOU, checked, choice
from ..data.errors import AnnotationError
from ..data.formats.coco import coco_shape
from .matching import match_voc, mean_or_nan, read_objects, verdicts
from ..ops.masks import encode_rle

__all__ = ['coco_ap', 'voc_ap', 'MeanAP']

# --- COCO

_IOU_TYPE = choice('bbox', 'segm')

@checked(iou_type=_IOU_TYPE)
def coco_ap(
    annotations,       # list[Annotation], the ground truth
    predictions,       # list[Annotation] of the same images in the same order
    vocab=None,        # list of class names; None (default): those of `annotations`, sorted
    iou_type='bbox',   # what is compared: 'bbox' boxes, 'segm' masks
    max_dets:int=100,  # detections used per image and class: those with the highest scores
    per_class=False,   # return a row for each class in place of the means
):                     # dict name -> in [0, 1]; or DataFrame label, n (objects not ignored), ap, ap50, ap75, ar
    """COCO's AP and AR: 'map', 'map50', 'map75', 'map_small', 'map_medium', 'map_large', 'ar_1', 'ar_10', 'ar_100'
    (with at most so many detections per image and class), 'ar_small', 'ar_medium', 'ar_large'. Equal to pycocotools on
    the files that `write_coco` writes.

    Each is a mean over the classes with ground truth (in the range of areas) and, except for 50 and 75, over the IoUs
    0.5, 0.55 to 0.95; precision is interpolated at 101 recalls. A score is nan without ground truth, and 0 with ground
    truth but no detection. Ties of scores are broken by order: the first comes first. Objects with `ignore` are crowds:
    each may match any number of detections, by the share of the detection that lies inside; these are excluded.

    Objects are small (up to 32²), medium or large (from 96²) by the area of their mask, also where boxes are
    compared, or of their box if they have no mask; detections by that of their box, for 'segm' of their mask (as COCO's
    results without 'bbox'). The mask [] is empty.

    Raises `ValueError` where the images differ, or for a class that is not in `vocab`, and `AnnotationError` where
    boxes, scores or masks are missing"""
    vocab,truth,dets = read_objects(annotations, predictions, vocab)
    caps = [*(o for o in (1, 10) if o < max_dets), int(max_dets)]
    p,r  = _evaluated(annotations, predictions, truth, dets, len(vocab), iou_type, caps)
    if per_class:
        of_class = lambda c: dict(ap=mean_or_nan(p[:,:,c,0,-1]), ap50=mean_or_nan(p[0,:,c,0,-1]),
                                  ap75=mean_or_nan(p[5,:,c,0,-1]), ar=mean_or_nan(r[:,c,0,-1]))
        return _per_class(vocab, truth, map(of_class, range(len(vocab))), ['ap', 'ap50', 'ap75', 'ar'])
    sizes = list(enumerate(('small', 'medium', 'large'), 1))
    return dict(map=mean_or_nan(p[...,0,-1]), map50=mean_or_nan(p[0,...,0,-1]), map75=mean_or_nan(p[5,...,0,-1]),
                **{f'map_{o}': mean_or_nan(p[...,i,-1]) for i,o in sizes},
                **{f'ar_{o}':  mean_or_nan(r[...,0,i]) for i,o in enumerate(caps)},
                **{f'ar_{o}':  mean_or_nan(r[...,i,-1]) for i,o in sizes})

def _per_class(vocab, truth, rows, columns):
    n = np.bincount(truth.label[~truth.ignore], minlength=len(vocab))
    return pd.concat([pd.DataFrame(dict(label=vocab, n=n)), pd.DataFrame(list(rows), columns=columns)], axis=1)

def _evaluated(annotations, predictions, truth, dets, n_classes, iou_type, caps):
    "COCO's precision (10 IoUs, 101 recalls, c, 4 areas, caps), recall (10, c, 4, caps); -1 without ground truth"
    if not annotations or not n_classes:
        return np.full((10, 101, n_classes, 4, len(caps)), -1.),np.full((10, n_classes, 4, len(caps)), -1.)
    shapes = [np.c_[o.bboxes[:,:2], o.bboxes[:,2:]-o.bboxes[:,:2]] for o in (truth, dets)]
    areas  = [o[:,2]*o[:,3] for o in shapes]
    areas[0] = _truth_areas(annotations, areas[0])
    if iou_type == 'segm':
        shapes = [[_rle(a, i) for a in o for i in range(len(a.labels))] for o in (annotations, predictions)]
        areas[1] = np.asarray(coco_masks.area(shapes[1]), float) if shapes[1] else areas[1]
    e = _ArrayEval(truth, dets, *shapes, *areas, len(annotations), n_classes, caps)
    e.evaluate(); e.accumulate()
    return e.eval['precision'],e.eval['recall']

class _ArrayEval(COCOeval_faster):
    "COCO evaluation on arrays: overlaps are computed from these, so that boxes are never converted to lists"
    def __init__(self, truth, dets, truth_shapes, det_shapes, truth_areas, det_areas, n_images, n_classes, caps):
        # 'bbox' for masks too: the type only decides where overlaps come from, and these are ours
        super().__init__(_indexed(truth, truth_areas, n_images, n_classes),
                         _indexed(dets, det_areas, n_images, n_classes), 'bbox')
        self.params.maxDets = caps
        key,order = zip(*(_sorted(o, n_classes) for o in (truth, dets)))
        pick = lambda shapes, order: [shapes[i] for i in order] if isinstance(shapes, list) else shapes[order]
        self.shapes,self.crowd = list(map(pick, (truth_shapes, det_shapes), order)),truth.ignore[order[0]].astype(int)
        pairs  = np.intersect1d(*key)
        bounds = np.stack([np.searchsorted(k, pairs, side) for k in key for side in ('left', 'right')], 1)
        bounds[:,3] = np.minimum(bounds[:,3], bounds[:,2]+caps[-1])
        ids = zip((pairs//n_classes+1).tolist(), (pairs%n_classes+1).tolist())
        self.bounds = dict(zip(ids, bounds.tolist()))

    def computeIoU(self, imgId, catId):
        "Overlap of each detection, by descending score, with each object of one image and class"
        if (imgId, catId) not in self.bounds: return []
        t0,t1,d0,d1 = self.bounds[imgId, catId]
        return coco_masks.iou(self.shapes[1][d0:d1], self.shapes[0][t0:t1], self.crowd[t0:t1].tolist())

def _sorted(o, n_classes):
    "The sorted keys of image and class, and the order that sorts them, by descending score where they are equal"
    key   = o.image*n_classes + o.label
    order = np.lexsort((-o.scores, key))
    return key[order],order

def _indexed(o, areas, n_images, n_classes):
    "`o` as pycocotools takes it, ids from 1; the garbage collector skips dicts without lists"
    rows = zip(*(x.tolist() for x in (o.image+1, o.label+1, areas, o.ignore.astype(int), o.scores)))
    coco = COCO()
    coco.dataset = dict(images=[dict(id=i+1) for i in range(n_images)],
                        categories=[dict(id=i+1) for i in range(n_classes)],
                        annotations=[dict(id=i, image_id=p, category_id=c, area=a, iscrowd=g, score=s)
                                     for i,(p,c,a,g,s) in enumerate(rows, 1)])
    coco.createIndex()
    return coco

def _truth_areas(annotations, box_areas):
    "(n,) areas in pixels: of the mask where there is one, else of the box"
    objects = ((a, i) for a in annotations for i in range(len(a.labels)))
    return np.array([_shape(a, i)[1] if a.masks is not None and len(a.masks[i]) else b
                     for (a,i),b in zip(objects, box_areas)], float)

def _shape(a, i):
    "(the mask of object `i` as COCO's json holds it, its area in pixels)"
    try: return coco_shape(a.masks[i])
    except ValueError as e: raise AnnotationError(f"{a.path}, masks, row {i}: {e}") from None

def _rle(a, i):
    "The mask of object `i` as compressed run lengths"
    if a.masks is None: raise AnnotationError(
        f"{a.path}: no masks for {len(a.labels)} boxes; iou_type='segm' compares masks, 'bbox' boxes")
    if not len(a.masks[i]): return encode_rle(np.zeros(a.size[::-1], bool))
    m = _shape(a, i)[0]
    if isinstance(m, dict) and isinstance(m['counts'], str): return m
    m = coco_masks.frPyObjects(m, *a.size[::-1])
    return coco_masks.merge(m) if isinstance(m, list) else m

# --- PASCAL VOC

@checked(iou=IOU, points=choice(11))
def voc_ap(
    annotations,     # list[Annotation], the ground truth
    predictions,     # list[Annotation] of the same images in the same order
    vocab=None,      # list of class names; None (default): those of `annotations`, sorted
    iou:float=.5,    # least IoU of a true positive, in (0, 1]
    points:int=None, # 11: mean precision at the recalls 0, 0.1 to 1 (VOC2007); None (default): area (from 2010 on)
    per_class=False, # return a row for each class in place of the mean
):                   # mean AP in [0, 1]; or DataFrame label, n (objects not ignored), ap
    """PASCAL VOC's AP: the mean over the classes with ground truth; nan for a class without, and if no class has any.

    By descending score (ties in their order), each detection is compared with the object of its class that it overlaps
    most; if that object is matched already, the detection is a false positive. Objects with `ignore` are difficult:
    they and the detections that match them are excluded. Precision is interpolated: at each recall, the highest
    precision from there on. The devkit's boxes include their last pixel, so it adds 1 to their sides; ours end at the
    edge behind that pixel (`read_voc`), and the IoU is the same.

    Raises `ValueError` where the images differ, or for a class that is not in `vocab`, and `AnnotationError` where
    boxes or scores are missing"""
    vocab,truth,dets = read_objects(annotations, predictions, vocab)
    hit,ignored = verdicts(match_voc(truth, dets, iou), truth)
    table = _per_class(vocab, truth, [], ['ap'])
    order = np.argsort(-dets.scores, kind='stable')
    order = order[~ignored[order]]
    found = [hit[order[dets.label[order] == c]] for c in range(len(vocab))]
    table['ap'] = np.array([_voc_curve(h, n, points) for h,n in zip(found, table.n)], float)
    return table if per_class else float(table.ap.mean())

def _voc_curve(hit, n, points=None):
    "AP of one class with `n` objects, from `hit` (k,) of its detections by descending score"
    if not n: return np.nan
    tp = np.cumsum(hit)
    recall,precision = tp/n,tp/np.arange(1, len(tp)+1)
    if points is None: return area_below(recall, precision)
    first = np.searchsorted(recall, np.arange(11)/10)   # divided as the recalls are, so that 0.3 equals 0.3
    return np.append(_best_from(precision), 0)[first].mean()

def _best_from(precision): return np.maximum.accumulate(precision[::-1])[::-1]

def area_below(recall, precision):
    "Area below the curve of the best precision at each recall or a higher one"
    return np.sum(np.diff(recall, prepend=0)*_best_from(precision))

# --- during training

class MeanAP(Metric):
    """COCO's mean AP over the whole validation set, in pixels of the image files, as `coco_ap` computes it, on all
    detections that the model returns with a score above 0"""
    @checked(every=COUNT, iou_type=_IOU_TYPE)
    def __init__(self,
        every:int=1,        # compute it every so many epochs, since it takes time. In the others it is nan, which
                            # fastai's trackers skip: their `patience` counts values. The last epoch of a fit and every
                            # `validate` have a value
        iou_type='bbox',    # what is compared: 'bbox' boxes, 'segm' masks
        max_dets:int=100,   # detections used per image and class: those with the highest scores
    ):
        self.every,self.iou_type,self.max_dets = every,iou_type,max_dets
    @property
    def name(self): return 'map' if self.iou_type == 'bbox' else f'map_{self.iou_type}'
    def reset(self): self.annotations,self.predictions,self.vocab = [],[],None
    def due(self, learn, # the learner, in an epoch
    ) -> bool:
        "Whether the metric is computed in this epoch"
        # `validate` turns the bar of epochs off; its `epoch` is that of an earlier fit
        return not learn.create_mbar or (learn.epoch+1)%self.every == 0 or learn.epoch == learn.n_epoch-1
    def accumulate(self, learn, # the learner, after a batch
    ):
        if not self.due(learn): return
        dets  = learn.probabilities(to_detach(learn.pred, cpu=False, gather=False))
        if self.iou_type == 'bbox': dets = dets[...,:6]   # masks are not used, and pasting them takes time
        items = learn.items_of_batch(len(self.annotations), len(dets))
        self.annotations += items
        self.predictions += learn.to_annotations(dets, [(a.path, a.size) for a in items], 0.)
        self.vocab = tuple(learn.dls.vocab)   # a tuple, since lists are gathered from all processes
    @property
    def value(self):
        if not self.annotations: return float('nan')
        return coco_ap(self.annotations, self.predictions, self.vocab, self.iou_type, self.max_dets)['map']
