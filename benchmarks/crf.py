"""The dense CRF on images of 480x360, 10 iterations, on one core, against pydensecrf2: process time in total and by
part, agreement, and on Linux memory. Images of CamVid where VISION_TASKS_DATA is set, else drawn shapes"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, statistics, sys, tempfile, time, warnings
from multiprocessing import get_context
from pathlib import Path
warnings.filterwarnings('ignore', 'The image decoding|.torch.jit.script. is deprecated')
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import pil_to_tensor
from loading import CAMVID, camvid
from machine import describe
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.data.image import open_image
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.synthetic import SHAPE_CODES, draw_shapes
from vision_tasks.metrics.segmentation import confusion_counts, confusion_scores
from vision_tasks.ops.crf import dense_crf
try: from pydensecrf import densecrf
except ImportError: densecrf = None

N,SIZE,CLASSES,ITERS,ROUNDS = 3,(480, 360),(12, 21),10,5
DEFAULTS = dict(w1=4., sa=49., sb=5., w2=3., sg=3.)

def scenes(c, n=N, seed=0):
    "[(probs (c, h, w), image, mask)]; in a fifth of the patches of 12 pixels another class is predicted"
    g,data,tmp = torch.Generator().manual_seed(seed),os.environ.get('VISION_TASKS_DATA'),tempfile.TemporaryDirectory()
    with tmp:
        if data:
            anns,known = camvid(Path(data), 'val', 'valid'),len(CAMVID)
            anns = [anns[i] for i in np.linspace(0, len(anns)-1, n).astype(int)]
        else: anns,known = draw_shapes(tmp.name, n=n, size=SIZE, seed=seed),len(SHAPE_CODES)
        assert {a.size for a in anns} == {SIZE}
        seen = [(pil_to_tensor(open_image(a.path)), torch.from_numpy(decode_class_mask(a.mask))) for a in anns]
    res = []
    for im,mask in seen:
        h,w = mask.shape
        patches = lambda o: o.repeat_interleave(12, 0).repeat_interleave(12, 1)[:h, :w]
        wrong = patches(torch.rand(-(-h//12), -(-w//12), generator=g) < .2)
        pred = torch.where(wrong, patches(torch.randint(known, (-(-h//12), -(-w//12)), generator=g)),
                           mask.where(mask < known, 0).long())
        p = F.one_hot(pred, c)*.6 + torch.rand(h, w, c, generator=g)*.4
        res.append(((p/p.sum(-1, keepdim=True)).permute(2, 0, 1).contiguous(), im, mask))
    return res

def theirs(probs, image, w1=4., sa=49., sb=5., w2=3., sg=3., n_iter=ITERS):
    c,h,w = probs.shape
    d,how = densecrf.DenseCRF2D(w, h, c),dict(kernel=densecrf.DIAG_KERNEL,
                                              normalization=densecrf.NORMALIZE_SYMMETRIC)
    d.setUnaryEnergy(-probs.clamp(min=1e-8).log().flatten(1).numpy())
    d.addPairwiseGaussian(sxy=sg, compat=w2, **how)
    d.addPairwiseBilateral(sxy=sa, srgb=sb, rgbim=image.permute(1, 2, 0).contiguous().numpy(), compat=w1, **how)
    return torch.from_numpy(np.array(d.inference(n_iter))).view(c, h, w)

CONTESTANTS = {'dense_crf': dense_crf, **({'pydensecrf2': theirs} if densecrf else {})}

def times(some, clock):
    "{(contestant, iterations): [median, least, most] seconds per image}, interleaved; 0 iterations: building alone"
    took = {(o, n): [] for o in CONTESTANTS for n in (0, ITERS//2, ITERS)}
    for r in range(-1, ROUNDS):                 # the first round warms up
        for probs,im,_ in some:
            for (o,n),all_ in took.items():
                t = clock()
                CONTESTANTS[o](probs, im, n_iter=n)
                if r >= 0: all_.append(clock()-t)
    return {o: (statistics.median(t), min(t), max(t)) for o,t in took.items()}

def growth(name, c, out):
    "Peak memory of the process above that after a small image, in MiB"
    torch.set_num_threads(1)
    def peak(): return next(int(o.split()[1]) for o in Path('/proc/self/status').open() if o.startswith('VmHWM'))/2**10
    (probs,im,_), = scenes(c, 1)
    CONTESTANTS[name](probs[:, :32, :32].contiguous(), im[:, :32, :32].contiguous())
    Path('/proc/self/clear_refs').write_text('5')   # the peak begins anew at what is held now
    before = peak()
    CONTESTANTS[name](probs, im)
    out.put(peak()-before)

def in_new_process(*args):
    ctx = get_context('spawn')
    out = ctx.Queue()
    p = ctx.Process(target=growth, args=(*args, out))
    p.start(); res = out.get(); p.join()
    return res

def on_cpu():
    torch.set_num_threads(1)
    for c in CLASSES:
        some = scenes(c)
        secs = times(some, time.process_time)
        print(f"\n**{c} classes, {SIZE[0]}x{SIZE[1]}**, {len(some)} images, {ROUNDS} rounds, interleaved; ms of "
              f"process time per image, median (least..most)\n\n| | building | {ITERS//2} iterations | {ITERS} "
              "iterations | an iteration | speed to ours | peak memory, MiB |\n|---|---:|---:|---:|---:|---:|---:|")
        for o in CONTESTANTS:
            t = [secs[o, n] for n in (0, ITERS//2, ITERS)]
            cells = [f'{m*1e3:.0f} ({a*1e3:.0f}..{b*1e3:.0f})' for m,a,b in t]
            mem = f'{in_new_process(o, c):.0f}' if sys.platform == 'linux' else ''
            print(f"| {o} | {' | '.join(cells)} | {(t[-1][0]-t[0][0])/ITERS*1e3:.1f} | "
                  f"{secs['dense_crf', ITERS][0]/t[-1][0]:.2f} | {mem} |")
        quality(some, c)

def quality(some, c):
    "Mean IoU before and after, and how far the contestants agree"
    preds = {'before': [p for p,_,_ in some], **{o: [f(p, im) for p,im,_ in some] for o,f in CONTESTANTS.items()}}
    void = lambda m: m.where(m < c, 255)
    scores = {o: confusion_scores(sum(confusion_counts(q.argmax(0), void(m), c) for q,(_,_,m) in zip(qs, some)))['miou']
              for o,qs in preds.items()}
    print('\nMean IoU: ' + ', '.join(f'{o} {s:.3f}' for o,s in scores.items()))
    if not densecrf: return print("pydensecrf2 is not here: pip install pydensecrf2 (it wants a C++ compiler)")
    a,b = (torch.stack(preds[o]) for o in CONTESTANTS)
    print(f"Between the two: mean |dQ| {(a-b).abs().mean():.1e}, largest {(a-b).abs().max():.3f}, "
          f"same class {(a.argmax(1) == b.argmax(1)).float().mean():.2%}")

def on_gpu(device):
    "Batches of the same images; wall time, because the process only waits"
    for c in CLASSES:
        some = scenes(c)
        probs,images = (torch.stack(o).to(device) for o in list(zip(*some))[:2])
        want = torch.stack([dense_crf(p, im) for p,im,_ in some])
        for b in (1, len(some)):
            took = []
            torch.cuda.reset_peak_memory_stats(device)
            for _ in range(ROUNDS+1):
                torch.cuda.synchronize(device)
                t = time.perf_counter()
                got = dense_crf(probs[:b], images[:b])
                torch.cuda.synchronize(device)
                took.append(time.perf_counter()-t)
            print(f"{c} classes, batch of {b}: {statistics.median(took[1:])/b*1e3:.1f} ms per image, peak memory "
                  f"{torch.cuda.max_memory_allocated(device)/2**20:.0f} MiB, to the CPU mean |dQ| "
                  f"{(got.cpu()-want[:b]).abs().mean():.1e}")

def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('--device', default='cpu')
    device = torch.device(args.parse_args().device)
    print(describe(('torch', 'numpy', 'pydensecrf2')))
    if device.type == 'cpu': on_cpu()
    else:
        print(torch.cuda.get_device_name(device))
        on_gpu(device)

if __name__ == '__main__': main()
