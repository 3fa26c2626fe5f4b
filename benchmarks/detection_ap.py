"""COCO's figures for 5000 images with 500 000 detections of 80 classes, from Annotations to the end, against
pycocotools; and of the same data matching at one IoU, the best threshold and VOC's AP"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread each, before numpy is there
import contextlib, io, resource, sys
from pathlib import Path
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation
from vision_tasks.metrics.detection import coco_ap, voc_ap
from vision_tasks.metrics.detection_curves import best_detection_threshold
from vision_tasks.metrics.matching import match_detections

N,DETS,VOCAB,SIZE = 5000,100,[f'class {i:02}' for i in range(80)],np.array([640, 480])

def boxes(rng, n):
    wh = np.exp(rng.normal(4, 1, (n, 2))).clip(4, SIZE-8)
    xy = rng.random((n, 2))*(SIZE-wh)
    return np.c_[xy, xy+wh]

def image(rng, i):
    "As in COCO 7 objects on average, of up to three classes; half of the detections are near them, half are random"
    n = rng.poisson(7.3)
    labels,bboxes = rng.choice(rng.choice(VOCAB, 3), n),boxes(rng, n)
    src = rng.integers(0, n, DETS//2) if n else []
    near = bboxes[src] + rng.normal(0, 6, (len(src), 4))
    near = np.c_[np.minimum(near[:,:2], near[:,2:]), np.maximum(near[:,:2], near[:,2:])]
    other = DETS-len(src)
    pred_labels,pred_bboxes = [*labels[src], *rng.choice(VOCAB, other)],np.r_[near, boxes(rng, other)]
    a = Annotation(f'{i}.jpg', SIZE, labels, bboxes, ignore=rng.random(n) < .01)
    scores = rng.random(DETS)*np.r_[np.ones(len(src)), [.7]*other]
    return a,Annotation(f'{i}.jpg', SIZE, pred_labels, pred_bboxes, scores=scores)

def json_of(annotations, results=False):
    "The boxes in the format of pycocotools, a conversion that everyone with arrays has to write"
    ids,res = {o: i for i,o in enumerate(VOCAB, 1)},[]
    for i,a in enumerate(annotations, 1):
        b = a.bboxes.astype(np.float64)
        b[:,2:] -= b[:,:2]
        if results: res += [dict(image_id=i, category_id=ids[l], bbox=o, score=s)
                            for l,o,s in zip(a.labels, b.tolist(), a.scores.tolist())]
        else: res += [dict(id=len(res)+j, image_id=i, category_id=ids[l], bbox=o, area=o[2]*o[3], iscrowd=g)
                      for j,(l,o,g) in enumerate(zip(a.labels, b.tolist(), a.ignore.astype(int).tolist()), 1)]
    return res

def theirs(targets, preds):
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = dict(images=[dict(id=i+1) for i in range(len(targets))], annotations=json_of(targets),
                          categories=[dict(id=i+1, name=o) for i,o in enumerate(VOCAB)])
        gt.createIndex()
        e = COCOeval(gt, gt.loadRes(json_of(preds, results=True)), 'bbox')
        e.evaluate(); e.accumulate(); e.summarize()
    return e.stats

def main(rounds=3):
    rng = np.random.default_rng(0)
    targets,preds = zip(*(image(rng, i) for i in range(N)))
    print(describe(('numpy', 'pycocotools', 'faster-coco-eval')), f"\n\n{N} images, "
          f"{sum(len(a.labels) for a in targets)} objects, {N*DETS} detections, {len(VOCAB)} classes; median of "
          f"{rounds}, interleaved\n")
    figures,used = {},{}
    def timed(name, f):
        def run():
            start = resource.getrusage(resource.RUSAGE_SELF)
            figures[name] = f(targets, preds)
            end = resource.getrusage(resource.RUSAGE_SELF)
            used.setdefault(name, []).append(end.ru_utime+end.ru_stime - start.ru_utime-start.ru_stime)
        return run
    fns  = {'pycocotools': theirs, 'coco_ap': coco_ap, 'match_detections': match_detections,
            'best_detection_threshold': best_detection_threshold, 'voc_ap': voc_ap}
    secs = interleaved({o: timed(o, f) for o,f in fns.items()}, rounds)
    cpu  = {o: float(np.median(v)) for o,v in used.items()}
    print('| what | seconds, wall | seconds, process time | to coco_ap, process time |\n|---|---:|---:|---:|')
    for o,s in secs.items(): print(f"| {o} | {s:.2f} | {cpu[o]:.2f} | {cpu[o]/cpu['coco_ap']:.1f} |")
    ours = np.array(list(figures['coco_ap'].values()))
    assert np.abs(ours-figures['pycocotools']).max() < 1e-6, "not the same figures"
    print(f"\nall 12 figures are those of pycocotools, at most {np.abs(ours-figures['pycocotools']).max():.0e} apart: "
          + ', '.join(f'{o} {v:.4f}' for o,v in figures['coco_ap'].items()))

if __name__ == '__main__': main()
