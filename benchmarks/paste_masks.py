"""From a mask head's 28x28 probabilities to COCO RLE: `paste_rle` against torchvision's `paste_masks_in_image`, object
by object, with pycocotools' encoder; the pixels are compared with torch's `grid_sample` in the frame of each box:
`python paste_masks.py [images] [objects an image] [width] [height]`"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import sys, tracemalloc
from pathlib import Path
import numpy as np, torch
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.ops.masks import paste_rle

def predictions(n, k, size, seed=0):
    "`n` images of `k` smooth masks, in boxes whose sides are 16 to 400 pixels, spread evenly over the logarithm"
    rng = np.random.default_rng(seed)
    for _ in range(n):
        coarse = torch.from_numpy(rng.normal(0, 3, (k, 1, 6, 6)).astype(np.float32))
        probs = torch.nn.functional.interpolate(coarse, size=28, mode='bicubic').sigmoid()[:,0]
        middle,half = rng.uniform(0, 1, (k, 2))*size,np.exp(rng.uniform(np.log(8), np.log(200), (k, 2)))
        yield probs.numpy(),np.concatenate([middle - half, middle + half], 1).clip(0, [*size]*2).astype(np.float32)

def theirs(probs, bboxes, size):
    probs,bboxes = torch.from_numpy(probs)[:,None],torch.from_numpy(bboxes)
    masks = (paste_masks_in_image(p[None], b[None], size[::-1])[0,0] > .5 for p,b in zip(probs, bboxes))
    return [coco.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]

def exact(probs, bboxes, size):
    "One mask after another, (h, w) bool, interpolated at the centers of all pixels"
    for p,(x1,y1,x2,y2) in zip(torch.from_numpy(probs), bboxes.tolist()):
        x,y = ((torch.arange(n) + .5 - a)/(b - a)*2 - 1 for n,a,b in ((size[0], x1, x2), (size[1], y1, y2)))
        grid = torch.stack([x.expand(len(y), -1), y[:,None].expand(-1, len(x))], -1)[None]
        yield (torch.nn.functional.grid_sample(p[None,None], grid, align_corners=False)[0,0] > .5).numpy()

def all_of(paste, data, size):
    for probs,bboxes in data: paste(probs, bboxes, size)

def wrong_pixels(data, size):
    "(pixels that differ, pixels of all masks)"
    pairs = [(coco.decode(a) != b, b) for o in data for a,b in zip(paste_rle(*o, size), exact(*o, size), strict=True)]
    return tuple(sum(int(o[i].sum()) for o in pairs) for i in (0, 1))

def peak(data, size):
    "MiB that Python and numpy hold at most while `data` are pasted and forgotten"
    tracemalloc.start()
    all_of(paste_rle, data, size)
    mib = tracemalloc.get_traced_memory()[1]/2**20
    tracemalloc.stop()
    return mib

def main(n=100, k=50, w=640, h=480):
    torch.set_num_threads(1)
    size,rounds = (w, h),5
    data = list(predictions(n, k, size))
    print(describe(['numpy', 'torch', 'torchvision', 'pycocotools']),
          f"\n\n{n} images of {w}x{h}, {k} objects each, probabilities of 28x28; median of {rounds}, interleaved\n")
    secs = interleaved({'torchvision, object by object, and pycocotools': lambda: all_of(theirs, data, size),
                        'paste_rle': lambda: all_of(paste_rle, data, size)}, rounds)
    slow = max(secs.values())
    print('| | seconds | ms an image | ratio |\n|---|---:|---:|---:|')
    for o,s in secs.items(): print(f'| {o} | {s:.2f} | {s/n*1000:.1f} | {slow/s:.1f} |')
    print("\npixels that differ from grid_sample's, of all: {} of {}".format(*wrong_pixels(data[:10], size)))
    some = [peak(data[:i], size) for i in (1, n//2, n)]
    print(f"peak of paste_rle over 1, {n//2} and {n} images: {', '.join(f'{o:.2f}' for o in some)} MiB "
          f"(n, h, w of one image as uint8: {w*h*k/2**20:.1f} MiB)")

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
