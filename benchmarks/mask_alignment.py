"""Upper bound of Mask R-CNN: ground truth masks become the 28x28 targets of the mask head, and the targets are pasted
as if the head had predicted them. Ours (`mask_targets`, `paste_rle`) beside torchvision's
(`project_masks_on_boxes`, `paste_masks_in_image`): `python mask_alignment.py [objects]`"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import sys
from pathlib import Path
import numpy as np, torch
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from machine import describe
sys.path.insert(0, str(Path(__file__).parents[1]))
from vision_tasks.models.detection.torchvision_parts import mask_targets
from vision_tasks.ops.masks import decode_mask, mask_bbox, paste_rle

SIDE = 160

def objects(n, size, rng):
    "`n` masks of smooth blobs about `size` pixels wide, (n, SIDE, SIDE) bool, anywhere between the pixels"
    y,x = np.mgrid[:SIDE, :SIDE] + .5
    out = []
    for _ in range(n):
        (cx,cy),a = SIDE/2 + rng.uniform(-.5, .5, 2),rng.normal(0, .12, 4)
        t = np.arctan2(y-cy, x-cx)
        r = size/2*(1 + a[0]*np.cos(2*t) + a[1]*np.sin(2*t) + a[2]*np.cos(3*t) + a[3]*np.sin(3*t))
        out.append(np.hypot(x-cx, y-cy) < r)
    return np.stack(out)

def theirs(probs, boxes):
    return (paste_masks_in_image(probs[:,None], boxes, (SIDE, SIDE))[:,0] > .5).numpy()

def ours(probs, boxes):
    return np.stack([decode_mask(o, (SIDE, SIDE)) for o in paste_rle(probs.numpy(), boxes.numpy(), (SIDE, SIDE))])

def shifted(probs, boxes): return ours(probs, boxes + .5)

def ious(a, b): return (a & b).sum((1, 2))/(a | b).sum((1, 2))

def main(n=300):
    torch.set_num_threads(1)
    print(describe(['numpy', 'torch', 'torchvision']), f"\n\n{n} blobs of each width; boxes are tight, or "
          "off by a normal error of 4 % of their sides, as predicted ones are\n")
    targets = {'torchvision': lambda m, b: project_masks_on_boxes(m, b, torch.arange(len(m)), 28),
               'ours': lambda m, b: mask_targets(m, b, torch.arange(len(m)), 28)}
    pastes = {'torchvision': theirs, 'ours': ours, 'ours, half a pixel right and down': shifted}
    print('| targets | paste | boxes |' + ''.join(f' mean IoU at {s} px | >= 0.95 |' for s in (21, 41, 81)))
    print('|---|---|---|' + '---:|---:|'*3)
    for jitter in (0., .04):
        for tname,target in targets.items():
            for pname,paste in pastes.items():
                if tname == 'ours' and paste is shifted: continue
                row,rng = [],np.random.default_rng(0)
                for size in (21, 41, 81):
                    true = objects(n, size, rng)
                    boxes = torch.from_numpy(np.stack([mask_bbox(o) for o in true]))
                    wh = (boxes[:,2:] - boxes[:,:2]).repeat(1, 2)
                    boxes = boxes + torch.from_numpy(rng.normal(0, 1, (n, 4)).astype(np.float32))*jitter*wh
                    probs = target(torch.from_numpy(true).to(torch.uint8), boxes)
                    # what lies outside of the box cannot be predicted
                    y,x = np.mgrid[:SIDE, :SIDE] + .5
                    inside = np.stack([(x > x1) & (x < x2) & (y > y1) & (y < y2) for x1,y1,x2,y2 in boxes.tolist()])
                    iou = ious(paste(probs, boxes), true & inside)
                    row.append(f' {iou.mean():.3f} | {(iou >= .95).mean():.0%} |')
                print(f'| {tname} | {pname} | {"tight" if not jitter else "as predicted"} |' + ''.join(row))

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
