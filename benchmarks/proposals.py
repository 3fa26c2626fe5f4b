"""Selective search on one core, in several orders of its boxes, against opencv-contrib's fast mode: process time,
recall of all, of random and of grid boxes; what `Proposals` adds. Face masks and COCO128 where VISION_TASKS_DATA is
set, else drawn shapes"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, statistics, sys, tempfile, time, warnings
from functools import partial
from pathlib import Path
import numpy as np
from PIL import Image
from machine import describe
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.image import read_image
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.synthetic import draw_shapes
from vision_tasks.data.formats.voc import read_voc
from vision_tasks.data.formats.yolo import read_yolo
from vision_tasks.ops.proposals import grid_proposals, proposal_recall, random_proposals, selective_search
try: import cv2
except ImportError: cv2 = None

WIDTH,COUNTS = 500,(200, 500, 1000, 2000)

def data_sets(n, tmp):
    "{name: annotations}, n images with objects of each data set, evenly spaced in the order of their names"
    data = os.environ.get('VISION_TASKS_DATA')
    if not data: return {'drawn shapes': [a for a in draw_shapes(tmp, n=2*n, size=(400, 300)) if len(a.bboxes)][:n]}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.* images are dropped')   # COCO128 has labels without an image
        all_ = {'facemask': read_voc(Path(data)/'facemask', images='images', annotations='annotations'),
                'coco128':  read_yolo(Path(data)/'coco128', on_error='drop')}
    some = {k: [a for a in v if len(a.bboxes)] for k,v in all_.items()}
    return {k: [v[i] for i in np.linspace(0, len(v)-1, min(n, len(v))).astype(int)] for k,v in some.items()}

def theirs(im):   # (h, w, 3) uint8 -> (k, 4)
    s = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    s.setBaseImage(np.ascontiguousarray(im[...,::-1]))
    s.switchToSelectiveSearchFast()
    b = np.asarray(s.process(), np.float32).reshape(-1, 4)
    b[:,2:] += b[:,:2]
    return b

# 'nms=None' is the order of 2026-11-21
ORDERS = {'selective_search': {}, 'nms=None': dict(nms=None), 'nms=.7': dict(nms=.7), 'nms=.8': dict(nms=.8),
          "first='small'": dict(first='small')}
CONTESTANTS = {**{k: partial(selective_search, **kw) for k,kw in ORDERS.items()},
               **({'opencv-contrib, fast': theirs} if cv2 else {})}

def scaled(a):
    "(image at most WIDTH wide, factor of its boxes): so that all search the same pixels"
    im = read_image(a.path)
    w,h = im.size
    small = im.resize((WIDTH, round(h*WIDTH/w)), Image.BOX) if w > WIDTH else im
    return np.asarray(small),np.tile([w/small.width, h/small.height], 2)

def searched(anns, rounds):
    "{contestant: boxes of each image}, {contestant: median seconds of each image}, interleaved"
    found,took = {o: [] for o in CONTESTANTS},{o: [] for o in CONTESTANTS}
    for im,scale in map(scaled, anns):
        times = {o: [] for o in CONTESTANTS}
        for r in range(rounds):
            for o,f in CONTESTANTS.items():
                t = time.process_time()
                b = f(im)
                times[o].append(time.process_time()-t)
                if not r: found[o].append(b*scale)
        for o,t in times.items(): took[o].append(statistics.median(t))
    return found,took

def compare(name, anns, rounds):
    found,took = searched(anns, rounds)
    targets = [a.bboxes for a in anns]
    ours = statistics.mean(took['selective_search'])
    print(f"\n**{name}**, {len(anns)} images, {sum(map(len, targets))} boxes, at most {WIDTH} pixels wide\n\n| | "
          "ms per image | least..most | time to ours | boxes per image |\n|---|---:|---:|---:|---:|")
    for o,t in took.items():
        print(f"| {o} | {1e3*statistics.mean(t):.0f} | {1e3*min(t):.0f}..{1e3*max(t):.0f} | "
              f"{statistics.mean(t)/ours:.2f} | {statistics.mean(map(len, found[o])):.0f} |")
    print("\nRecall at IoU .5 / at .7 / mean best overlap, of the first n boxes\n\n| n | "
          + ' | '.join([*found, 'random', 'grid']) + ' |\n|---' + '|---:'*(len(found) + 2) + '|')
    for n in COUNTS:
        some = {**found, 'random': [random_proposals(a.size, n) for a in anns],
                'grid': [grid_proposals(a.size, n) for a in anns]}
        scores = [proposal_recall(o, targets, (.5, .7), n).values() for o in some.values()]
        print(f"| {n} | " + ' | '.join(' / '.join(f'{o:.3f}' for o in s) for s in scores) + ' |')

def keeping(anns):
    "Images per second of `prepare`, by wall time"
    paths = [a.path for a in anns]
    print(f"\n**Proposals**, {len(paths)} images; wall time\n\n| | images per second |\n|---|---:|")
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as tmp:
            p = Proposals(cache=tmp, workers=workers)
            t = time.perf_counter()
            assert p.prepare(paths, progress=False) == len(paths)
            print(f"| prepare, workers={workers} | {len(paths)/(time.perf_counter()-t):.2f} |")
            t = time.perf_counter()
            for o in paths: p(o)
            read = len(paths)/(time.perf_counter()-t)
            size = sum(f.stat().st_size for f in Path(tmp).iterdir())/len(paths)/2**10
    print(f"| read again, one process | {read:.0f} |\n\n{size:.0f} KiB per image are stored")

def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('-n', type=int, default=40, help="images of each data set")
    args.add_argument('--rounds', type=int, default=3, help="of timing")
    args = args.parse_args()
    print(describe(('numpy', 'scikit-image', 'opencv-contrib-python-headless')))
    if cv2: cv2.setNumThreads(1)
    else: print("opencv-contrib is not here: pip install opencv-contrib-python-headless")
    with tempfile.TemporaryDirectory() as tmp:
        sets = data_sets(args.n, tmp)
        for name,anns in sets.items(): compare(name, anns, args.rounds)
        keeping(next(iter(sets.values())))

if __name__ == '__main__': main()
