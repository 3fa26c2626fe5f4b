"""Broken files: what each reader says of a small data set of which one file was changed at random.

`python tests/fuzz.py 600` prints a table of all readers. Each change is made in a child process, so that a reader that
hangs, crashes or takes all memory is counted and the next one goes on"""
from __future__ import annotations
import json, multiprocessing, os, random, re, resource, sys, tempfile, warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple
import numpy as np
from PIL import Image
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.coco import coco_keypoints, read_coco
from vision_tasks.data.image import image_size, read_image
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.formats.instance_masks import read_instance_masks
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.formats.points import dlc_points, read_biwi, read_dlc
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.reading import read_json, read_text, read_yaml
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.formats.via import read_via
from vision_tasks.data.formats.voc import read_voc
from vision_tasks.data.formats.yolo import read_yolo
from vision_tasks.ops.masks import decode_mask, encode_rle

W,H = 12,10
SECONDS,MEGABYTES = 20,1000   # more is a hang, or too much

# --- changes

_HOSTILE = [b'1e400', b'-1', b'nan', b'inf', b'-inf', b'0', b'9'*30, b'9'*400, b'1e308', b'2147483648',
            b'-9223372036854775808', b'18446744073709551616', b'1.5', b'null', b'true', b'""', b'[]', b'{}', b'1e6',
            b'0x10', b'1_0', '\u0663'.encode()]
_ENCODINGS = ['utf-16', 'utf-32', 'utf-16-le', 'utf-8-sig', 'latin-1', 'cp037', 'utf-7']

def mutate(data:bytes, rng) -> bytes:
    "`data` with one to three random changes"
    for _ in range(rng.choice((1, 1, 1, 2, 3))): data = rng.choice(_CHANGES)(data, rng)
    return data

def _span(data, rng, most):
    i = rng.randrange(len(data) + 1)
    return i,min(len(data), i + rng.randrange(1, most + 1))

def _flip(data, rng):
    if not data: return data
    res = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16))): res[rng.randrange(len(res))] ^= 1 << rng.randrange(8)
    return bytes(res)
def _insert(data, rng):
    i = rng.randrange(len(data) + 1)
    return data[:i] + rng.randbytes(rng.choice((1, 1, 4, 64))) + data[i:]
def _delete(data, rng): i,j = _span(data, rng, 16); return data[:i] + data[j:]
def _cut(data, rng): return data[:rng.randrange(len(data) + 1)]
def _copy(data, rng):
    i,j = _span(data, rng, 200)
    k = rng.randrange(len(data) + 1)
    return data[:k] + data[i:j]*rng.choice((1, 1, 2, 50)) + data[k:]
def _replace(pattern, values):
    def change(data, rng):
        found = list(re.finditer(pattern, data))
        if not found: return _flip(data, rng)
        m = rng.choice(found)
        return data[:m.start()] + rng.choice(values) + data[m.end():]
    return change
def _encode(data, rng):
    try: return data.decode().encode(rng.choice(_ENCODINGS), errors='replace')
    except UnicodeDecodeError: return _flip(data, rng)
def _declare(data, rng):
    name = rng.choice([b'utf-16', b'latin-1', b'no-such', b'utf-7', b'cp037', b'rot13', b'zlib', b'idna', b'punycode',
                       b'undefined'])
    return b'<?xml version="1.0" encoding="' + name + b'"?>' + data
def _set_word(data, rng):   # sizes, offsets and counts in the headers of images
    if len(data) < 8: return data
    i,n = rng.randrange(min(len(data) - 4, 200)),rng.choice((2, 4))
    word = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, rng.choice(('big', 'little')))
    return data[:i] + word[-n:] + data[i+n:]

_CHANGES = [_flip, _flip, _insert, _delete, _cut, _copy, _set_word, _encode, _declare,
            *[_replace(rb'-?\d+(?:\.\d+)?', _HOSTILE)]*3,
            _replace(rb'[a-z_]{2,}', [b'', b'x', b'../x', b'\xff', b'/etc/passwd', b'\0', b'[1]', b'name', b'id']),
            _replace(rb'["\'<>,:{}\[\]\s]', [b'"', b"'", b'<', b'>', b',', b':', b'{', b'}', b'[', b']', b'\n', b'\t',
                                                   b'&lol;'])]

# --- small data sets: one writes the files of a format into a folder

def _png(path, v=None, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    v = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8) if v is None else v
    Image.fromarray(v).save(path, **kw)

def _text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

def _images(d):
    _png(d/'a.png'); _png(d/'b.jpg'); _png(d/'c.tif')
    return 'a.png','b.jpg','c.tif'

def _ids(): v = np.zeros((H, W), np.uint8); v[2:5, 3:7] = 1; v[6:9, 1:4] = 2; return v

def make_voc(d):
    for i,o in enumerate(_images(d/'JPEGImages')):
        objects = ''.join(f'<object><name>cat</name><difficult>0</difficult><bndbox><xmin>{j+1}</xmin><ymin>2</ymin>'
                          f'<xmax>9</xmax><ymax>8</ymax></bndbox></object>' for j in range(i))
        _text((d/'Annotations'/o).with_suffix('.xml'), f'<annotation><filename>{o}</filename><size><width>{W}</width>'
              f'<height>{H}</height><depth>3</depth></size>{objects}</annotation>')
    _text(d/'ImageSets'/'Main'/'train.txt', 'a\nb\n'); _text(d/'ImageSets'/'Main'/'val.txt', 'c\n')

def make_coco(d):
    m = _ids() == 1
    whole = dict(size=[H, W], counts=[40, 20, 60])
    objects = [dict(id=1, image_id=1, category_id=1, bbox=[3, 2, 4, 3], area=12, iscrowd=0, segmentation=encode_rle(m),
                    score=.5, keypoints=[1, 2, 2, 0, 0, 0], num_keypoints=1),
               dict(id=2, image_id=1, category_id=2, bbox=[1, 1, 4.5, 3], area=13.5, iscrowd=1, segmentation=whole,
                    score=1, keypoints=[3, 2, 1, 5, 5, 2], num_keypoints=2),
               dict(id=3, image_id=2, category_id=1, bbox=[0, 0, 4, 3], area=12, iscrowd=0, score=0.25,
                    segmentation=[[0, 0, 4, 0, 4, 3], [5, 5, 9, 5, 9.5, 9]], keypoints=[0]*6, num_keypoints=0)]
    cat = lambda i,o: dict(id=i, name=o, keypoints=['nose', 'tail'], skeleton=[[1, 2]])
    images = [dict(id=i, file_name=o, width=W, height=H) for i,o in enumerate(_images(d/'images'), 1)]
    _text(d/'x.json', json.dumps(dict(images=images, annotations=objects, categories=[cat(1, 'cat'), cat(2, 'dog')])))

def make_yolo(d):
    rows = '0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.5 0.9\n','1 0.25 0.5 0.1 0.2\n',''
    for o,text in zip(_images(d/'images'/'train'), rows):
        _text((d/'labels'/'train'/o).with_suffix('.txt'), text)
    _png(d/'images'/'v.png'); _text(d/'labels'/'v.txt', '0 0.5 0.5 1 1\n'); _text(d/'val.txt', './images/v.png\n')
    _text(d/'data.yaml', 'train: images/train\nval: val.txt\nnc: 2\nnames:\n  0: cat\n  1: dog\n')

def make_via(d):
    shapes = [dict(name='polygon', all_points_x=[1, 5, 5], all_points_y=[1, 1, 6]),
              dict(name='rect', x=1, y=2, width=3, height=4)]
    regions = [dict(shape_attributes=o, region_attributes=dict(label='cat')) for o in shapes]
    files = {f'{o}1': dict(filename=o, size=1, regions=regions[:i], file_attributes={})
             for i,o in enumerate(_images(d/'images'))}
    _text(d/'x.json', json.dumps(dict(_via_settings={}, _via_img_metadata=files, _via_attributes={})))

def make_df(d):
    _images(d)
    _text(d/'x.csv', 'fname,label,x1,y1,x2,y2,split,group\na.png,cat,1,2,3,4,train,g1\na.png,dog,1.5,2,3,4,train,g1\n'
          'b.jpg,cat,0,0,5,5,valid,g2\nc.tif,,,,,,test,\n')

def make_labels_df(d):
    _images(d)
    _text(d/'x.csv', 'fname,labels,is_valid,x_0,y_0\na.png,cat dog,False,1,2\nb.jpg,"[\'cat\', \'x y\']",True,,\n'
          'c.tif,,0,3,4.5\n')

def make_dlc(d):
    for o in ('a.png', 'b.png'): _png(d/'labeled-data'/'s'/o)
    _text(d/'labeled-data'/'s'/'x.csv', 'scorer,,,me,me,me,me\nbodyparts,,,nose,nose,tail,tail\ncoords,,,x,y,x,y\n'
          'labeled-data,s,a.png,1,2,3.5,4\nlabeled-data,s,b.png,,,5,6\n')

def make_biwi(d):
    for o in ('frame_00003', 'frame_00004'):
        _png(d/'01'/f'{o}_rgb.png'); _text(d/'01'/f'{o}_pose.txt', '1 0 0\n0 1 0\n0 0 1\n\n10.5 -20 900\n')
    _text(d/'01'/'rgb.cal', '517.6 0 320\n0 517.6 240.5\n0 0 1\n\n0 0 0 0\n\n1 0 0\n0 1 0\n0 0 1\n\n25 0.1 0.2\n\n'
          '640 480\n')

def make_masks(d):
    for o in _images(d/'images'): _png((d/'masks'/o).with_suffix('.tif' if o == 'c.tif' else '.png'), _ids())
    _text(d/'codes.yaml', 'classes:\n  0: bg\n  1: cat\n  2: dog\n')

def make_proposals(d):
    _png(d/'a.png')
    Proposals('grid', n=20, cache=d/'cache')(d/'a.png')

def make_files(d):
    _images(d); _png(d/'m.png', _ids()); _png(d/'d.png', compress_level=0)
    for o in ('g.gif', 'w.webp', 'p.ppm'): _png(d/o)
    exif = Image.Exif(); exif[0x0112] = 6
    _png(d/'e.jpg', exif=exif); _png(d/'z.tif', compression='tiff_lzw'); _png(d/'s.bmp'); _png(d/'q.pgm', _ids())

def make_mask_files(d):
    for o in ('a.png', 'g.gif', 't.tif', 's.bmp', 'q.pgm'): _png(d/o, _ids())
    Image.fromarray(_ids()).quantize(4).save(d/'b.png', bits=2)
    Image.fromarray(_ids().astype(np.uint16)).save(d/'u.png'); Image.fromarray(_ids().astype(np.uint16)).save(d/'u.tif')
    Image.fromarray(_ids() > 0).save(d/'o.png')

# --- readers

class Reader(NamedTuple):
    make:object          # folder -> writes the data set
    read:object          # (folder, changed file) -> a value
    mutated:str          # glob of the files that are changed
    per_image:bool=False # `read` drops broken images: it must not raise

def _use(anns):
    "The annotations, whose masks decode"
    assert isinstance(anns, list) and all(isinstance(a, Annotation) for a in anns)
    for a in anns:
        for m in a.masks or []: decode_mask(m, a.size)
        if a.mask is not None: decode_class_mask(a.mask, a.size)
    return anns

def readers():
    files = dict(voc=(make_voc, lambda d,**kw: read_voc(d, **kw), '**/*.*', 'Annotations/*'),
                 coco=(make_coco, lambda d,**kw: read_coco(d/'x.json', d/'images', **kw), '**/*.*', 'images/*'),
                 yolo=(make_yolo, lambda d,**kw: read_yolo(d, **kw), '**/*.*', 'labels/**/*.txt'),
                 via=(make_via, lambda d,**kw: read_via(d/'x.json', d/'images', **kw), '**/*.*', 'images/*'),
                 df=(make_df, lambda d,**kw: read_df(d/'x.csv', label_col='label', bbox_cols=['x1', 'y1', 'x2', 'y2'],
                                                      valid_col='split', group_col='group', **kw), '*.*', '*[!v]'),
                 df_labels=(make_labels_df, lambda d,**kw: read_df(d/'x.csv', label_col='labels', label_delim=' ',
                                                                   valid_col='is_valid', point_cols=['x_0', 'y_0'],
                                                                   **kw), '*.*', '*[!v]'),
                 dlc=(make_dlc, lambda d,**kw: read_dlc(d/'labeled-data'/'s'/'x.csv', **kw), '**/*.*', '**/*.png'),
                 biwi=(make_biwi, lambda d,**kw: read_biwi(d, **kw), '**/*.*', '**/*_pose.txt'),
                 masks=(make_masks, lambda d,**kw: read_masks(d/'images', d/'masks', d/'codes.yaml', **kw), '**/*.*',
                        '*s/*'),
                 instance_masks=(make_masks, lambda d,**kw: read_instance_masks(d/'images', d/'masks', 'cat', **kw),
                                 '*s/*', '*s/*'))
    res = {f'read_{k}': Reader(make, lambda d,f,read=read: _use(read(d)), some)
           for k,(make,read,some,_) in files.items()}
    res.update({f'read_{k}, drop': Reader(make, lambda d,f,read=read: _use(read(d, on_error='drop')), some, True)
                for k,(make,read,_,some) in files.items()})
    res['read_voc, split'] = Reader(make_voc, lambda d,f: _use(read_voc(d, split='train')), 'ImageSets/Main/*')
    res['coco_keypoints'] = Reader(make_coco, lambda d,f: coco_keypoints(d/'x.json'), 'x.json')
    res['dlc_points'] = Reader(make_dlc, lambda d,f: dlc_points(d/'labeled-data'/'s'/'x.csv'), '**/*.csv')
    res['read_codes'] = Reader(make_masks, lambda d,f: read_codes(d/'codes.yaml'), 'codes.yaml')
    res['read_text'] = Reader(make_yolo, lambda d,f: read_text(f), '**/*.txt')
    res['read_json'] = Reader(make_coco, lambda d,f: read_json(f), 'x.json')
    res['read_yaml'] = Reader(make_yolo, lambda d,f: read_yaml(f), 'data.yaml')
    res['read_image'] = Reader(make_files, lambda d,f: read_image(f), '*')
    res['image_size'] = Reader(make_files, lambda d,f: image_size(f), '*')
    res['decode_class_mask'] = Reader(make_mask_files, lambda d,f: decode_class_mask(f), '*')
    proposals = lambda d,f: Proposals('grid', n=20, cache=d/'cache')(d/'a.png')
    res['Proposals'] = Reader(make_proposals, proposals, '**/*.*')
    res['Proposals, cache'] = Reader(make_proposals, proposals, 'cache/*', True)
    return res

# --- the trials

VERDICTS = 'ok', 'own error', 'foreign error', 'raised on drop', 'memory', 'crash', 'hang'

def trial(reader, folder, files, name, i):
    "(verdict, what was raised) of change `i` of the data set in `folder`, whose files are as before afterwards"
    rng = random.Random(f'{name} {i}')
    file = rng.choice(files)
    data = file.read_bytes()
    file.write_bytes(mutate(data, rng))
    before = _peak()
    try: reader.read(folder, file)
    except Exception as e:
        own = isinstance(e, (AnnotationError, OSError)) or type(e) is ValueError
        named = any(o.name in str(e) or str(o.parent) in str(e) for o in files)
        what = f'{file.relative_to(folder)}: {type(e).__name__}: {str(e)[:300]}'
        res = ('foreign error' if not own or not named or len(str(e)) > 3000 else
               'raised on drop' if reader.per_image else 'own error'),what
    else: res = 'ok',''
    finally:
        file.write_bytes(data)
        for o in folder.rglob('*.npz'):
            if o not in files: o.unlink()
    return ('memory',f'{file.relative_to(folder)}: {_peak() - before:.0f} MB') if _peak() - before > MEGABYTES else res

def _peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def _child(pipe, reader, folder, files, name, idxs):
    warnings.simplefilter('ignore')
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)   # libtiff writes its own
    soft = 4*1024**3 + int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for i in idxs: pipe.send(trial(reader, folder, files, name, i))
    pipe.close()
    os._exit(0)

def fuzz(name, reader, n, folder) -> tuple[Counter,list]:
    "(how often each verdict came, [(number of the change, verdict, what was raised)] of those that are faults)"
    folder = Path(folder)
    reader.make(folder)
    reader.read(folder, next(p for p in sorted(folder.glob(reader.mutated)) if p.is_file()))   # it is valid
    files = [p for p in sorted(folder.glob(reader.mutated)) if p.is_file()]
    kept = {p: p.read_bytes() for p in files}
    counts,faults,i = Counter(),[],0
    ctx = multiprocessing.get_context('fork')
    while i < n:
        here,there = ctx.Pipe(False)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)   # of a fork beside threads
            p = ctx.Process(target=_child, args=(there, reader, folder, files, name, range(i, n)))
            p.start()
        there.close()
        while i < n:
            try:
                if here.poll(SECONDS): verdict,what = here.recv()
                else:
                    p.kill()
                    verdict,what = 'hang',''
            except EOFError:
                p.join()
                verdict,what = 'crash',f'exit code {p.exitcode}'
            counts[verdict] += 1
            if verdict not in VERDICTS[:2]: faults.append((i, verdict, what))
            i += 1
            if verdict in ('memory', 'crash', 'hang'): break   # a new child: the peak of this one would hide the next
        p.kill(); p.join()
        for o,data in kept.items(): o.write_bytes(data)
    return counts,faults

def main(n, *names):
    print(f"{'reader':28}{'tried':>7}" + ''.join(f'{o:>16}' for o in VERDICTS))
    total = Counter()
    for name,reader in readers().items():
        if names and name not in names: continue
        with tempfile.TemporaryDirectory() as d: counts,faults = fuzz(name, reader, n, d)
        total += counts
        print(f'{name:28}{n:7}' + ''.join(f'{counts[o]:16}' for o in VERDICTS), flush=True)
        for o in faults[:int(os.environ.get('SHOW', 3))]: print('   ', *o)
    print(f"{'all':28}{sum(total.values()):7}" + ''.join(f'{total[o]:16}' for o in VERDICTS))

if __name__ == '__main__': main(int(sys.argv[1]), *sys.argv[2:])
