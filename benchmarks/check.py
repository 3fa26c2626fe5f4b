"""How long `check_annotations` takes for data with polygons, against decoding every mask with `decode_mask` and with
pycocotools: `python check.py [polygons]`. The images are links to one file; the objects have the sizes of COCO's"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import sys, tempfile
from pathlib import Path
import numpy as np
from PIL import Image
from pycocotools import mask as coco
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.check import check_annotations
from vision_tasks.ops.masks import decode_mask, mask_bbox

SIZE,OBJECTS,VERTICES = (640, 480),7,24

def data_set(path, n, seed=0):
    "Annotations of `n` polygons in all: round outlines whose sides are 8 to 400 pixels, evenly over the logarithm"
    rng,i = np.random.default_rng(seed),0
    Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(SIZE).save(path/'image.jpg')
    while i*OBJECTS < n:
        file = path/f'{i:06}.jpg'
        file.symlink_to(path/'image.jpg')
        k = min(OBJECTS, n - i*OBJECTS)
        angle = np.sort(rng.uniform(0, 2*np.pi, (k, VERTICES)))
        radius = np.exp(rng.uniform(np.log(4), np.log(200), (k, 1)))*rng.uniform(.7, 1, (k, VERTICES))
        p = rng.uniform(0, SIZE, (k, 1, 2)) + radius[...,None]*np.stack([np.cos(angle), np.sin(angle)], -1)
        p = p.clip(0, SIZE).round(2)
        yield Annotation(file, SIZE, ['object']*k, np.concatenate([p.min(1), p.max(1)], 1),
                         masks=[[o.ravel().tolist()] for o in p])
        i += 1

def decoded(anns):
    for a in anns:
        for m in a.masks: mask_bbox(decode_mask(m, a.size))

def theirs(anns):
    w,h = SIZE
    for a in anns:
        for m in a.masks: coco.toBbox(coco.merge(coco.frPyObjects(m, h, w)))

def main(n=70000):
    with tempfile.TemporaryDirectory() as tmp:
        anns = list(data_set(Path(tmp), n))
        plain = [Annotation(a.path, a.size, a.labels, a.bboxes) for a in anns]
        print(describe(['numpy', 'pillow', 'pycocotools']), f"\n\n{n} polygons of {VERTICES} vertices in {len(anns)} "
              f"images of {SIZE[0]}x{SIZE[1]}; median of 3, interleaved, files in the system's cache\n")
        fns = {'check_annotations, images and boxes':             lambda: check_annotations(plain),
               'check_annotations, images, boxes and polygons':   lambda: check_annotations(anns),
               'every mask decoded, `decode_mask`':              lambda: decoded(anns),
               'every mask decoded to run lengths, pycocotools': lambda: theirs(anns)}
        secs = interleaved(fns, 3)
        print('| | seconds | µs a polygon |\n|---|---:|---:|')
        for o,s in secs.items(): print(f'| {o} | {s:.2f} | {s/n*1e6:.0f} |')

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
