"Broken and hostile files: what `fuzz.py` tries of each reader, and the kinds of faults that it cannot find by chance"
import json, os, signal, socket, struct, time, warnings, zlib
from io import BytesIO
from pathlib import Path
import numpy as np, pytest
from PIL import Image, PngImagePlugin
from pycocotools import mask as coco_mask
from fuzz import Reader, fuzz, make_coco, readers
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.items import FileImage
from vision_tasks.data.check import check_annotations
from vision_tasks.data.formats.coco import read_coco
from vision_tasks.data.image import image_size, read_image
from vision_tasks.data.class_masks import decode_class_mask
from vision_tasks.data.formats.instance_masks import read_instance_masks
from vision_tasks.data.formats.mask_values import read_codes
from vision_tasks.data.formats.masks import read_masks
from vision_tasks.data.formats.points import read_biwi, read_dlc
from vision_tasks.data.proposals import Proposals
from vision_tasks.data.reading import read_json, read_text, read_yaml
from vision_tasks.data.formats.table import read_df
from vision_tasks.data.formats.via import read_via
from vision_tasks.data.formats.voc import read_voc
from vision_tasks.data.formats.yolo import read_yolo
from vision_tasks.ops.masks import (check_mask, decode_mask, encode_instances, encode_rle, mask_extent, mask_polygons,
                                    paste_rle)
from vision_tasks.ops.polygons import join_polygons
from vision_tasks.ops.rle import rle_columns, rle_counts

# --- random changes

@pytest.mark.parametrize('name', readers())
def test_a_changed_file_gives_a_list_or_an_error_that_names_it(tmp_path, name):
    counts,faults = fuzz(name, readers()[name], 25, tmp_path)
    assert not faults and sum(counts.values()) == 25

@pytest.mark.slow
@pytest.mark.parametrize('name', readers())
def test_600_changed_files_give_a_list_or_an_error_that_names_them(tmp_path, name):
    counts,faults = fuzz(name, readers()[name], 600, tmp_path)
    assert not faults and sum(counts.values()) == 600

def test_the_fuzz_sees_errors_of_others_crashes_hangs_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr('fuzz.SECONDS', 1.5)
    monkeypatch.setattr('fuzz.MEGABYTES', 50)
    def fails(f, how):   # valid at first: then how
        if f.read_bytes() == b'x': return
        if how == 'foreign error': raise KeyError(f.name)
        if how == 'crash': os.kill(os.getpid(), signal.SIGSEGV)
        if how == 'hang': time.sleep(9)
        if how == 'memory': bytearray(2**27)
        if how == 'own error': raise AnnotationError(f"{f}: broken")
        if how == 'raised on drop': raise OSError(f"{f}: broken")
        if how == 'nameless': raise OSError("broken")
    for how in ('foreign error', 'crash', 'hang', 'memory', 'own error', 'raised on drop', 'nameless'):
        make = lambda d: (d.mkdir(), (d/'a.txt').write_bytes(b'x'))
        counts,_ = fuzz('some', Reader(make, lambda d,f: fails(f, how), '*', how == 'raised on drop'), 2, tmp_path/how)
        assert counts['foreign error' if how == 'nameless' else how] == 2, (how, counts)

# --- files that are none

def by_every_way(file, d):
    "Every way of reading `file` as an image: [(name, function)]"
    csv = d/'t.csv'; csv.write_text(f'fname\n{file.name}\n')
    data = dict(images=[dict(id=1, file_name=file.name, width=4, height=4)], annotations=[], categories=[])
    (d/'t.json').write_text(json.dumps(data))
    return dict(read_image=lambda: read_image(file), image_size=lambda: image_size(file), 
                FileImage=lambda: FileImage.create(file), mask=lambda: decode_class_mask(file),
                Proposals=lambda: Proposals('grid', n=4)(file),
                read_df=lambda: read_df(csv), read_coco=lambda: read_coco(d/'t.json', d),
                read_masks=lambda: read_masks([file], [file], ['a']),
                read_instance_masks=lambda: read_instance_masks([file], [file], 'a'))

def specials(d):
    os.mkfifo(d/'pipe.png'); (d/'folder.png').mkdir(); (d/'device.png').symlink_to('/dev/zero')
    s = socket.socket(socket.AF_UNIX); s.bind(str(d/'socket.png')); s.close()
    return dict(pipe='a pipe', folder='a folder', device='a device', socket='a socket')

@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device', 'socket'])
def test_what_is_no_regular_file_is_an_error_that_says_what_it_is(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)   # names of sockets are short
    what = specials(Path())[kind]
    file = tmp_path/f'{kind}.png'
    signal.alarm(20)   # a hang ends the run
    try:
        ways = by_every_way(file, tmp_path)
        if kind == 'device':   # a link that leads out of the folder, as it happens
            ways.pop('read_df'); ways.pop('read_coco')
        if kind == 'folder':   # there it may be one of masks
            ways.pop('read_masks'); ways.pop('read_instance_masks')
        for read in ways.values():
            with pytest.raises((OSError, AnnotationError), match=rf'{kind}.png.* is {what}, not a regular file'): read()
        assert check_annotations([Annotation(file, (4, 4))]).problem.tolist() == ['unreadable image']
        for read in (read_text, read_json, read_yaml, read_codes, read_yolo, lambda f: read_df(f), read_dlc,
                     lambda f: read_coco(f, tmp_path), lambda f: read_via(f, tmp_path)):
            if kind == 'folder' and read is read_yolo: continue   # it takes folders
            with pytest.raises(AnnotationError, match=f'{kind}.png.* is {what}, not a regular file'): read(file)
    finally: signal.alarm(0)

# --- images that are too large, or whose headers are

def png_of(size):   # its header says `size`, its data are of 1 x 1
    b = BytesIO(); Image.new('L', (1, 1)).save(b, 'PNG'); b = bytearray(b.getvalue())
    b[16:24] = struct.pack('>II', *size)
    b[29:33] = struct.pack('>I', zlib.crc32(b[12:29]))
    return bytes(b)

def test_an_image_beyond_pillows_limit_is_an_error_that_names_it_wherever_it_is_read(tmp_path):
    file = tmp_path/'large.png'; file.write_bytes(png_of((40000, 40000)))
    message = 'cannot be read as an image .*exceeds limit'
    for read in by_every_way(file, tmp_path).values():
        with pytest.raises((OSError, AnnotationError), match=f'large.png:? {message}'): read()
    with pytest.raises(OSError, match=f'image in memory {message}'): FileImage.create(file.read_bytes())
    assert 'large.png' in check_annotations([Annotation(file, (4, 4))]).detail.item()

def test_the_warning_below_that_limit_names_the_file_and_as_an_error_too(tmp_path):
    file = tmp_path/'large.png'; file.write_bytes(png_of((10000, 10000)))
    with pytest.warns(Image.DecompressionBombWarning, match='large.png has 100000000 pixels'): image_size(file)
    with warnings.catch_warnings():
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        with pytest.raises(OSError, match='large.png cannot be read'): image_size(file)

def test_huge_text_chunks_and_tags_are_errors_that_name_the_file(tmp_path):
    info = PngImagePlugin.PngInfo(); info.add_text('k', 'x'*2_000_000, zip=True)
    Image.new('L', (4, 4)).save(tmp_path/'text.png', pnginfo=info)
    with pytest.raises(OSError, match='text.png cannot be read as an image'): image_size(tmp_path/'text.png')
    Image.new('L', (4, 4)).save(tmp_path/'tags.tif')
    data = bytearray((tmp_path/'tags.tif').read_bytes())
    for value in (0, 2**31, 2**32 - 1):
        for i in range(8, len(data) - 4, 2):
            (tmp_path/'tags.tif').write_bytes(data[:i] + value.to_bytes(4, 'little') + data[i+4:])
            try: read_image(tmp_path/'tags.tif')
            except OSError as e: assert 'tags.tif' in str(e)

# --- encodings and numbers

XML = '<annotation><filename>a.png</filename><size><width>{w}</width><height>4</height></size></annotation>'

@pytest.mark.parametrize('xml', [b'<?xml version="1.0" encoding="no-such"?>' + XML.format(w=4).encode(),
                                 b'<?xml version="1.0" encoding="zlib"?>' + XML.format(w=4).encode(),
                                 XML.format(w='1e400').encode(), XML.format(w='nan').encode(),
                                 XML.format(w='9'*400).encode(), b'\xff\xfe<\0', b'',
                                 XML.format(w='\xe9').encode('latin-1')])
def test_a_voc_file_that_cannot_be_read_is_dropped_or_an_error_that_names_it(tmp_path, xml):
    for o in ('JPEGImages', 'Annotations'): (tmp_path/o).mkdir()
    for o in 'ab': Image.new('RGB', (4, 4)).save(tmp_path/'JPEGImages'/f'{o}.png')
    (tmp_path/'Annotations'/'b.xml').write_text(XML.format(w=4).replace('a.png', 'b.png'))
    (tmp_path/'Annotations'/'a.xml').write_bytes(xml)
    with pytest.raises(AnnotationError, match='a.xml'): read_voc(tmp_path)
    with pytest.warns(UserWarning, match='1 of 2 images are dropped: .*a.xml'): a, = read_voc(tmp_path, on_error='drop')
    assert a.path.name == 'b.png'

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_a_voc_file_and_list_in_a_known_encoding_are_read(tmp_path, encoding):
    for o in ('JPEGImages', 'Annotations', 'ImageSets/Main'): (tmp_path/o).mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(tmp_path/'JPEGImages'/'é.png')
    (tmp_path/'Annotations'/'é.xml').write_text(XML.format(w=4).replace('a.png', 'é.png'), encoding=encoding)
    (tmp_path/'ImageSets'/'Main'/'train.txt').write_text('é\r\n', encoding=encoding)
    assert read_voc(tmp_path)[0].split == 'train'

# --- files that lead out of the data set

@pytest.fixture
def apart(tmp_path):
    "A data set's folder `in`, and an image that lies beside it"
    for o in ('in', 'in/sub', 'out'): (tmp_path/o).mkdir()
    for o in ('in/a.png', 'in/sub/b.png', 'out/x.png'): Image.new('L', (4, 4), len(o)).save(tmp_path/o)
    (tmp_path/'in'/'link.png').symlink_to(tmp_path/'out'/'x.png')
    (tmp_path/'in'/'near.png').symlink_to('sub/b.png')
    return tmp_path

def coco_of(d, name, **kw):
    images = [dict(id=i, file_name=o, width=4, height=4) for i,o in enumerate([name, 'a.png'])]
    (d/'in'/'x.json').write_text(json.dumps(dict(images=images, annotations=[], categories=[])))
    return read_coco(d/'in'/'x.json', d/'in', **kw)
def via_of(d, name, **kw):
    (d/'in'/'x.json').write_text(json.dumps({o: dict(filename=o, regions=[]) for o in (name, 'a.png')}))
    return read_via(d/'in'/'x.json', d/'in', **kw)
def csv_of(d, name, **kw):
    (d/'in'/'x.csv').write_text(f'fname\n{name}\na.png\n')
    return read_df(d/'in'/'x.csv', **kw)
def dlc_of(d, name, **kw):
    (d/'in'/'x.csv').write_text(f'scorer,m,m\nbodyparts,p,p\ncoords,x,y\n{name},1,2\na.png,1,2\n')
    return read_dlc(d/'in'/'x.csv', **kw)
def yolo_of(d, name, **kw):
    (d/'in'/'data.yaml').write_text('train: x.txt\nnames: [c]\n')
    (d/'in'/'x.txt').write_text(f'{name}\na.png\n')
    (d/'in'/'a.txt').write_text('')
    return read_yolo(d/'in', **kw)
def voc_of(d, name, **kw):
    (d/'in'/'Annotations').mkdir(exist_ok=True)
    for i,o in enumerate((name, 'a.png')):
        (d/'in'/'Annotations'/f'{i}.xml').write_text(XML.format(w=4).replace('a.png', o))
    return read_voc(d/'in', images='.', **kw)

FILES = [coco_of, via_of, csv_of, dlc_of, yolo_of, voc_of]

@pytest.mark.filterwarnings('ignore:.*have no xml file')
@pytest.mark.parametrize('read', FILES)
@pytest.mark.parametrize('name', ['../out/x.png', 'sub/../../out/x.png', 'link.png', 'absolute'])
def test_a_name_that_leads_out_of_the_folder_is_refused_dropped_or_allowed(apart, read, name):
    if name == 'absolute':
        if read is voc_of: return   # <filename> has folders of other machines, which count for nothing
        name = str(apart/'out'/'x.png')
    if read is voc_of and name.startswith('sub/..'): return   # likewise
    file = r'(x\.json|x\.csv|x\.txt|0\.xml)'
    message = f'{file}.*outside the folder .*in; copy the file there, .*allow_outside=True'
    with pytest.raises(AnnotationError, match=message): read(apart, name)
    with pytest.warns(UserWarning, match='1 of 2 images are dropped: .*outside the folder'):
        a, = read(apart, name, on_error='drop')
    assert a.path.name == 'a.png'
    both = read(apart, name, allow_outside=True)
    assert both[0].path.samefile(apart/'out'/'x.png') and len(both) == 2

@pytest.mark.filterwarnings('ignore:.*have no xml file')
@pytest.mark.parametrize('read', FILES)
@pytest.mark.parametrize('name', ['sub/b.png', 'sub/../sub/b.png', 'near.png', 'absolute'])
def test_a_name_that_leads_into_the_folder_is_read_however_it_is_written(apart, read, name):
    if name == 'absolute': name = str(apart/'in'/'sub'/'b.png')
    a = read(apart, name)[0]
    assert a.path.samefile(apart/'in'/'sub'/'b.png')
    (apart/'door').symlink_to('in')   # a folder that is a link itself is what the user named
    if read is coco_of: assert len(read_coco(apart/'in'/'x.json', apart/'door')) == 2

def test_links_in_a_folder_of_images_masks_or_heads_are_refused_where_they_lead_out_of_it(apart):
    (apart/'m').mkdir()
    for o in ('a', 'link', 'near'): Image.new('L', (4, 4)).save(apart/'m'/f'{o}.png')
    for read in (lambda **kw: read_masks(apart/'in', apart/'m', ['a']*1, **kw),
                 lambda **kw: read_instance_masks(apart/'in', apart/'m', 'a', **kw)):
        with pytest.raises(AnnotationError, match=r'link.png is a link to .*out/x.png.*outside the folder'): read()
        assert len(read(allow_outside=True)) == 3
    # what the user passes is trusted
    assert len(read_masks([apart/'in'/'link.png'], [apart/'m'/'a.png'], ['a'])) == 1
    # masks of one object each, in a folder
    (apart/'objects').mkdir(); Image.new('L', (4, 4), 1).save(apart/'one.png')
    (apart/'objects'/'o.png').symlink_to(apart/'one.png')
    read = lambda **kw: read_instance_masks([apart/'in'/'a.png'], None, 'a', mask_of=lambda p: apart/'objects', **kw)
    with pytest.raises(AnnotationError, match='o.png is a link to .*outside the folder .*objects'): read()
    assert len(read(allow_outside=True)[0].masks) == 1
    d = apart/'biwi'/'01'; d.mkdir(parents=True)
    (d/'rgb.cal').write_text('500 0 2\n0 500 2\n0 0 1\n0 0 0 0\n1 0 0\n0 1 0\n0 0 1\n0 0 0\n4 4\n')
    Image.new('L', (4, 4)).save(d/'f_rgb.png'); (apart/'pose').write_text('1 0 0\n0 1 0\n0 0 1\n1 1 900\n')
    (d/'f_pose.txt').symlink_to(apart/'pose')
    with pytest.raises(AnnotationError, match='f_pose.txt is a link to .*pose'): read_biwi(apart/'biwi')
    assert len(read_biwi(apart/'biwi', allow_outside=True)) == 1

def test_data_yaml_leads_nowhere_else_and_its_list_of_labels_neither(apart):
    d = apart/'in'
    (apart/'out'/'x.txt').write_text('')
    for text in ('path: ../out\ntrain: .\n', 'train: ../out\n', f'train: {apart}/out\n', 'train: ../out/list.txt\n'):
        (apart/'out'/'list.txt').write_text('x.png\n')
        (d/'data.yaml').write_text(text + 'names: [c]\n')
        with pytest.raises(AnnotationError, match=r'data.yaml: (path|train) .*outside the folder'): read_yolo(d)
        assert len(read_yolo(d, allow_outside=True)) == 1
    # Roboflow's ../train/images is below data.yaml
    (d/'train'/'images').mkdir(parents=True); (d/'train'/'labels').mkdir()
    Image.new('L', (4, 4)).save(d/'train'/'images'/'r.png'); (d/'train'/'labels'/'r.txt').symlink_to('/etc/passwd')
    (d/'data.yaml').write_text('train: ../train/images\nnames: [c]\n')
    with pytest.raises(AnnotationError, match="r.txt is a link to '/etc/passwd', outside the folder"): read_yolo(d)
    (d/'train'/'labels'/'r.txt').unlink(); (d/'train'/'labels'/'r.txt').write_text('')
    assert [a.path.name for a in read_yolo(d)] == ['r.png']
    # folders of labels are the user's word
    (apart/'labels').mkdir(); (apart/'labels'/'r.txt').write_text('0 .5 .5 1 1\n')
    assert read_yolo(d, labels=str(apart/'labels'))[0].labels == ['c']

def test_names_in_a_data_frame_may_lead_anywhere(apart):
    import pandas as pd
    assert len(read_df(pd.DataFrame(dict(f=[apart/'out'/'x.png', '../out/x.png'][:1])), apart/'in')) == 1
    assert len(read_df(pd.DataFrame(dict(f=['../out/x.png'])), apart/'in')) == 1

# --- masks

HOSTILE = [[2**63 - 1, 2**63 - 1, 2, 10**4], [2**62]*4 + [100], [10**18], [10**30], [-1, 101], [100.], [50, 50.],
           [np.nan], [1e400], [[100]], [], None, 3, 'x', '', b'', '0', 'o'*50, 'P'*10**5, '\x7f', 'é', '\ud800',
           b'\xff\x00', bytearray(b'0'), np.array([100.]), np.array([True]*100), np.array([2**63], np.uint64),
           np.array('x'), np.empty((2, 50), int), {}, True, ['1', '99'], ['a'], [None], (100, 0, 1), 10**400,
           [10**400], '_'*8 + '0']
SIZES = [[10, 10], [10**9, 10**9], [0, 0], [-10, -10], [10.5, 10], ['10', '10'], [np.inf, 1], [np.nan]*2, 10, [10],
         None, [[10], [10]], [2**32, 2**32], [10**400, 1], 'ab', [True, True]]

def each_use(m, size):
    "Every public function on the mask `m`"
    a = lambda: Annotation(None, size, ['a'], [[0, 0, 5, 5]], masks=[m])
    return dict(decode=lambda: decode_mask(m, size), check=lambda: check_mask(m, size),
                extent=lambda: mask_extent(m, size), counts=lambda: rle_counts(m), columns=lambda: rle_columns(m, size),
                annotation=lambda: check_annotations([a()]),
                join=lambda: join_polygons(m), polygons=lambda: mask_polygons(m), encode=lambda: encode_rle(m),
                instances=lambda: encode_instances(m))

@pytest.mark.parametrize('size', SIZES, ids=[f'size{i}' for i in range(len(SIZES))])
def test_run_lengths_without_meaning_are_our_own_error_at_once(size):
    t = time.perf_counter()
    for counts in HOSTILE:
        rle = dict(size=size, counts=counts)
        for name,use in each_use(rle, (10, 10)).items():
            try: res = use()
            except ValueError as e: assert len(str(e)) < 600, name
            else: assert name == 'annotation' and len(res) or decode_valid(rle), (name, counts)
    assert time.perf_counter() - t < 5

def decode_valid(rle):
    "Whether pycocotools, or the plain rule, finds 100 pixels too"
    n = rle_counts(rle)
    pixels = np.repeat(np.arange(len(n))%2 == 1, n)
    return n.sum() == 100 and np.array_equal(decode_mask(rle, (10, 10)).T.ravel(), pixels)

def test_an_image_size_beyond_all_images_is_an_error_before_any_array():
    for size in ((10**9, 10**9), (2**31, 2**31), (2**16, 2**16), (-1, 4), (1.5, 4), None, 4, ('4', '4'), (np.nan, 4)):
        square = [[0, 0, 3, 0, 3, 3]]
        for use in (lambda: decode_mask(square, size), lambda: mask_extent(square, size),
                    lambda: check_mask(square, size), lambda: paste_rle(np.ones((1, 2, 2)), [[0, 0, 4, 4]], size)):
            with pytest.raises(ValueError, match='size: expected'): use()

def test_polygons_without_meaning_are_our_own_error():
    for p in ([], [[]], [[1, 2]], [[1, 2, 3, 4, 5]], [['a']*6], [[None]*6], [[10**400]*6], [[np.nan]*6], [[1e6]*6],
              [{}], [3], [[[1, 2], [3]]], [np.zeros((3, 3))], ['abcdef'], [b'abcdef'], [[1j]*6], [[[0, 0]]*2]):
        for name,use in each_use(p, (10, 10)).items():
            try: use()
            except ValueError as e: assert len(str(e)) < 600, (name, p)
            else: assert p == [] or name == 'annotation' or name == 'instances' and np.ndim(p) == 2, (name, p)
    with pytest.raises(ValueError, match='polygons: expected one or more, got none'): join_polygons([])

def test_random_run_lengths_decode_as_pycocotools_has_them_or_are_refused():
    rng = np.random.default_rng(0)
    for _ in range(300):
        h,w = rng.integers(1, 9, 2).tolist()
        m = rng.random((h, w)) < rng.random()
        text = coco_mask.encode(np.asfortranarray(m, np.uint8))['counts']
        runs = rle_counts(dict(size=[h, w], counts=text)).tolist()
        for counts in (text, text.decode(), runs, tuple(runs), np.array(runs), np.array(runs, np.uint16),
                       bytearray(text)):
            rle = dict(size=[h, w], counts=counts)
            assert np.array_equal(decode_mask(rle, (w, h)), m) and mask_extent(rle, (w, h)).shape == (4,)
        # runs in another order, with runs of length 0 between, are another mask of the same size
        other = dict(size=[h, w], counts=rng.permutation([*runs, 0, 0]).tolist())
        expected = coco_mask.decode(coco_mask.frPyObjects(other, h, w)).astype(bool)
        assert np.array_equal(decode_mask(other, (w, h)), expected)
        broken = bytearray(text)
        broken[rng.integers(len(broken))] = rng.integers(256)
        if bytes(broken) == text: continue
        try: n = rle_counts(dict(size=[h, w], counts=bytes(broken)))
        except ValueError: continue
        assert n.sum() == h*w and (n >= 0).all()

def of_12x10(counts): return dict(size=[10, 12], counts=counts)

@pytest.mark.parametrize('segmentation', [of_12x10([2**63 - 1, 2**63 - 1, 122]), of_12x10('P0`'), of_12x10([40, 81]),
                                          [[0, 0, 1e400, 0, 4, 3]], [[0, 0, float('nan'), 0, 4, 3]],
                                          [[0, 0, 1e7, 0, 4, 3]], [[0, 0, [], 0, 4, 3]]])
def test_read_coco_refuses_a_mask_that_would_not_decode(tmp_path, segmentation):
    make_coco(tmp_path)
    data = json.loads((tmp_path/'x.json').read_text())
    data['annotations'][0]['segmentation'] = segmentation
    (tmp_path/'x.json').write_text(json.dumps(data))
    with pytest.raises(AnnotationError, match='x.json, annotation 1'): read_coco(tmp_path/'x.json', tmp_path/'images')
    with pytest.warns(UserWarning, match='1 of 3 images are dropped'):
        assert len(read_coco(tmp_path/'x.json', tmp_path/'images', on_error='drop')) == 2

# --- grey files whose values Pillow stretches

def tiff_of(rows, bits, white_is_zero=False):
    "A TIFF of `bits` whose values are `rows`, written by hand"
    h,w = np.shape(rows)
    if bits == 16: data = np.asarray(rows, '<u2').tobytes()
    else:
        groups = np.asarray(rows).reshape(h, -1, 8//bits)
        data = (groups << np.arange(8 - bits, -1, -bits)).sum(2).astype(np.uint8).tobytes()
    tags = [(256, 3, w), (257, 3, h), (258, 3, bits), (259, 3, 1), (262, 3, int(not white_is_zero)), (273, 4, 134),
            (277, 3, 1), (278, 3, h), (279, 4, len(data)), (282, 4, 1)]
    head = b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(struct.pack('<HHII', t, k, 1, v) for t,k,v in tags)
    return head + struct.pack('<I', 0) + data

@pytest.mark.parametrize('bits', [2, 4])
def test_a_mask_in_a_tiff_of_few_bits_has_the_values_of_the_file(tmp_path, bits):
    rows = np.arange(16).reshape(2, 8)%2**bits
    (tmp_path/'m.tif').write_bytes(tiff_of(rows, bits))
    assert np.array_equal(decode_class_mask(tmp_path/'m.tif'), rows)

@pytest.mark.parametrize('maxval', [1, 2, 3, 10, 100, 254, 255, 256, 1000, 4095, 40000, 65535])
@pytest.mark.parametrize('plain', [False, True])
def test_a_mask_in_a_pgm_has_the_values_of_the_file_whatever_its_maximum(tmp_path, maxval, plain):
    v = np.arange(maxval + 1)
    data = ' '.join(map(str, v)).encode() if plain else v.astype('>u1' if maxval < 256 else '>u2').tobytes()
    (tmp_path/'m.pgm').write_bytes(f"P{2 if plain else 5}\n{len(v)} 1\n{maxval}\n".encode() + data)
    assert np.array_equal(decode_class_mask(tmp_path/'m.pgm')[0], v)

def test_a_tiff_of_16_bits_whose_white_is_zero_is_read_as_it_is_shown(tmp_path):
    rows = np.linspace(0, 65535, 16).astype(int).reshape(2, 8)
    for white_is_zero in (False, True):
        (tmp_path/f'{white_is_zero}.tif').write_bytes(tiff_of(rows, 16, white_is_zero))
    grey,negative = (np.asarray(read_image(tmp_path/f'{o}.tif'))[...,0] for o in (False, True))
    assert np.array_equal(negative, 255 - grey) and grey[0,0] == 0 and grey[-1,-1] == 255
    data = np.asarray(read_image(tmp_path/'True.tif', grey_range=(0, 65535)))[...,0]
    assert data[0,0] == 255 and data[-1,-1] == 0
