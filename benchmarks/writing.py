"""The cost of writing a data set of several files so that it survives a kill and a power failure.

    python benchmarks/writing.py --n 1000
Small files, as of labels and masks; medians of interleaved rounds. The ratio is to files that are written in place and
not flushed, and to one flush (fsync) per file, each in a temporary file that is renamed"""
import argparse, os, tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from machine import describe, interleaved
from vision_tasks.data.writing import replacing, writing_set

def in_place(folder, files):
    for name,data in files: (folder/name).write_bytes(data)

def one_by_one(folder, files):
    for name,data in files:
        with replacing(folder/name, tidy=False) as part: part.write_bytes(data)

def as_a_set(folder, files):
    with writing_set([folder]) as write:
        for name,data in files:
            with write(folder/name) as part: part.write_bytes(data)

def flush(file):
    with file.open('rb+') as f: os.fsync(f.fileno())

def flushed_by(how):
    "A writer in place, and then one way to bring the files to the disk"
    def write(folder, files):
        in_place(folder, files)
        how([folder/name for name,_ in files])
    return write

def in_turn(files):
    for o in files: flush(o)

def in_threads(files, n):
    with ThreadPoolExecutor(n) as ex: list(ex.map(flush, files))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--n', type=int, default=1000, help="files")
    ap.add_argument('--bytes', type=int, default=2000, help="of each")
    ap.add_argument('--rounds', type=int, default=7)
    ap.add_argument('--folder', type=Path, help="on the disk that counts; default: the system's temporary folder")
    args = ap.parse_args()
    files = [(f'{i:06d}.txt', os.urandom(args.bytes)) for i in range(args.n)]
    ways = {'in place, not flushed': in_place, 'in place, fsync in turn': flushed_by(in_turn),
            'in place, fsync in 16 threads': flushed_by(partial(in_threads, n=16)),
            '`replacing`, one by one': one_by_one, '`writing_set`': as_a_set}
    if hasattr(os, 'sync'): ways['in place, then one `os.sync`'] = flushed_by(lambda _: os.sync())
    print(f'{describe(())}; {args.n} files of {args.bytes} bytes, written over older ones, {args.rounds} rounds\n')
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        folders = {}
        for name,write in ways.items():
            folders[name] = Path(root)/str(len(folders))
            folders[name].mkdir()
            in_place(folders[name], files)
        if hasattr(os, 'sync'): os.sync()
        times = interleaved({name: partial(write, folders[name], files) for name,write in ways.items()}, args.rounds)
    plain,each = times['in place, not flushed'],times['`replacing`, one by one']
    print('| files | ms | ms a file | to in place | to `replacing` |\n|---|---:|---:|---:|---:|')
    for name,t in times.items():
        print(f'| {name} | {t*1e3:.0f} | {t*1e3/args.n:.3f} | {t/plain:.1f} | {t/each:.2f} |')

if __name__ == '__main__': main()
