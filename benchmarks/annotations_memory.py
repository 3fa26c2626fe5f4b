"""Memory of annotations with polygons: as float32 arrays, which an `Annotation` stores, and as lists of numbers

Each in a process of its own, which then starts a worker that reads all polygons: reading counts references, and that
copies the pages that the counters lie on"""
import argparse, os, subprocess, sys
from pathlib import Path
import numpy as np
from machine import describe
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.annotation import Annotation

def memory(what='VmRSS'):
    "MB of this process: `VmRSS` of all, 'Private_Dirty' without what it shares with its parent"
    file = 'status' if what.startswith('Vm') else 'smaps_rollup'
    lines = Path(f'/proc/self/{file}').read_text().splitlines()
    return next(int(o.split()[1]) for o in lines if o.startswith(what))/1e3

def annotation(rng, i, objects, vertices):
    "An image with `objects` of about `vertices` vertices each, rounded to hundredths as in COCO"
    n = rng.poisson(vertices - 3, objects) + 3
    polygons = [[rng.uniform(0, 640, 2*k).round(2).tolist()] for k in n]
    boxes = [[min(p[::2]), min(p[1::2]), max(p[::2]), max(p[1::2])] for p, in polygons]
    return Annotation(f'images/{i:08}.jpg', (640, 640), ['object']*objects, boxes, masks=polygons)

def as_lists(a):
    "`a` with its polygons as lists of numbers"
    object.__setattr__(a, 'masks', [[p.astype(np.float64).ravel().tolist() for p in m] for m in a.masks])
    return a

def measure(lists, args):
    "MB of the annotations; MB that a worker copies, which reads them all"
    rng,start = np.random.default_rng(0),memory()
    anns = [annotation(rng, i, args.objects, args.vertices) for i in range(args.images)]
    if lists: anns = list(map(as_lists, anns))
    used = memory() - start
    r,w = os.pipe()
    if os.fork() == 0:
        before = memory('Private_Dirty')
        total = sum(np.asarray(p, np.float64).sum() for a in anns for m in a.masks for p in m)
        os.write(w, f"{memory('Private_Dirty') - before if total else 0}".encode())
        os._exit(0)
    print(used, float(os.read(r, 99)))
    os.wait()

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--images', type=int, default=10_000)
    ap.add_argument('--objects', type=int, default=7)
    ap.add_argument('--vertices', type=int, default=50)
    ap.add_argument('--child', choices=['lists', 'arrays'], help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child: return measure(args.child == 'lists', args)
    print(describe(('numpy',)), f"\n\n{args.images} images, {args.objects} objects each, of {args.vertices} vertices "
          "on average\n\n| polygons | MB | kB an image | MB that a worker copies | GB for 100 000 images |\n"
          "|---|---:|---:|---:|---:|")
    for kind,name in (('lists', 'lists of numbers'), ('arrays', '(m, 2) float32, as stored')):
        cmd = [sys.executable, __file__, *sys.argv[1:], '--child', kind]
        used,copied = map(float, subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.split())
        each = used/args.images
        print(f'| {name} | {used:.0f} | {each*1e3:.1f} | {copied:.0f} | {each*100:.2f} |', flush=True)

if __name__ == '__main__': main()
