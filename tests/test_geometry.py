"""Image, boxes, points and masks agree to 0.05 pixels of the network's input, and come back to the image as exactly:
the centroid of a Gaussian spot that was painted into a file is the oracle"""
import random
import numpy as np, pytest, torch
from fastai.vision.all import (AffineCoordTfm, DisplayedTransform, RandomResizedCrop, Resize, TensorImage, TensorPoint,
                               aug_transforms, nn)
from PIL import Image
from torch import Tensor
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.items import FileImage, PixelBBox
from vision_tasks.data.laying import _reduction
from vision_tasks.data.transforms import JointTransform
from vision_tasks.data.views import CropView, FitView, JitterView
from vision_tasks.detection import detection_dls, detection_learner
from vision_tasks.instance import instance_dls
from vision_tasks.keypoint import keypoint_dls, keypoint_learner
from vision_tasks.localization import localization_dls
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

TOL = .05    # pixels of the network's input

def spot(size, at, sigma):
    "(h, w, 3) uint8: a white Gaussian at the point `at`, x y in pixels from the corner of the first one"
    x,y = np.arange(size[0]) + .5,np.arange(size[1])[:,None] + .5
    g = np.exp(-((x-at[0])**2 + (y-at[1])**2)/2/sigma**2)
    return np.repeat((g*250).round().astype(np.uint8)[...,None], 3, 2)

def centroid(t):   # (c, h, w) -> x, y
    "Center of mass of the spot: of what is brighter than JPEG's noise, around the brightest pixel"
    t = t.as_subclass(Tensor).double().mean(0)
    t = torch.where(t > 8, t, 0.)
    h,w = t.shape
    x,y = torch.arange(w) + .5,torch.arange(h) + .5
    return torch.stack([(t.sum(0)*x).sum(), (t.sum(1)*y).sum()])/t.sum()

# how an upright image is stored, by EXIF orientation
STORED = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90', 7: 'TRANSVERSE',
          8: 'ROTATE_270'}

@pytest.fixture(params=['png', 6])
def write(request, tmp_path):
    "Writes an image with a spot as PNG, or as JPEG of one of the EXIF orientations"
    def f(size, at, sigma):
        im = Image.fromarray(spot(size, at, sigma))
        if request.param == 'png': im.save(tmp_path/'a.png'); return tmp_path/'a.png'
        if request.param in STORED: im = im.transpose(Image.Transpose[STORED[request.param]])
        meta = Image.Exif(); meta[0x0112] = request.param
        im.save(tmp_path/'a.jpg', quality=97, exif=meta)
        return tmp_path/'a.jpg'
    return f

def follow(tfm, file, at, r, split_idx):
    "What `tfm` makes of the image, a point, and a box of `2*r` pixels around it"
    p,b = TensorPoint(torch.tensor([at])),PixelBBox.create([[at[0]-r, at[1]-r, at[0]+r, at[1]+r]])
    im,p,b = tfm((FileImage.create(file), p, b), split_idx=split_idx)
    return im,p.as_subclass(Tensor)[0].double(),b.as_subclass(Tensor)[0].double()

# with a canvas of 64x48 they are reduced 8, 8, 4, 2 and 1 times; no side but one is a multiple of that
SIZES = [(1025, 771), (770, 1027), (397, 300), (163, 151), (101, 67)]

def files_and(hows, one):
    "(write, size, how): all `hows` at all sizes of a turned JPEG, at two of a PNG, and all orientations in one of them"
    return [*((6, s, h) for s in SIZES for h in hows), *(('png', s, h) for s in SIZES[1:4:2] for h in hows),
            *((o, s, one) for s in SIZES[::3] for o in range(1, 9) if o != 6)]

@pytest.mark.parametrize('write,size,method', files_and(['squish', 'pad', 'crop'], 'crop'), indirect=['write'])
def test_a_spot_of_the_valid_set_lies_where_its_point_and_box_do_and_comes_back(write, size, method):
    tfm = JointTransform((64,48), valid=method, fill=(0, 0, 0))
    for fx,fy in ((.5, .5), (.31, .37), (.68, .61)):
        at,k = (size[0]*fx, size[1]*fy),max(size[0]/64, size[1]/48)
        im,p,b = follow(tfm, write(size, at, 3*k), at, 4*k, 1)
        c = centroid(im)
        assert (c - p).abs().max() < TOL
        assert (c - (b[:2] + b[2:])/2).abs().max() < TOL
        back = tfm.view(size).undo_points(c[None])[0] - torch.tensor(at, dtype=torch.float64)
        assert (back*torch.tensor(tfm.view(size).matrix).diagonal()).abs().max() < TOL

TRAIN = {'flips': dict(train=FitView(), vflip=1., flip=1.), 'pad and flip': dict(train=FitView('pad'), flip=1.),
         'crop': dict(train=CropView((.6, 1.)), flip=0.), 'jitter': dict(train=JitterView((.7, 1.4), 'pad')),
         'turn': dict(train=FitView('pad'), rotate=30., p_rotate=1.),
         'squish and turn': dict(train=FitView(), rotate=30., p_rotate=1.)}

@pytest.mark.parametrize('write,size,how', files_and(TRAIN, 'turn'), indirect=['write'])
def test_a_spot_in_training_lies_where_its_point_does(write, size, how):
    tfm = JointTransform((64,48), fill=(0, 0, 0), keep=True, **TRAIN[how])
    at,k = (size[0]*.46, size[1]*.53),max(size[0]/64, size[1]/48)
    file = write(size, at, 2*k)
    for seed in range(6):
        random.seed(seed)
        # the box of twelve sigma stays on the canvas (`keep`), so that the spot is whole
        im,p,b = follow(tfm, file, at, 6*k, 0)
        assert (centroid(im) - p).abs().max() < TOL
        assert ((b[:2] + b[2:])/2 - p).abs().max() < TOL

def test_the_reduction_of_a_jpeg_is_what_libjpeg_took(tmp_path):
    for size in ((1025, 771), (9, 9), (17, 16), (8, 1000), (31, 33)):
        Image.new('RGB', size).save(tmp_path/'a.jpg')
        for k in (1, 2, 4, 8):
            with Image.open(tmp_path/'a.jpg') as im:
                drafted = im.draft('RGB', [-(-n//k) for n in size])
                took = 1 if drafted is None else round(size[0]/drafted[1][2])
                assert _reduction(size, im.size) == took

def test_a_view_between_pixels_is_taken_at_whole_ones_for_pixels_and_points_alike(write):
    at = 40.3,30.7
    class Between(FitView):
        def __call__(self, w, h, out, bboxes=None): return (3.4, 2.6, 90.5, 61.2),(.4, .3, 63.7, 47.6)
    tfm = JointTransform((64,48), train=Between(), flip=0., fill=(0, 0, 0))
    im,p,b = follow(tfm, write((101, 67), at, 4.), at, 8, 0)
    assert (centroid(im) - p).abs().max() < TOL

@pytest.mark.parametrize('rects', [((-1, 0, 50, 50), (0, 0, 64, 48)), ((0, 0, 102, 50), (0, 0, 64, 48)),
                                   ((5, 5, 5, 50), (0, 0, 64, 48)), ((0, 0, 50, 50), (0, 0, 65, 48))])
def test_a_view_that_leaves_the_image_or_the_canvas_is_refused(write, rects):
    class Out(FitView):
        def __call__(self, w, h, out, bboxes=None): return rects
    with pytest.raises(ValueError, match='as the rectangle of the (image|canvas), which is .*; expected'):
        follow(JointTransform((64,48), valid=Out()), write((101, 67), (50, 30), 4.), (50, 30), 5, 1)

# --- through DataLoaders: fastai's transforms of items and batches

W,H = 101,67
AT  = 47.3,35.2
TURN = dict(max_rotate=8, max_zoom=1.2, max_warp=0, max_lighting=0, pad_mode='zeros', p_affine=1.)
AUGS = dict(none=[], resize=[AffineCoordTfm(size=(36,48), pad_mode='zeros', align_corners=True)],
            all=aug_transforms(size=(36,48), **TURN), same_size=aug_transforms(**TURN),
            warp=aug_transforms(**{**TURN, 'max_rotate': 0, 'max_zoom': 1., 'max_warp': .1}))

@pytest.fixture
def anns(tmp_path):
    "Four files of one spot, with a point, a box and a disc around it, half of them for validation"
    Image.fromarray(spot((W, H), AT, 3.5)).save(tmp_path/'a.png')
    x,y = np.arange(W) + .5,np.arange(H)[:,None] + .5
    disc = (x-AT[0])**2 + (y-AT[1])**2 < 14**2
    box = [[AT[0]-14, AT[1]-14, AT[0]+14, AT[1]+14]]
    res = []
    for i in range(4):
        f = tmp_path/f'{i}.png'
        f.write_bytes((tmp_path/'a.png').read_bytes())
        res.append(Annotation(f, (W, H), ['x'], box, points=np.array([[AT]]), masks=[disc], mask=disc.astype(np.uint8),
                              split='valid' if i < 2 else 'train'))
    return res

def make(task, anns, **kw):
    kw = dict(size=(64,48), bs=2, num_workers=0, **kw)
    kw.setdefault('item_tfms', JointTransform((64,48), train=FitView('pad'), valid='pad', fill=(0, 0, 0), flip=0.))
    return dict(keypoint=lambda: keypoint_dls(anns, **kw), localization=lambda: localization_dls(anns, **kw),
                detection=lambda: detection_dls(anns, **kw), instance=lambda: instance_dls(anns, **kw),
                segmentation=lambda: segmentation_dls(anns, ['bg', 'x'], **kw))[task]()

def target_center(task, y, i, size):
    "Where the target of image `i` of a batch says that the spot is, in pixels of the network's input"
    y = [o.as_subclass(Tensor) for o in y]
    if task == 'keypoint': return (y[0][i,0].double() + 1)/2*torch.tensor(size)
    if task == 'localization': return (y[1][i,0].double().view(2, 2).mean(0) + 1)/2*torch.tensor(size)
    if task == 'detection': return y[0][i,0].double().view(2, 2).mean(0)
    return centroid(255.*(y[0][i][None] == 1 if task == 'segmentation' else y[2][i,:1]))

TASKS = 'keypoint','localization','detection','instance','segmentation'

@pytest.mark.parametrize('aug', AUGS)
@pytest.mark.parametrize('task', TASKS)
def test_targets_follow_the_spot_through_fastais_batch_transforms(anns, task, aug):
    torch.manual_seed(0); random.seed(0)
    dls = make(task, anns, batch_tfms=AUGS[aug], **(dict(flip_pairs=[]) if task == 'keypoint' else {}))
    assert dls.one_batch()[0].shape[-2:] == ((36,48) if aug in ('all', 'resize') else (48,64))
    # a mask has whole pixels; a perspective moves the centroid of a spot, and the center of a box, away from its point
    tol = .3 if aug == 'warp' or task in ('instance', 'segmentation') else TOL
    if aug == 'warp' and task in ('instance', 'segmentation'): tol = .5
    for dl in (dls.valid, dls.train, dls.train):
        x,*y = dl.one_batch()
        mean,std = 0,1
        for o in dl.after_batch.fs:
            if hasattr(o, 'std'): mean,std = o.mean,o.std
        x = (x.as_subclass(Tensor)*std + mean)*255
        for i in range(len(x)):
            assert (centroid(x[i]) - target_center(task, y, i, x.shape[:-3:-1])).abs().max() < tol

VALID = dict(joint=dict(), resize_pad=dict(item_tfms=Resize((48,64), method='pad', pad_mode='zeros')),
             resize_crop=dict(item_tfms=Resize((48,64), method='crop')),
             resize_squish=dict(item_tfms=Resize((48,64), method='squish')),
             presized=dict(batch_tfms=AUGS['resize']), presized_all=dict(batch_tfms=AUGS['all']),
             presized_min_scale=dict(batch_tfms=aug_transforms(size=(36,48), min_scale=.5)),
             twice=dict(item_tfms=[JointTransform((80,60), valid='crop'),
                                   JointTransform((64,48), valid='pad', fill=(0, 0, 0))]))

class Spot(nn.Module):
    "Predicts class 1 where the normalized image is bright"
    def __init__(self, cut=0): super().__init__(); self.w,self.cut = nn.Parameter(torch.zeros(1)),cut
    def forward(self, x):
        x = (x.as_subclass(Tensor).mean(1, keepdim=True) + 2)*2 + self.w
        if self.cut: x = x[...,self.cut:-self.cut,self.cut:-self.cut]
        return torch.cat([torch.zeros_like(x), x], 1)

@pytest.mark.parametrize('how', VALID)
def test_what_the_network_sees_comes_back_to_the_image(anns, how):
    learn = segmentation_learner(make('segmentation', anns, **VALID[how]), Spot())
    learn.dls.train.one_batch()     # transforms of batches keep state
    x = learn.dls.valid.one_batch()[0].as_subclass(Tensor)
    x = x - x.amin((2, 3), keepdim=True)
    x = x/x.amax()*255
    view = learn.valid_view((W, H))
    assert view.out == (x.shape[-1], x.shape[-2])
    back = view.undo_points(centroid(x[0])[None])[0]
    assert (back - torch.tensor(AT)).abs().max() < TOL*max(W/48, H/36)

@pytest.mark.parametrize('cut', [0, 4])
@pytest.mark.parametrize('how', VALID)
def test_maps_of_probabilities_lie_on_the_image_where_they_belong(anns, how, cut):
    learn = segmentation_learner(make('segmentation', anns, **VALID[how]), Spot(cut))
    (w,h),view = learn.valid_view((W, H)).out,learn.valid_view((W, H))
    at = view.points(torch.tensor([AT], dtype=torch.float64))[0]
    net = torch.from_numpy(spot((w, h), at.tolist(), 3.)).float()[...,0][cut:h-cut, cut:w-cut]
    probs = learn.probs_in_file(net[None], (W, H))
    assert (centroid(probs) - torch.tensor(AT)).abs().max() < TOL*max(W/48, H/36)
    labels = learn.labels_in_file(torch.stack([128-net, net-128]), (W, H))
    assert (centroid((labels == 1)[None]*255.) - torch.tensor(AT)).abs().max() < .2*max(W/48, H/36)   # whole pixels

def test_what_cannot_be_undone_is_refused_when_the_learner_is_made(anns):
    class Shrink(DisplayedTransform):
        order = 35
        def encodes(self, x:TensorImage): return x[...,::2,::2]
    for kw,message in ((dict(item_tfms=RandomResizedCrop(48)), 'RandomResizedCrop cannot be undone'),
                       (dict(batch_tfms=[Shrink()]), 'bring the image to 32x24, where .* make it 64x48')):
        with pytest.raises(ValueError, match=message):
            keypoint_learner(make('keypoint', anns, **kw), 'test_resnet', pretrained=False)
    dls = make('detection', anns, item_tfms=[], batch_tfms=AUGS['resize'])
    with pytest.raises(ValueError, match='resizes batches whose images were padded'):
        detection_learner(dls, 'faster_rcnn', encoder='test_resnet', pretrained=False, arch_kwargs=dict(width=.25))

@pytest.mark.parametrize('task', TASKS)
def test_a_size_that_is_not_the_images_is_an_error_where_the_image_is_opened(anns, task):
    bad = [a if i != 2 else Annotation(a.path, (H, W), ['x'], [[20, 20, 40, 40]], points=np.array([[[30., 30]]]),
                                       masks=[np.ones((W, H), bool)], mask=np.ones((W, H), np.uint8), split='train')
           for i,a in enumerate(anns)]
    message = rf'2.png, size: expected that of the image, {W}x{H}, got {H}x{W}; boxes, points and masks would be'
    with pytest.raises(AnnotationError, match=message):
        for _ in make(task, bad).train: pass

@pytest.mark.parametrize('task', ['keypoint', 'localization', 'detection', 'instance'])
def test_crops_of_batches_that_coordinates_cannot_follow_are_refused(anns, task):
    with pytest.raises(ValueError, match=r'RandomResizedCropGPU.*crops images but no .*CropView'):
        make(task, anns, batch_tfms=aug_transforms(size=48, min_scale=.5, pad_mode='zeros'))
