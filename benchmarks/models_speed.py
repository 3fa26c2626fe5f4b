"""Parameters of the models, and images per second on one core: `python benchmarks/models_speed.py > table.md`

The network alone, in evaluation mode, on random images in batches of one: no loading, no training. For detectors this
includes NMS. Random weights: a detector then predicts fewer objects than a trained one, and NMS costs less"""
import argparse, statistics, time, warnings
import torch, torchvision
from machine import describe
from vision_tasks.all import create_encoder, get_arch

# recommended size of the input: that of the published figure, or the usual one
BACKBONES = {'mobilenet_v2': 224, 'mobilenet_v3_large': 224, 'resnet18': 224, 'resnet34': 224, 'resnet50': 224,
             'efficientnet_b0': 224, 'convnext_tiny': 224, 'swin_t': 224}
MODELS = {
    'segmentation': {'lraspp_mobilenet_v3_large': 520, 'deeplabv3_mobilenet_v3_large': 520, 'fcn_resnet50': 520,
                     'deeplabv3_resnet50': 520, 'deeplabv3_resnet101': 520},
    'detection': {'ssdlite320_mobilenet_v3_large': 320, 'ssd300_vgg16': 300,
                  'fasterrcnn_mobilenet_v3_large_320_fpn': 320, 'fasterrcnn_mobilenet_v3_large_fpn': 800,
                  'fasterrcnn_resnet50_fpn': 800,
                  'fasterrcnn_resnet50_fpn_v2': 800, 'retinanet_resnet50_fpn': 800, 'retinanet_resnet50_fpn_v2': 800,
                  'fcos_resnet50_fpn': 800},
    'instance': {'maskrcnn_resnet50_fpn': 800, 'maskrcnn_resnet50_fpn_v2': 800}}
CLASSES = dict(segmentation=21, detection=90, instance=90)
PUBLISHED = dict(backbone='top-1 accuracy, %', segmentation='mean IoU, %', detection='box AP', instance='box / mask AP')

def head(task):
    print(f'\n**{task}**\n\n| model | million parameters | {PUBLISHED[task]} | size | images/s |')
    print('|---|---:|---:|---:|---:|', flush=True)

def seconds(model, size, rounds, budget):
    "Seconds an image of each round, after one that is not counted; fewer rounds where these take longer than `budget`"
    x,res = torch.randn(1, 3, size, size),[]
    with torch.inference_mode():
        model(x)
        while len(res) < 3 or len(res) < rounds and sum(res) < budget:
            t = time.process_time()
            model(x)
            res.append(time.process_time()-t)
    return res

def published(name) -> str:
    "What torchvision states of its best weights: top-1 accuracy on ImageNet, mean IoU, box AP and mask AP on COCO"
    metrics = torchvision.models.get_model_weights(name).DEFAULT.meta['_metrics']
    res = {k: v for o in metrics.values() for k,v in o.items()}
    return ' / '.join(f'{res[k]:.1f}' for k in ('acc@1', 'miou', 'box_map', 'mask_map') if k in res)

def row(name, model, size, args):
    s = seconds(model.eval(), size, args.rounds, args.budget)
    n = sum(p.numel() for p in model.parameters())/1e6
    fps = sorted(1/o for o in s)
    speed = f'{statistics.median(fps):.3g} ({fps[0]:.3g}..{fps[-1]:.3g})'
    print(f'| `{name}` | {n:.1f} | {published(name)} | {size} | {speed} |', flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--rounds', type=int, default=15)
    ap.add_argument('--budget', type=float, default=12., help='seconds for a model, at three rounds or more')
    ap.add_argument('--tasks', nargs='+', default=['backbone', *MODELS])
    args = ap.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    print(describe(('torch', 'torchvision')))
    print(f'one image at a time; median (slowest..fastest) of 3 to {args.rounds}, process time\n')
    if 'backbone' in args.tasks:
        head('backbone')
        for name,size in BACKBONES.items(): row(name, create_encoder(name, pretrained=False), size, args)
    for task in args.tasks:
        if task in MODELS: head(task)
        for name,size in MODELS.get(task, {}).items():
            row(name, get_arch(name, task)(CLASSES[task], pretrained=False), size, args)

if __name__ == '__main__': main()
