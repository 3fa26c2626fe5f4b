"Drawn shapes and stick figures: exact labels, boxes, masks and points, for tests and demos without a download"
from __future__ import annotations
from colorsys import hsv_to_rgb
from itertools import cycle
from operator import index
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw
from ..arguments import COUNT, checked
from .annotation import Annotation
from .writing import writing_set
from ..ops.masks import decode_mask, mask_bbox

__all__ = ['draw_shapes', 'SHAPES', 'SHAPE_CODES', 'SHAPE_POINTS', 'SHAPE_FLIP_PAIRS',
           'draw_figures', 'FIGURE_JOINTS', 'FIGURE_FLIP_PAIRS', 'FIGURE_SKELETON']

SHAPES = ('circle', 'square', 'star', 'triangle')
SHAPE_CODES = ('background', *SHAPES)   # class names of the class masks, in the order of their indices
SHAPE_POINTS = ('centre', 'left', 'right', 'top', 'bottom')
SHAPE_FLIP_PAIRS = ((1, 2),)            # indices of the points to swap in a mirrored image

@checked(n=COUNT, size=None, most=COUNT)
def draw_shapes(
    path,                         # folder, created if missing; files of the same name are replaced
    n:int=32,                     # images, 1 or more
    size:int|tuple[int,int]=64,   # pixels of a square image, or (w, h); 16 or more
    seed:int=0,                   # 0 or more; the same arguments give the same pixels
    most:int=4,                   # objects in an image, 1 or more
) -> list[Annotation]:            # label, box, polygon, `SHAPE_POINTS` of each object; `mask`: a file of `SHAPE_CODES`
    """Draw `n` images into `path`/images and their class masks into `path`/masks, with exact annotations.

    An image has one to `most` objects that do not touch each other or the border, fewer if there is no room; one image
    in eight has none, and at least one of four or more images. Few images are enough to show all shapes. All files are
    replaced together, or none is. Raises `ValueError` for a size below 16"""
    w,h = _wh(size)
    path,rng = Path(path),np.random.default_rng(seed)
    empty = _some(rng, n, 1/8)
    kinds = cycle(rng.permuted(np.tile(SHAPES, (n, 1)), axis=1).ravel().tolist())
    counts = [0 if i in empty else rng.integers(1, most+1) for i in range(n)]
    with writing_set([path/'images', path/'masks']) as writing:
        return [_draw(path, f'{i:04d}.png', _arrange(rng, w, h, k, kinds), rng, w, h, writing)
                for i,k in enumerate(counts)]

def _wh(size, least=16):
    try: w,h = map(index, (size, size) if np.ndim(size) == 0 else size)
    except (TypeError, ValueError): w = h = 0
    if least <= min(w, h) and max(w, h) < 2**31: return w,h
    raise ValueError(f"size: expected a whole number of pixels or two (w, h), each {least} or more, got {size!r}")

def _some(rng, n, share):   # -> set of indices below n
    "A random share of `n` images, at least one of four or more"
    return set(rng.permutation(n)[:max(round(n*share), int(n >= 4))].tolist())

# --- geometry: each shape upright around (0, 0), with a width of about 1, y downwards

def _polar(degrees, r):   # clockwise from the top -> (m, 2)
    a = np.deg2rad(degrees)
    return np.stack([np.sin(a), -np.cos(a)], -1)*np.reshape(r, (-1, 1))

def _outlines():          # -> {shape: ((m, 2) outline, (5, 2) points)}
    tip,notch = .58,.27
    star = np.arange(0, 360, 36)
    # outline, then direction and distance of left, right, top and bottom
    return {k: (o, np.concatenate([np.zeros((1, 2)), _polar(d, r)])) for k,o,d,r in (
        ('circle',   _polar(np.arange(0, 360, 9), .5),                    (-90, 90, 0, 180),   [.5]*4),
        ('square',   _polar((-45, 45, 135, 225), .6),                     (-90, 90, 0, 180),   [.6*.5**.5]*4),
        ('star',     _polar(star, np.where(star%72 == 0, tip, notch)),     (-72, 72, 0, 180),   [tip, tip, tip, notch]),
        ('triangle', _polar((0, 120, 240), .6),                           (-120, 120, 0, 180), [.6, .6, .6, .3]))}

_OUTLINES = _outlines()
_RADIUS = {k: np.hypot(*o.T).max() for k,(o,_) in _OUTLINES.items()}   # of the surrounding circle

def _arrange(rng, w, h, n, kinds):   # -> [(label, (m, 2) outline, (5, 2) points)] in pixels
    "Up to `n` objects whose surrounding circles are 2 pixels apart and 1 from the border; there is room for one"
    objects,circles = [],np.empty((0, 3))
    for _ in range(n):
        kind,side = next(kinds),max(rng.uniform(.2, .45)*min(w, h), 6)
        r = side*_RADIUS[kind]
        at = rng.uniform(r + 1, [w - r - 1, h - r - 1], (50, 2))
        gaps = np.hypot(*(at[:,None] - circles[:,:2]).transpose(2, 0, 1)) - circles[:,2] - r
        free = np.flatnonzero((gaps >= 2).all(1))
        if not len(free): break
        at = at[free[0]]
        turn = np.deg2rad(0 if kind == 'circle' else rng.uniform(-20, 20))
        c,s = np.cos(turn),np.sin(turn)
        # two decimals, so that text files store the same pixels
        objects.append((kind, *((o@[[c, s], [-s, c]]*side + at).round(2) for o in _OUTLINES[kind])))
        circles = np.append(circles, [[*at, r]], 0)
    return objects

# --- drawing

_HUES = dict(circle=.01, square=.6, star=.13, triangle=.36)   # red, blue, yellow, green, with some overlap

def _draw(path, name, objects, rng, w, h, writing):   # -> Annotation
    polygons = [[o.ravel().tolist()] for _,o,_ in objects]
    masks = [decode_mask(p, (w, h)) for p in polygons]
    labels = [k for k,_,_ in objects]
    image,codes = _background(rng, w, h),np.zeros((h, w), np.uint8)
    for k,m in zip(labels, masks):
        image[m],codes[m] = _colours(rng, _HUES[k], m),SHAPE_CODES.index(k)
    image += rng.normal(0, .012, image.shape)
    codes = Image.fromarray(codes)
    codes.putpalette(_palette())
    _save(image, path/'images'/name, writing)
    with writing(path/'masks'/name) as part: codes.save(part, 'PNG')
    return Annotation(path/'images'/name, (w, h), labels, np.reshape([mask_bbox(m) for m in masks], (-1, 4)),
                      points=np.reshape([p for *_,p in objects], (-1, 5, 2)), visible=np.full((len(objects), 5), 2),
                      masks=polygons, mask=path/'masks'/name)

def _save(image, file, writing):   # (h, w, 3) in about [0, 1]
    image = Image.fromarray((image*255).round().clip(0, 255).astype(np.uint8))
    with writing(file) as part: image.save(part, 'PNG')

def _background(rng, w, h):     # -> (h, w, 3) in about [0, 1]
    "Dull clouds of one colour, with slight tints of others"
    base = hsv_to_rgb(rng.random(), rng.uniform(.03, .15), rng.uniform(.3, .75))
    return base + .09*_cloud(rng, w, h, 3)[...,None] + .03*np.stack([_cloud(rng, w, h, 6) for _ in range(3)], -1)

def _cloud(rng, w, h, cells):   # -> (h, w) in about [-1, 1]
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC), np.float64)

def _colours(rng, hue, mask):   # -> (k, 3) in about [0, 1], for the pixels of `mask`
    "A saturated colour near `hue`, lit from a random side, with a darker rim"
    rgb = hsv_to_rgb((hue + rng.normal(0, .04))%1, rng.uniform(.65, .9), rng.uniform(.65, 1))
    side = rng.uniform(0, 2*np.pi)
    yx = np.argwhere(mask)
    along = (yx - yx.mean(0))@[np.sin(side), np.cos(side)]
    # an object never touches the border, so all neighbours of its pixels exist
    inner = np.logical_and.reduce([mask[tuple((yx + d).T)] for d in ((-1, 0), (1, 0), (0, -1), (0, 1))])
    return np.multiply.outer((1 + .15*along/max(np.abs(along).max(), 1))*np.where(inner, 1, .85), rgb)

def _palette():   # -> 256*3 bytes: background black, each shape in its hue, void (255) as in VOC
    rgb = np.zeros((256, 3))
    for i,k in enumerate(SHAPES, 1): rgb[i] = hsv_to_rgb(_HUES[k], .75, .9)
    rgb[255] = np.array([224, 224, 192])/255
    return (rgb*255).round().astype(np.uint8).tobytes()

# --- stick figures

FIGURE_JOINTS = ('right_ankle', 'right_knee', 'right_hip', 'left_hip', 'left_knee', 'left_ankle',  # names and order of
                 'right_wrist', 'right_elbow', 'right_shoulder', 'left_shoulder', 'left_elbow',    # Leeds Sports Pose
                 'left_wrist', 'neck', 'head_top')                             # (Johnson & Everingham, 2010)
FIGURE_FLIP_PAIRS = tuple((f'left_{o}', f'right_{o}') for o in ('ankle', 'knee', 'hip', 'wrist', 'elbow', 'shoulder'))
FIGURE_SKELETON = (('head_top', 'neck'), ('left_hip', 'right_hip'),
                   *((f'{s}_{a}' if a != 'neck' else a, f'{s}_{b}') for s in ('left', 'right') for a,b in (
                     ('neck', 'shoulder'), ('shoulder', 'elbow'), ('elbow', 'wrist'),
                     ('shoulder', 'hip'), ('hip', 'knee'), ('knee', 'ankle'))))

@checked(n=COUNT, size=None)
def draw_figures(
    path,                         # folder, created if missing; files of the same name are replaced
    n:int=32,                     # images, 1 or more
    size:int|tuple[int,int]=96,   # pixels of a square image, or (w, h); 32 or more
    seed:int=0,                   # 0 or more; the same arguments give the same pixels
) -> list[Annotation]:            # `points` (14, 2) and `visible` by `FIGURE_JOINTS`; neither boxes nor labels
    """Draw `n` images of one stick figure each into `path`/figures, with its joints.

    Left and right are those of the figure, and depend only on the visible side: three in four figures face the camera,
    with their left on the right of the image, one in four shows its back. A bush hides one or two joints of every
    third figure, and limbs hide some; their `visible` is 1. In one image of eight a joint is not marked: `visible` 0,
    nan. Of four images or more, at least one shows a back, one a bush, and one has a joint that is not marked. All
    files are replaced together, or none is. Raises `ValueError` for a size below 32"""
    w,h = _wh(size, 32)
    path,rng = Path(path)/'figures',np.random.default_rng(seed)
    behind,bushes,unmarked = (_some(rng, n, share) for share in (1/4, 1/3, 1/8))
    with writing_set([path]) as writing:
        return [_draw_figure(path/f'{i:04d}.png', rng, w, h, *(i in o for o in (behind, bushes, unmarked)), writing)
                for i in range(n)]

def _draw_figure(file, rng, w, h, behind, bush, unmarked, writing):   # -> Annotation
    pose = _pose(rng)*([-1, 1] if behind else [1, 1])
    points,unit = _set_down(rng, pose, w, h)
    image,visible = _paint(rng, points, unit, w, h, behind, bush)
    _save(image, file, writing)
    if unmarked: j = rng.integers(len(points)); points[j],visible[j] = np.nan,0
    return Annotation(file, (w, h), points=points, visible=visible)

def _pose(rng):   # -> (14, 2) of a figure of height 1 when upright, facing the camera: its left is at +x
    "Forward kinematics: bones of fixed length, with random angles in the range of a human body"
    bone = lambda start, degrees, length: start + _polar(degrees, length)[0]
    lean = rng.normal(0, 8)
    p = {'neck': np.zeros(2), 'head_top': bone(0, lean + rng.normal(0, 10), .2)}
    pelvis = bone(0, lean + 180, .3)
    # angles are outward from the top: 180 is down
    for side,s in (('left', 1), ('right', -1)):
        arm,leg = rng.uniform(30, 175),rng.uniform(140, 180)
        forearm,shin = arm + np.clip(rng.normal(0, 50), -110, 110),rng.uniform(leg - 5, 188)
        p[f'{side}_shoulder'] = bone(0, lean + s*105, .115)
        p[f'{side}_elbow']    = bone(p[f'{side}_shoulder'], lean + s*arm, .16)
        p[f'{side}_wrist']    = bone(p[f'{side}_elbow'], lean + s*forearm, .15)
        p[f'{side}_hip']      = bone(pelvis, lean + s*90, .065)
        p[f'{side}_knee']     = bone(p[f'{side}_hip'], s*leg, .25)
        p[f'{side}_ankle']    = bone(p[f'{side}_knee'], s*shin, .25)
    return np.stack([p[o] for o in FIGURE_JOINTS])

def _set_down(rng, pose, w, h):   # -> (14, 2) pixels, pixels per unit
    "`pose` at a random place and scale, all of it inside the image"
    around = .09   # margin of head and limbs beyond the joints
    lo = pose.min(0) - around
    side = pose.max(0) + around - lo
    unit = rng.uniform(.75, 1)*([w, h]/side).min()
    # two decimals, so that text files store the same pixels
    return ((pose - lo)*unit + rng.uniform(0, [w, h] - side*unit)).round(2),unit

_FINE = 4   # factor of supersampling, for smooth edges

class _Layer:
    "A figure to draw over a background, and which of its parts is on top"
    def __init__(self, w, h, unit):
        self.unit = unit*_FINE   # pixels of the layer per unit
        self.rgba,self.top = (Image.new(mode, (w*_FINE, h*_FINE)) for mode in ('RGBA', 'L'))
        self.joints = [()]   # names of the joints that each part shows; part 0 is the background

    def part(self, xy, width, rgb, joints):   # xy (m, 2) in pixels of the image, width in units
        "A bone, or a filled outline, with a darker rim"
        self.joints.append(joints)
        rim = self.unit*.018
        for draw,width,fill in ((ImageDraw.Draw(self.top), self.unit*width + rim, len(self.joints) - 1),
                                (ImageDraw.Draw(self.rgba), self.unit*width + rim, _rgb8(np.multiply(rgb, .6))),
                                (ImageDraw.Draw(self.rgba), self.unit*width - rim, _rgb8(rgb))):
            corners = [tuple(o) for o in np.asarray(xy)*_FINE]
            if len(corners) > 2: draw.polygon(corners, fill)
            draw.line([*corners, corners[0]], fill, round(width))
            for x,y in corners: draw.ellipse((x - width/2, y - width/2, x + width/2, y + width/2), fill)

    def dot(self, xy, width, rgb):
        (x,y),r = np.multiply(xy, _FINE),self.unit*width/2
        ImageDraw.Draw(self.rgba).ellipse((x - r, y - r, x + r, y + r), _rgb8(rgb))

    def shows(self, joint, xy):
        "Whether the part on top at `xy` shows `joint`"
        x,y = (int(o*_FINE) for o in xy)
        return joint in self.joints[self.top.getpixel((x, y))]

    def over(self, image):   # (h, w, 3) -> (h, w, 3)
        a = np.asarray(self.rgba.reduce(_FINE), np.float64)/255
        return image*(1 - a[...,3:]) + a[...,:3]*a[...,3:]

def _rgb8(rgb): return tuple(int(round(o*255)) for o in np.clip(rgb, 0, 1))

def _paint(rng, points, unit, w, h, behind, bush):   # -> (h, w, 3) in about [0, 1], (14,) 1 hidden or 2 visible
    p,layer,hue = dict(zip(FIGURE_JOINTS, points)),_Layer(w, h, unit),rng.random()
    skin  = hsv_to_rgb(rng.uniform(.05, .09), rng.uniform(.3, .55), rng.uniform(.7, 1))
    hair  = hsv_to_rgb(rng.uniform(.04, .1), rng.uniform(.3, .7), rng.uniform(.08, .3))
    shirt = hsv_to_rgb(hue, rng.uniform(.65, .9), rng.uniform(.65, 1))
    trousers = hsv_to_rgb((hue + rng.uniform(.25, .75))%1, rng.uniform(.5, .9), rng.uniform(.4, .8))

    def bone(a, b, width, rgb): layer.part([p[a], p[b]], width, rgb, (a, b))
    def arms():
        for s in sides:
            bone(f'{s}_shoulder', f'{s}_elbow', .075, shirt)
            bone(f'{s}_elbow', f'{s}_wrist', .06, skin)
    def legs():
        for s in sides:
            bone(f'{s}_knee', f'{s}_ankle', .07, skin)
            bone(f'{s}_hip', f'{s}_knee', .09, trousers)
    def body():
        corners = 'right_shoulder', 'neck', 'left_shoulder', 'left_hip', 'right_hip'
        layer.part([p[o] for o in corners], .06, shirt, corners)
        _paint_head(layer, p['neck'], p['head_top'], skin, hair, behind)

    sides = rng.permutation(['left', 'right']).tolist()
    # arms bend forward: in front of the body, or behind it if the back is visible
    for paint in (arms, legs, body) if behind else (legs, body, arms): paint()
    if bush: _paint_bush(rng, layer, points)
    visible = np.array([1 + layer.shows(o, xy) for o,xy in p.items()])
    image = layer.over(_background(rng, w, h))
    return image + rng.normal(0, .012, image.shape),visible

def _paint_head(layer, neck, top, skin, hair, behind):
    up = (top - neck)/np.hypot(*(top - neck))
    across,u = np.array([-up[1], up[0]]),layer.unit/_FINE
    at = lambda x, y: neck + u*(x*across + y*up)          # x to the right of the image, y up from the neck
    oval = lambda rx, ry, degrees: [at(rx*x, .115 - ry*y) for x,y in _polar(degrees, 1)]
    layer.part([neck, at(0, .06)], .06, skin, ('neck',))
    layer.part(oval(.06, .07, np.arange(0, 360, 15)), .03, hair if behind else skin, ('neck', 'head_top'))
    if behind: return
    layer.part(oval(.06, .07, np.arange(-60, 61, 15)), .03, hair, ('head_top',))
    for x,y,width in ((-.028, .115, .024), (.028, .115, .024), (0, .085, .016)):   # eyes and nose
        layer.dot(at(x, y), width, (.1, .07, .07))

def _paint_bush(rng, layer, points):
    "An oval of leaves over a random joint, and at most one more; the head, which shows the side, stays visible"
    wide = np.array([rng.uniform(.8, 1.3), 1])
    near = lambda at: np.sort(np.hypot(*((points - at)/wide).T))
    joint = points[rng.integers(12)]                      # neck and head_top are the last two
    reach = near(joint)[2]                                # the second nearest other joint stays visible
    at = joint + wide*_polar(rng.uniform(0, 360), rng.uniform(0, .3)*reach)[0]
    r = rng.uniform(.45, .6)*reach
    green = lambda: hsv_to_rgb(rng.uniform(.22, .4), rng.uniform(.4, .7), rng.uniform(.25, .55))
    degrees = np.arange(0, 360, 20)
    layer.part(at + wide*_polar(degrees, r*rng.uniform(.9, 1.1, len(degrees))), .03, green(), ())
    for d in rng.uniform(0, 360, 40):
        layer.dot(at + wide*_polar(d, .9*r*rng.random()**.5)[0], .3*r/(layer.unit/_FINE), green())
