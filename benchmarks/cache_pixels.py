"""What a cache should store: how far reduced pixels are from those of a full decode, and raw pixels beside JPEG and PNG

Images of coco128, and photographs of 12 megapixels made of them. The error is that of the network's input, against the
file decoded at full size and resampled once; beside it that of the pipeline without a cache, which decodes large JPEGs
at a half, a quarter or an eighth"""
import argparse, os, random, sys, tempfile, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
from io import BytesIO
from pathlib import Path
import numpy as np, torch
from fastai.vision.all import get_image_files
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import pil_to_tensor
from loading import large_jpegs
from machine import describe
from multilabel_real import folder
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.cache import PixelCache
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.image import image_size
from vision_tasks.data.items import CachedImage, FileImage
from vision_tasks.data.laying import cut_image, lay_pixels
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import CropView, JitterView

VIEWS = {'random crop': (CropView(), 'squish', 0), 'scale jitter .6 to 1.4': (JitterView((.6, 1.4)), 'pad', 0),
         'validation, squish': (CropView(), 'squish', 1), 'validation, pad': (JitterView((.6, 1.4)), 'pad', 1)}

def laid(im, view):
    "The network's input, (3, h, w) uint8"
    cut,view = cut_image(im, view, exact=True)
    return lay_pixels(cut, view, 0).int()

def errors(files, size):
    "A line a view: grey levels between the input and that of a full decode, with a cache and without"
    for name,(train,valid,split) in VIEWS.items():
        joint,rows = JointTransform(size, train, valid, flip=0.),[]
        cache = PixelCache('ram', [Annotation(f, image_size(f)) for f in files], joint)
        random.seed(0)
        for f in files:
            full = FileImage.create(f).decode()
            view = joint.view(full.size, split)
            want = lay_pixels(pil_to_tensor(full.crop(view.src)), view, 0).int()
            diff = [(laid(im, view) - want).abs() for im in (cache.image(f), FileImage.create(f))]
            rows.append([*(d.float().mean().item() for d in diff), *(d.max().item() for d in diff)])
        r = np.array(rows)
        print(f"| {name} | {size} | {cache.total/len(files)/1e6:.2f} | {r[:,0].mean():.2f} | {r[:,0].max():.2f} | "
              f"{r[:,2].max():.0f} | {r[:,1].mean():.2f} | {r[:,1].max():.2f} | {r[:,3].max():.0f} |", flush=True)

def timed(f, n=5):
    "Median ms of process time"
    res = []
    for _ in range(n):
        t = time.process_time()
        f()
        res.append(time.process_time() - t)
    return sorted(res)[n//2]*1e3

def raw(file):     return np.fromfile(file, np.uint8)
def jpeg(file):    return decode_jpeg(torch.from_numpy(np.fromfile(file, np.uint8)), mode=ImageReadMode.RGB)
def png(file):     return np.asarray(Image.open(file))

def formats(files, size):
    "A line a format: kB on the disk, ms to read it from the page cache, its own error"
    cache = PixelCache('ram', [Annotation(f, image_size(f)) for f in files], JointTransform(size))
    ims = [cache.image(f) for f in files]
    ims = [o.cached_pixels().permute(1, 2, 0).numpy() if isinstance(o, CachedImage) else np.asarray(o) for o in ims]
    kinds = {'raw uint8': (None, raw), 'PNG, level 1': (dict(format='PNG', compress_level=1), png)}
    for q in (90, 95, 98): kinds[f'JPEG, quality {q}, 4:4:4'] = dict(format='JPEG', quality=q, subsampling=0),jpeg
    with tempfile.TemporaryDirectory() as d:
        for name,(kw,read) in kinds.items():
            paths,off = [Path(d)/str(i) for i in range(len(ims))],[]
            for p,x in zip(paths, ims):
                if kw is None: x.tofile(p); continue
                b = BytesIO()
                Image.fromarray(x).save(b, **kw)
                p.write_bytes(b.getvalue())
                off.append(np.abs(np.asarray(Image.open(b), int) - x).mean())
            ms = timed(lambda: [read(p) for p in paths])/len(paths)
            kb = sum(p.stat().st_size for p in paths)/len(paths)/1e3
            print(f"| {name} | {size} | {kb:.0f} | {ms:.2f} | {np.mean(off or [0]):.2f} |", flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--sizes', nargs='+', type=int, default=[96, 160, 224, 320])
    ap.add_argument('--limit', type=int, default=64, help='images')
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    print(describe(('torch', 'torchvision', 'pillow')))
    files = get_image_files(folder('VISION_TASKS_DATA')/'coco128/images').sorted()[:args.limit]
    with tempfile.TemporaryDirectory() as d:
        large = large_jpegs(Path(d), files)
        for name,some in (('coco128', files), ('4000x3000 JPEGs', large)):
            print(f"\n**{name}**, {len(some)} images; grey levels\n\n| view | size | MB an image | cache, mean | worst "
                  "image | largest | no cache, mean | worst image | largest |\n|---|" + '---:|'*8)
            for size in args.sizes: errors(some, size)
            print("\n| stored as | size | kB an image | ms to read | grey levels off |\n|---|---:|---:|---:|---:|")
            formats(some, args.sizes[-2])

if __name__ == '__main__': main()
