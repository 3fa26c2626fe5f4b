"""The cost of the sliding window, window by window, against one convolutional pass with the same weights and the same
logits: time, and for segmentation multiply-adds as torch counts them"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread each, before numpy is there
import argparse, statistics, sys, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore', '.torch.jit.script. is deprecated')
import torch
from torch.utils.flop_counter import FlopCounterMode
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.models.detection.sliding_window import sliding_window_detector as detector
from vision_tasks.models.segmentation.sliding_window import sliding_window_segmenter

class Timed:
    "Keeps the seconds of process time of each call"
    def __init__(self, f): self.f,self.secs = f,[]
    def __call__(self):
        t = time.process_time()
        self.f()
        self.secs.append(time.process_time()-t)

def predict(net, x):
    with torch.no_grad(): return net(x)

def multiply_adds(size, **kw):
    "Of one image; counted on the meta device, where nothing is computed"
    with torch.device('meta'): net,x = sliding_window_segmenter(21, **kw),torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter: predict(net, x)
    return counter.get_total_flops()/2     # torch counts a multiplication and an addition as two

def row(size, stride, rounds):
    nets = {}
    for route in ('windows', 'conv'):
        torch.manual_seed(0)
        nets[route] = sliding_window_segmenter(21, route=route, stride=stride).eval()
    x = torch.randn(1, 3, size, size)
    # which warms up, too
    torch.testing.assert_close(predict(nets['windows'], x), predict(nets['conv'], x), rtol=1e-3, atol=1e-4)
    fns = {o: Timed(lambda net=net: predict(net, x)) for o,net in nets.items()}
    interleaved(fns, rounds)
    secs = {o: statistics.median(f.secs) for o,f in fns.items()}
    macs = {o: multiply_adds(size, route=o, stride=stride) for o in nets}
    ratio = [w/c for w,c in zip(fns['windows'].secs, fns['conv'].secs)]
    print(f"| {size} x {size} | {stride} | {secs['windows']:.3f} | {secs['conv']:.4f} | "
          f"{secs['windows']/secs['conv']:.0f} ({min(ratio):.0f}..{max(ratio):.0f}) | {macs['windows']/1e9:.1f} | "
          f"{macs['conv']/1e9:.3f} | {macs['windows']/macs['conv']:.0f} |", flush=True)

def detection_row(size, stride, rounds):
    nets = {}
    for dense in (False, True):
        torch.manual_seed(0)
        nets[dense] = detector(20, size=size, stride=stride, dense=dense).eval()
    x = torch.randn(1, 3, size, size)
    levels = nets[True].levels(x.shape[-2:])
    def logits(net):
        with torch.no_grad(): return [net.logits(x, l) for l in levels]
    n = sum(o.shape[1] for o in logits(nets[True]))
    torch.testing.assert_close(logits(nets[False]), logits(nets[True]), rtol=1e-3, atol=1e-4)
    fns = {o: Timed(lambda net=net: logits(net)) for o,net in nets.items()}
    interleaved(fns, rounds)
    one,by_one = fns[True].secs,fns[False].secs
    ratio = [w/c for w,c in zip(by_one, one)]
    print(f"| {size} x {size} | {stride} | {len(levels)} | {n:,} | {statistics.median(by_one):.2f} | "
          f"{statistics.median(one):.3f} | {statistics.median(by_one)/statistics.median(one):.1f} "
          f"({min(ratio):.1f}..{max(ratio):.1f}) |", flush=True)

def detection(sizes, rounds):
    print(f"`sliding_window(20)` of detection: windows of 7 sizes and 3 shapes, each resized to 32 x 32 pixels; "
          f"one image, one thread; seconds of process time for all logits, median of {rounds}, interleaved\n\n"
          "| image | stride | resized images | windows | one by one, s | one pass, s | factor |\n"
          "|---|---:|---:|---:|---:|---:|---:|")
    for size in sizes:
        for stride in (4, 8): detection_row(size, stride, rounds)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--task', choices=['segmentation', 'detection'], default='segmentation')
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--sizes',  type=int, nargs='+', default=[32, 64, 128], help='heights and widths in pixels')
    args = ap.parse_args()
    torch.set_num_threads(1)
    print(describe(('torch',)), '\n')
    if args.task == 'detection': return detection(args.sizes, args.rounds)
    print(f"`sliding_window(21)`, patch 33, one image, one thread; seconds of process "
          f"time, median of {args.rounds}, interleaved; factor: of the medians (range over the rounds)\n")
    print('| image | stride | windows, s | conv, s | factor | windows, G multiply-adds | conv | factor |\n'
          '|---|---:|---:|---:|---:|---:|---:|---:|')
    for size in args.sizes:
        for stride in (1, 4): row(size, stride, args.rounds)

if __name__ == '__main__': main()
