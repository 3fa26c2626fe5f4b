"""A training step in channels-last memory format and in torch's default: encoders under a head, segmentation nets by
name; both in turn, on one core, process time; and how far apart their outputs and gradients are"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, copy, statistics, sys, time
from pathlib import Path
import torch
from machine import begin
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.models.encoders import create_encoder
from vision_tasks.models.registry import get_arch, list_archs
from vision_tasks.training.build import EncoderHead, pooled_head
from vision_tasks.training.memory_format import to_channels_last

ENCODERS = ['mobilenet_v2', 'mobilenet_v3_large', 'efficientnet_b0', 'tf_efficientnet_lite0', 'shufflenet_v2_x0_5',
            'resnet18', 'resnet50', 'regnet_y_400mf', 'densenet121', 'vgg11_bn', 'convnext_tiny', 'swin_t']

def build(name, encoder):
    if name in list_archs('segmentation'): return get_arch(name, 'segmentation')(11, encoder=encoder)
    return EncoderHead(create_encoder(name, False, pyramid=False), pooled_head, 20, {})

def step(model, x, opt):
    out = model(x)
    out.square().mean().backward()
    opt.step()
    opt.zero_grad()

def seconds(model, x, opt):
    t = time.process_time()
    step(model, x, opt)
    return time.process_time()-t

def difference(a, b, x):
    "Largest difference of the outputs, and of the gradients, divided by the largest value of each; in evaluation mode"
    outs,grads = [],[]
    for m in (a, b):
        m.eval().zero_grad()
        outs.append(m(x))
        outs[-1].square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
        m.zero_grad()
        m.train()
    return [((p-q).abs().max()/p.abs().max()).item() for p,q in (outs, grads)]

def row(name, args):
    torch.manual_seed(0)
    usual = build(name, args.encoder)
    last  = to_channels_last(copy.deepcopy(usual))
    x = torch.randn(args.bs, 3, args.size, args.size)
    diffs = difference(usual, last, x[:2])
    runs = {m: torch.optim.SGD(m.parameters(), lr=1e-4) for m in (usual, last)}
    for m,opt in runs.items(): step(m, x, opt)
    times = {m: [] for m in runs}
    for i in range(args.rounds):
        for m in (usual, last)[::1 if i%2 else -1]: times[m].append(seconds(m, x, runs[m]))
    a,b = (statistics.median(times[m]) for m in (usual, last))
    gains = sorted(1 - q/p for p,q in zip(times[usual], times[last]))
    print(f'| `{name}` | {a*1e3:.0f} | {b*1e3:.0f} | {1-b/a:+.1%} ({gains[0]:+.0%}..{gains[-1]:+.0%}) |',
          f'{diffs[0]:.0e} | {diffs[1]:.0e} |', flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--nets', nargs='+', default=[*ENCODERS, 'lraspp', 'light_unet'])
    ap.add_argument('--encoder', default='mobilenet_v2', help='of the segmentation nets')
    ap.add_argument('--size', type=int, default=128)
    ap.add_argument('--bs', type=int, default=8)
    ap.add_argument('--rounds', type=int, default=5)
    args = begin(ap)
    print(f'\nbs {args.bs}, {args.size} px, {args.rounds} rounds\n')
    print('| net | ms per step | channels last | saved (rounds) | outputs apart | gradients apart |')
    print('|---|---:|---:|---:|---:|---:|')
    for name in args.nets: row(name, args)

if __name__ == '__main__': main()
