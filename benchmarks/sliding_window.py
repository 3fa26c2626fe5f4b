"""What the sliding window costs window by window, against one convolutional pass with the same weights and the same
logits: time, and multiply-adds as torch counts them"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread each, before numpy is there
import argparse, statistics, sys, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore', '.torch.jit.script. is deprecated')
import torch
from torch.utils.flop_counter import FlopCounterMode
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.models.segmentation import sliding_window

class Timed:
    "Keeps the seconds of process time of each call"
    def __init__(self, f): self.f,self.secs = f,[]
    def __call__(self):
        t = time.process_time()
        self.f()
        self.secs.append(time.process_time()-t)

def answer(net, x):
    with torch.no_grad(): return net(x)

def multiply_adds(size, **kw):
    "Of one picture; counted on meta, where nothing is computed"
    with torch.device('meta'): net,x = sliding_window(21, **kw),torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter: answer(net, x)
    return counter.get_total_flops()/2     # torch counts a multiplication and an addition as two

def row(size, stride, rounds):
    nets = {}
    for route in ('windows', 'conv'):
        torch.manual_seed(0)
        nets[route] = sliding_window(21, route=route, stride=stride).eval()
    x = torch.randn(1, 3, size, size)
    # which warms up, too
    torch.testing.assert_close(answer(nets['windows'], x), answer(nets['conv'], x), rtol=1e-3, atol=1e-4)
    fns = {o: Timed(lambda net=net: answer(net, x)) for o,net in nets.items()}
    interleaved(fns, rounds)
    secs = {o: statistics.median(f.secs) for o,f in fns.items()}
    macs = {o: multiply_adds(size, route=o, stride=stride) for o in nets}
    ratio = [w/c for w,c in zip(fns['windows'].secs, fns['conv'].secs)]
    print(f"| {size} x {size} | {stride} | {secs['windows']:.3f} | {secs['conv']:.4f} | "
          f"{secs['windows']/secs['conv']:.0f} ({min(ratio):.0f}..{max(ratio):.0f}) | {macs['windows']/1e9:.1f} | "
          f"{macs['conv']/1e9:.3f} | {macs['windows']/macs['conv']:.0f} |", flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--sizes',  type=int, nargs='+', default=[32, 64, 128], help='heights and widths in pixels')
    args = ap.parse_args()
    torch.set_num_threads(1)
    print(describe(('torch',)), f"\n\n`sliding_window(21)`, patch 33, one picture, one thread; seconds of process "
          f"time, median of {args.rounds}, interleaved; factor: of the medians (range over the rounds)\n")
    print('| picture | stride | windows, s | conv, s | factor | windows, G multiply-adds | conv | factor |\n'
          '|---|---:|---:|---:|---:|---:|---:|---:|')
    for size in args.sizes:
        for stride in (1, 4): row(size, stride, args.rounds)

if __name__ == '__main__': main()
