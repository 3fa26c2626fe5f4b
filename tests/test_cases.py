"Faults that outside use found, each with the right value; what a fix is a sample of is tested beside its source"
import json, random, subprocess, sys, time, tracemalloc
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import aug_transforms, nn, ProgressCallback
from vision_tasks.data.annotation import Annotation, AnnotationError
from vision_tasks.data.blocks import FileImage, PixelBBox
from vision_tasks.data.coco import read_coco
from vision_tasks.data.image import image_size, read_image
from vision_tasks.data.masks import read_masks
from vision_tasks.data.synthetic import draw_figures, draw_shapes, FIGURE_JOINTS
from vision_tasks.data.transforms import JointTransform
from vision_tasks.detection import detection_dls
from vision_tasks.keypoint import keypoint_dls
from vision_tasks.ops.masks import decode_mask
from vision_tasks.segmentation import segmentation_dls, segmentation_learner

class Brightness(nn.Module):
    "Two classes, dark and bright: always right on the files of `test_presizing...`"
    mean = std = None
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
    def forward(self, x):
        b = (x.mean(1, keepdim=True) > .5).float()*20 - 10 + self.w
        return torch.cat([-b, b], 1)

@pytest.mark.parametrize('batch_tfms', [[], aug_transforms(size=48), aug_transforms(size=48, min_scale=.5)],
                         ids=['as_they_are', 'resized', 'cropped'])
def test_presizing_leaves_the_scores_and_masks_of_a_perfect_net_perfect(tmp_path, batch_tfms):
    anns = []
    for i in range(4):
        m = np.zeros((60, 90), np.uint8); m[20:40, 30+i:60+i] = 1
        Image.fromarray(np.repeat((m*230+20)[...,None], 3, 2).astype(np.uint8)).save(tmp_path/f'{i}.png')
        anns.append(Annotation(tmp_path/f'{i}.png', (90, 60), mask=m, split='valid' if i < 2 else 'train'))
    dls = segmentation_dls(anns, ['bg', 'x'], size=64, bs=2, num_workers=0, batch_tfms=batch_tfms)
    learn = segmentation_learner(dls, Brightness()); learn.remove_cb(ProgressCallback)
    assert learn.evaluate()['miou'] > .95
    assert not any((a.mask == 255).any() for a in learn.annotate(anns[:2]))

@pytest.mark.parametrize('seed', range(4))
def test_a_batch_crop_that_boxes_and_points_cannot_follow_is_refused_by_name(tmp_path, seed):
    random.seed(seed)
    tfms = lambda: aug_transforms(size=48, min_scale=.5, pad_mode='zeros', do_flip=False)
    shapes,figures = draw_shapes(tmp_path/'s', 8, size=48),draw_figures(tmp_path/'f', 8, size=48)
    with pytest.raises(ValueError, match='RandomResizedCropGPU'):
        detection_dls(shapes, size=64, bs=4, num_workers=0, batch_tfms=tfms())
    with pytest.raises(ValueError, match='RandomResizedCropGPU'):
        keypoint_dls(figures, list(FIGURE_JOINTS), size=64, bs=4, num_workers=0, batch_tfms=tfms())

# --- image files and mask files

def test_a_turned_tiff_has_the_size_and_the_boxes_of_the_image_as_shown(tmp_path):
    file,json_file = tmp_path/'a.tif',tmp_path/'a.json'
    im,turned = Image.new('RGB', (60, 90), (20, 20, 20)),Image.Exif()
    im.paste((250, 250, 250), (10, 15, 30, 40))
    turned[0x0112] = 6
    im.transpose(Image.Transpose.ROTATE_90).save(file, exif=turned)
    assert image_size(file) == read_image(file).size == FileImage.create(file).size == (60, 90)
    x,b = JointTransform(64)((FileImage.create(file), PixelBBox.create([[10, 15, 30, 40]])), split_idx=1)
    x1,y1,x2,y2 = b[0].round().int().tolist()
    assert x.float()[:, y1+1:y2-1, x1+1:x2-1].min() > 249
    json_file.write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.tif', width=60, height=90)], categories=[dict(id=1, name='x')],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[10, 15, 20, 25])])))
    assert read_coco(json_file, tmp_path)[0].size == (60, 90)

def test_masks_saved_as_jpeg_are_refused_though_their_noise_falls_on_classes(tmp_path):
    images,masks = tmp_path/'im',tmp_path/'m'
    for o in (images, masks): o.mkdir()
    Image.new('RGB', (64, 48)).save(images/'a.png')
    m = np.zeros((48, 64), np.uint8); m[10:30, 10:40] = 15; m[35:] = 9
    Image.fromarray(m).save(masks/'a.jpg', quality=90)
    with pytest.raises(AnnotationError, match="a.jpg is a JPEG, which blurs"):
        read_masks(images, masks, [f'c{i}' for i in range(21)])

def test_run_lengths_whose_sum_overflows_are_refused_and_the_process_lives():
    code = """
from vision_tasks.ops.masks import decode_mask
try: decode_mask(dict(size=[48, 64], counts=[2**63-1, 2**63-1, 2, 48*64]), (64, 48))
except ValueError as e: print('refused:', e)
"""
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode == 0 and 'refused: RLE: expected counts whose sum is h*w = 3072' in res.stdout

def test_wild_polygons_take_little_memory_and_time():
    rng,start = np.random.default_rng(0),time.process_time()
    tracemalloc.start()
    try:
        for n,reach in ((10, 5e5), (100_000, 100)): decode_mask([rng.uniform(-reach, reach, 2*n).tolist()], (64, 48))
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally: tracemalloc.stop()
    assert time.process_time() - start < 5
