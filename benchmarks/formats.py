"""How long the readers and writers of boxes take on a data set of COCO's size, against pycocotools' COCO for its json:
`python formats.py [images] [kind]`, 5000 (val2017) or 118287 (train2017); all kinds, or json, csv, txt or xml. The
images are copies of one small file"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import contextlib, io, json, sys, tempfile
from pathlib import Path
from unittest.mock import patch
import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.formats import coco
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.formats.coco import read_coco, write_coco
from vision_tasks.data.formats.table import read_df, write_df
from vision_tasks.data.formats.voc import read_voc, write_voc
from vision_tasks.data.formats.yolo import read_yolo, write_yolo

SIZE,OBJECTS,CLASSES,VERTICES = (640, 480),7.3,80,20   # as train2017: 860 001 objects in 118 287 images

def data_set(path, n, seed=0):
    "`n` annotations with boxes and polygons, some images without objects"
    rng,names = np.random.default_rng(seed),[f'class {i}' for i in range(CLASSES)]
    Image.new('RGB', SIZE).save(path/'image.jpg', quality=10)
    data = (path/'image.jpg').read_bytes()
    (path/'images').mkdir()
    for i,k in enumerate(rng.poisson(OBJECTS, n)):
        file = path/'images'/f'{i:06}.jpg'
        file.write_bytes(data)     # a link would be the same image twice, which the readers refuse
        centre = rng.uniform(50, 430, (k, 1, 2))
        polygons = np.round(centre + rng.uniform(-40, 40, (k, VERTICES, 2)), 2)
        yield Annotation(file, SIZE, [names[j] for j in rng.integers(0, CLASSES, k)], masks=[[p.ravel().tolist()]
                         for p in polygons], bboxes=np.concatenate([polygons.min(1), polygons.max(1)], 1))

def trusted(file, root):
    "`read_coco` without opening an image"
    with patch.object(coco, 'size_of', lambda path: SIZE): return read_coco(file, root)

def theirs(file):
    with contextlib.redirect_stdout(io.StringIO()): return COCO(str(file))

def boxes_of(annotations): return sum(len(a.labels) for a in annotations)

def main(n, kind=''):
    rounds,folders = 3 if n <= 10000 else 1,{}
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp)
        anns = list(data_set(path, n))
        plain = [Annotation(a.path, a.size, a.labels, a.bboxes) for a in anns]
        file,cols = path/'t.json',dict(label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'])
        root = write_coco(anns, file)
        print(describe(['numpy', 'pillow', 'pycocotools']), f"\n\n{n} images, {boxes_of(anns)} objects, json of "
              f"{file.stat().st_size/2**20:.0f} MiB; median of {rounds}, files in the system's cache\n", flush=True)
        def new(name):   # where nothing is yet: to replace files is faster, and to remove them takes time too
            folders[name] = Path(tempfile.mkdtemp(dir=path))
            return folders[name]
        fns = {'json: pycocotools COCO(), checks nothing':   lambda: theirs(file),
               'json: json.loads':                           lambda: json.loads(file.read_bytes()),
               'json: read_coco':                            lambda: read_coco(file, root),
               'json: read_coco, images not opened':       lambda: trusted(file, root),
               'json: write_coco':                           lambda: write_coco(anns, path/'new.json'),
               'csv: write_df, boxes':                       lambda: write_df(plain).to_csv(path/'t.csv', index=False),
               'csv: read_df, boxes':                        lambda: read_df(path/'t.csv', **cols),
               'txt: write_yolo, boxes':                     lambda: write_yolo(plain, new('boxes')),
               'txt: read_yolo, boxes':                      lambda: read_yolo(folders['boxes']),
               'txt: write_yolo, polygons':                  lambda: write_yolo(anns, new('polygons')),
               'txt: read_yolo, polygons':                   lambda: read_yolo(folders['polygons']),
               'xml: write_voc, boxes; copies the images': lambda: write_voc(plain, new('voc')),
               'xml: read_voc, boxes':                       lambda: read_voc(folders['voc'])}
        fns  = {k: v for k,v in fns.items() if k.startswith(kind)}
        secs = interleaved(fns, rounds)
        print('| | seconds | µs an object |\n|---|---:|---:|')
        for o,s in secs.items(): print(f'| {o} | {s:.2f} | {s/boxes_of(anns)*1e6:.0f} |')
        back = {'json: read_coco', 'csv: read_df, boxes', 'txt: read_yolo, polygons', 'xml: read_voc, boxes'} & {*fns}
        for name in sorted(back):
            assert all(a.labels == b.labels and np.array_equal(a.bboxes, b.bboxes)
                       for a,b in zip(anns, fns[name](), strict=True)), f"{name}: something changed on the way"

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else 5000, *sys.argv[2:])
