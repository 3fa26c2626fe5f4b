"""torchvision's segmentation nets by name: FCN (Long et al., 2015, arXiv:1411.4038) on a dilated ResNet, DeepLab v3
(Chen et al., 2017, arXiv:1706.05587), Lite R-ASPP (Howard et al., 2019, arXiv:1905.02244)"""
from __future__ import annotations
from functools import partial
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
from ...arguments import choice, instance
from ..encoders import create_encoder, set_n_in
from ..kinds import STATS, WITH_ENCODER, checked_net
from ..registry import register

__all__ = ['TorchvisionSegmenter', 'torchvision_segmenter']

_NETS = list_models(module=torchvision.models.segmentation)

class TorchvisionSegmenter(nn.Module):
    """(b, n_in, h, w) -> (b, n_out, h, w) logits; any height and width. In training mode, if `net` has an auxiliary
    head, a tuple of these and the auxiliary logits of the same shape, for the loss"""
    @checked_net(net=instance(FCN, DeepLabV3, LRASPP, what="a segmentation net of torchvision"), mean=STATS,
                 std=STATS)
    def __init__(self,
        net,    # FCN, DeepLabV3 or LRASPP of torchvision
        mean,   # of the channels, with which images are normalized
        std,    # of the channels
    ):
        super().__init__()
        self.net = net                                    # torchvision's names, for its files
        self.encoder.mean,self.encoder.std = tuple(mean),tuple(std)

    @property
    def encoder(self): return self.net.backbone

    def forward(self, x:Tensor) -> Tensor|tuple[Tensor,Tensor]:
        if self.training and len(x) == 1 and isinstance(self.net, DeepLabV3):
            raise ValueError("DeepLab v3 normalizes a pooled map of 1 x 1 over the batch, so it trains on batches of 2 "
                             "images or more, got 1; raise bs, or drop the last batch")
        maps,aux = self.net.backbone(x),getattr(self.net, 'aux_classifier', None)
        full = partial(F.interpolate, size=x.shape[-2:], mode='bilinear')
        out  = full(self.net.classifier(maps['out'] if 'out' in maps else maps))
        return (out, full(aux(maps['aux']))) if self.training and aux is not None else out

@checked_net(name=choice(*_NETS), pretrained=WITH_ENCODER)
def torchvision_segmenter(
    name:str,              # of a builder in `torchvision.models.segmentation`
    n_out:int,             # classes, background included
    n_in:int=3,            # channels of the images
    pretrained=False,      # True: torchvision's weights (COCO with VOC's labels), except for the last layers;
                           # 'encoder': ImageNet weights of the encoder; or the path of a state dict of the encoder
    aux_loss:bool=True,    # True: an auxiliary head for training, if torchvision's net has one
) -> TorchvisionSegmenter:
    "torchvision's net `name` for `n_out` classes. Raises `OSError` where weights cannot be downloaded"
    own,has_aux = pretrained is True,not name.startswith('lraspp')
    try: net = get_model(name, weights='DEFAULT' if own else None, weights_backbone=None,
                         num_classes=None if own else n_out, **(dict(aux_loss=True) if has_aux else {}))
    except OSError as e:
        raise OSError(f"the weights of {name} could not be downloaded ({e}); without a network, set `pretrained` to "
                      f"the path of a local state dict of {_body(name)}") from e
    if has_aux and not aux_loss: net.aux_classifier = None
    new = _new_last_layers(net, n_out) if own else None
    if n_in != 3: set_n_in(net.backbone, n_in, own)
    if pretrained and not own:
        sd = create_encoder(_body(name), pretrained == 'encoder' or pretrained, n_in).body.state_dict()
        net.backbone.load_state_dict({k.removeprefix('features.'): v for k,v in sd.items()})
    t = get_model_weights(name).DEFAULT.transforms()
    res = TorchvisionSegmenter(net, t.mean, t.std)
    if new is not None: res.new_layers = frozenset(f'net.{k}' for k in new)
    return res

def _body(name) -> str:
    "Name of the encoder of `name`: 'resnet50' for 'fcn_resnet50'"
    return name.partition('_')[2]

def _new_last_layers(net, n_out):
    "Replace the last convolutions of each head of `net`, for `n_out` classes; return the names of their parameters"
    new = []
    for name in ('classifier', 'aux_classifier'):
        head = getattr(net, name, None)
        if head is None: continue
        for k in ([str(len(head)-1)] if isinstance(head, nn.Sequential) else ['low_classifier', 'high_classifier']):
            setattr(head, k, nn.Conv2d(getattr(head, k).in_channels, n_out, 1))
            new += [f'{name}.{k}.weight', f'{name}.{k}.bias']
    return new

for _name,_facts in dict(
    fcn_resnet50                 = dict(n_params=35_322_218), # these are the `num_params` of torchvision's weights
    fcn_resnet101                = dict(n_params=54_314_346, like='fcn_resnet50'),
    deeplabv3_resnet50           = dict(n_params=42_004_074, min_bs=2, like='deeplabv3_mobilenet_v3_large'),
    deeplabv3_resnet101          = dict(n_params=60_996_202, min_bs=2, like='deeplabv3_mobilenet_v3_large'),
    deeplabv3_mobilenet_v3_large = dict(n_params=11_029_328, min_bs=2),
    lraspp_mobilenet_v3_large    = dict(n_params=3_221_538)).items():
    register('segmentation', _name, weights='all', **_facts)(partial(torchvision_segmenter, _name))
