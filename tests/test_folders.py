"A folder for each class: read as torchvision and fastai read it, written whole or not at all"
import os, shutil
from dataclasses import replace
from pathlib import Path
import pytest
from fastai.vision.all import GrandparentSplitter, get_image_files, parent_label
from PIL import Image
from torchvision.datasets import ImageFolder
from vision_tasks.data.annotation import Annotation
from vision_tasks.data.errors import AnnotationError
from vision_tasks.data.formats.folders import read_folders, write_folders
from vision_tasks.data.writing import MARKER

def image(file, k=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (6, 4), (k*37%256, k, 0)).save(file)
    return file

def tree(root, names):
    for k,o in enumerate(names): image(root/o, k)
    return root

def said(anns, root): return [(str(a.path.relative_to(root)), *a.labels, a.split) for a in anns]
def listed(root): return sorted(str(o.relative_to(root)) for o in root.rglob('*') if not o.is_dir())

CLASSES = ['cat/1.png', 'cat/2.JPG', 'dog/1.png', 'dog/deep/3.png']
SPLITS  = ['train/cat/1.png', 'train/dog/2.png', 'valid/dog/1.png', 'test/cat/9.png']

# --- reading

def test_it_reads_what_torchvisions_image_folder_reads(tmp_path):
    theirs = ImageFolder(tree(tmp_path, CLASSES))
    ours = read_folders(tmp_path)
    assert [(str(a.path), a.labels[0]) for a in ours] == [(p, theirs.classes[i]) for p,i in theirs.samples]
    assert all(a.size == (6, 4) and a.split is None and a.bboxes is None for a in ours)

def test_splits_and_classes_are_those_of_fastai(tmp_path):
    ours = read_folders(tree(tmp_path, SPLITS))
    files = get_image_files(tmp_path)
    train,valid = GrandparentSplitter()(files)
    for s,idxs in (('train', train), ('valid', valid)):
        theirs = {(files[i], parent_label(files[i])) for i in idxs}
        assert {(a.path, a.labels[0]) for a in ours if a.split == s} == theirs
    assert said(ours, tmp_path) == [('train/cat/1.png', 'cat', 'train'), ('train/dog/2.png', 'dog', 'train'),
                                    ('valid/dog/1.png', 'dog', 'valid'), ('test/cat/9.png', 'cat', 'test')]

def test_a_split_is_read_alone_and_val_is_valid(tmp_path):
    tree(tmp_path, ['train/cat/1.png', 'Val/cat/2.png'])
    for s in ('valid', 'val'): assert said(read_folders(tmp_path, s), tmp_path) == [('Val/cat/2.png', 'cat', 'valid')]
    with pytest.raises(AnnotationError, match="has no folder test, only .*train"): read_folders(tmp_path, 'test')
    with pytest.raises(AnnotationError, match="has no folder train that holds folders"):
        read_folders(tmp_path/'train', 'train')

def test_classes_may_be_called_train_and_test(tmp_path):
    tree(tmp_path, ['train/1.png', 'test/2.png', 'bus/3.png'])
    assert [a.labels[0] for a in read_folders(tmp_path)] == ['bus', 'test', 'train']

def test_splits_beside_other_folders_of_images_are_an_error(tmp_path):
    tree(tmp_path, ['train/cat/1.png', 'valid/cat/2.png', 'models/x.png'])
    with pytest.raises(AnnotationError, match="holds splits, .*'train', 'valid'.*other folders of images, .*'models'"):
        read_folders(tmp_path)
    (tmp_path/'models'/'x.png').unlink()
    (tmp_path/'models'/'x.pth').touch()
    assert len(read_folders(tmp_path)) == 2

def test_an_image_outside_the_class_folders_cannot_be_read(tmp_path):
    tree(tmp_path/'a', [*CLASSES, 'x.png'])
    with pytest.raises(AnnotationError, match="x.png: is in no folder of a class"): read_folders(tmp_path/'a')
    with pytest.warns(UserWarning, match="1 of 5 images are dropped.*no folder of a class"):
        assert len(read_folders(tmp_path/'a', on_error='drop')) == 4
    for stray in ('x.png', 'test/x.png'):
        tree(tmp_path/stray[:4].strip('./'), [*SPLITS[:2], stray])
        with pytest.raises(AnnotationError, match="x.png: is in no folder"):
            read_folders(tmp_path/stray[:4].strip('./'))

def test_broken_images_are_named_or_dropped_and_hidden_files_are_skipped(tmp_path):
    tree(tmp_path, CLASSES)
    (tmp_path/'cat'/'bad.png').write_bytes(b'no image')
    (tmp_path/'cat'/'notes.txt').write_text('x')
    for o in ('.DS_Store', 'cat/.hidden.png', '.cache/a.png'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).write_bytes(b'')
    with pytest.raises(AnnotationError, match="bad.png: cannot be read as an image"): read_folders(tmp_path)
    with pytest.warns(UserWarning, match="1 of 5 images are dropped"):
        assert len(read_folders(tmp_path, on_error='drop')) == 4

def test_links_out_of_the_folder_are_read_only_where_that_is_allowed(tmp_path):
    root = tree(tmp_path/'in', CLASSES)
    tree(tmp_path/'out', ['1.png'])
    os.symlink(tmp_path/'out', root/'owl')                 # a folder of a class
    with pytest.raises(AnnotationError, match="in/owl/1.png is a link to .*out/1.png', outside the folder"):
        read_folders(root)
    assert [a.labels[0] for a in read_folders(root, allow_outside=True)].count('owl') == 1
    with pytest.warns(UserWarning, match="outside the folder"): assert len(read_folders(root, on_error='drop')) == 4
    (root/'owl').unlink()
    os.symlink(tmp_path/'out'/'1.png', root/'cat'/'5.png') # a file
    with pytest.raises(AnnotationError, match="outside the folder"): read_folders(root)
    (root/'cat'/'5.png').unlink()
    os.symlink(tmp_path/'out', root/'cat'/'more')          # a folder below that of a class
    with pytest.raises(AnnotationError, match="outside the folder"): read_folders(root)
    assert len(read_folders(root, allow_outside=True)) == 5

def test_a_link_that_leads_back_is_no_endless_walk(tmp_path):
    tree(tmp_path, CLASSES)
    os.symlink(tmp_path, tmp_path/'dog'/'deep'/'round')
    assert said(read_folders(tmp_path), tmp_path) == [(o, o[:3], None) for o in CLASSES]

def test_a_file_that_two_names_lead_to_is_an_error(tmp_path):
    tree(tmp_path, CLASSES)
    os.symlink(tmp_path/'cat'/'1.png', tmp_path/'dog'/'7.png')
    with pytest.raises(AnnotationError, match="cat/1.png and .*dog/7.png are the same image file"):
        read_folders(tmp_path)

def test_no_folder_no_images_and_a_file_are_told(tmp_path):
    with pytest.raises(AnnotationError, match="gone: no such folder"): read_folders(tmp_path/'gone')
    with pytest.raises(AnnotationError, match="no images; expected a folder of images for each class"):
        read_folders(tmp_path)
    with pytest.raises(AnnotationError, match="no such folder"): read_folders(image(tmp_path/'a.png'))

# --- writing

@pytest.mark.parametrize('names', [CLASSES[:3], SPLITS], ids=['classes', 'splits'])
def test_what_is_written_is_read_back_and_takes_no_space(tmp_path, names):
    anns = read_folders(tree(tmp_path/'a', names))
    assert write_folders(anns, tmp_path/'b') == tmp_path/'b'
    back = read_folders(tmp_path/'b')
    assert said(back, tmp_path/'b') == said(anns, tmp_path/'a') and listed(tmp_path/'b') == listed(tmp_path/'a')
    assert all(a.path.samefile(b.path) for a,b in zip(anns, back))

def test_writing_again_and_in_place_changes_nothing(tmp_path):
    anns = read_folders(tree(tmp_path/'a', SPLITS))
    for o in (anns, anns, read_folders(write_folders(anns, tmp_path/'b'))):
        write_folders(o, tmp_path/'b')
        assert listed(tmp_path/'b') == sorted(SPLITS)

def test_without_links_images_are_copied(tmp_path, monkeypatch):
    def link(*_): raise OSError("another disk")
    monkeypatch.setattr(os, 'link', link)
    anns = read_folders(tree(tmp_path/'a', CLASSES[:3]))
    for _ in range(2): write_folders(anns, tmp_path/'b')
    back = read_folders(tmp_path/'b')
    assert [b.path.read_bytes() for b in back] == [a.path.read_bytes() for a in anns]
    assert not back[0].path.samefile(anns[0].path)

def test_where_some_name_a_split_the_others_become_train(tmp_path):
    a,b,*_ = read_folders(tree(tmp_path/'a', CLASSES[:3]))
    write_folders([replace(a, split='valid'), b], tmp_path/'b')
    assert listed(tmp_path/'b') == ['train/cat/2.JPG', 'valid/cat/1.png']

def test_two_images_that_would_become_one_file_are_an_error_before_anything_is_written(tmp_path):
    anns = read_folders(tree(tmp_path/'a', ['x/1.png', 'y/1.png']))
    with pytest.raises(AnnotationError, match="would both become .*same/1.png.*nothing was written"):
        write_folders([replace(a, labels=['same']) for a in anns], tmp_path/'b')
    with pytest.raises(AnnotationError, match="appears twice"): write_folders([anns[0], anns[0]], tmp_path/'b')
    assert not (tmp_path/'b').exists()

@pytest.mark.parametrize('labels, message', [
    ([], "expected one label, .* got no label; drop the image"), (['a', 'b'], r"got labels \['a', 'b'\]; keep one"),
    (['a/b'], "'a/b' cannot name a folder; rename"), (['..'], "cannot name"), ([''], "cannot name"),
    ([' a'], "cannot name"), (['a\\b'], "cannot name"), (['.a'], "cannot name"), (['a\0'], "cannot name")])
def test_a_label_that_names_no_folder_is_an_error(tmp_path, labels, message):
    a,*rest = read_folders(tree(tmp_path/'a', CLASSES))
    with pytest.raises(AnnotationError, match=message): write_folders([*rest, replace(a, labels=labels)], tmp_path/'b')
    assert not (tmp_path/'b').exists()

def test_other_images_in_the_folder_are_an_error(tmp_path):
    anns = read_folders(tree(tmp_path/'a', CLASSES[:3]))
    write_folders(anns, tmp_path/'b')
    turned = [replace(a, labels=['owl']) for a in anns[:2]]
    with pytest.raises(AnnotationError, match="holds cat/1.png, which is not among the images to write"):
        write_folders(turned, tmp_path/'b')
    image(tmp_path/'c'/'cat'/'1.png', 99)
    with pytest.raises(AnnotationError, match="cat/1.png exists, and is another image"):
        write_folders(anns, tmp_path/'c')
    with pytest.raises(AnnotationError, match="has no file"): write_folders([Annotation(None, (1, 1), ['a'])], tmp_path)
    with pytest.raises(AnnotationError, match="gone.png: no such image file"):
        write_folders([Annotation(tmp_path/'gone.png', (1, 1), ['a'])], tmp_path/'d')

def test_after_an_interruption_the_set_can_be_written_again(tmp_path):
    import json
    anns = read_folders(tree(tmp_path/'a', CLASSES[:3]))
    write_folders(anns, tmp_path/'b')
    (tmp_path/'b'/'cat'/'2.JPG').unlink()
    (tmp_path/'b'/'cat'/MARKER).write_text(json.dumps(dict(lock='..', names=['1.png', '2.JPG'])))
    with pytest.raises(AnnotationError, match="interrupted"): read_folders(tmp_path/'b')
    write_folders(anns, tmp_path/'b')
    assert said(read_folders(tmp_path/'b'), tmp_path/'b') == said(anns, tmp_path/'a')
    assert listed(tmp_path/'b') == listed(tmp_path/'a')

def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
    anns = read_folders(tree(tmp_path/'a', CLASSES[:3]))
    monkeypatch.setattr(os, 'link', lambda *_: (_ for _ in ()).throw(OSError()))
    n = []
    def full(src, dst):
        n.append(src)
        if len(n) > 1: raise OSError(28, "No space left on device")
        Path(dst).write_bytes(Path(src).read_bytes())
    monkeypatch.setattr(shutil, 'copyfile', full)
    with pytest.raises(OSError, match="cannot be written"): write_folders(anns, tmp_path/'b')
    assert listed(tmp_path/'b') == []
