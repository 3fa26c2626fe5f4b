"The cost of a validation loss in a detector: detections alone, with losses from the same pass, with a second pass"
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, sys
from pathlib import Path
import torch
from machine import describe, interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.models.detection.torchvision import torchvision_detector

# name -> allowed time with losses, as a multiple of inference: a two-stage net classifies other regions for its loss
NETS = dict(fasterrcnn_resnet50_fpn=1.6, retinanet_resnet50_fpn=1.2, fcos_resnet50_fpn=1.2,
            ssdlite320_mobilenet_v3_large=1.2)

def contestants(net, x, bboxes, labels):
    def plain(): return net.eval()(x)
    def one_pass(): return net.eval()(x, bboxes, labels)
    def second_pass():   # the usual way; BatchNorm and dropout are kept from training here, which it often forgets
        dets = net.eval()(x)
        for m in net.train().modules():
            if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.Dropout)): m.eval()
        return net(x, bboxes, labels),dets
    return dict(plain=plain, one_pass=one_pass, second_pass=second_pass)

def main(args):
    torch.set_num_threads(1)
    print(describe(('torch', 'torchvision')))
    print(f"{args.bs} images of {args.size} pixels, both ways, random weights, median of {args.n} interleaved rounds\n")
    print("| net | inference, ms | with losses, one pass | losses by a second pass | allowed |\n|---|---|---|---|---|")
    g = torch.Generator().manual_seed(0)
    for name,allowed in NETS.items():
        torch.manual_seed(0)
        net = torchvision_detector(name, 20)
        x   = torch.rand(args.bs, 3, args.size, args.size, generator=g)
        tl  = torch.rand(args.bs, 6, 2, generator=g)*args.size*.6
        bboxes = torch.cat([tl, tl + args.size*(.1 + .3*torch.rand(args.bs, 6, 2, generator=g))], -1)
        labels = torch.randint(1, 21, (args.bs, 6), generator=g)
        fns = contestants(net, x, bboxes, labels)
        with torch.no_grad():
            for f in fns.values(): f()
            t = interleaved(fns, args.n)
        a,b = (t[k]/t['plain'] for k in ('one_pass', 'second_pass'))
        missed = '' if a <= allowed else ', missed'
        print(f"| {name} | {t['plain']*1000:.0f} | {a:.2f}x | {b:.2f}x | {allowed}x{missed} |", flush=True)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--bs', type=int, default=2)
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('-n', type=int, default=5)
    main(parser.parse_args())
