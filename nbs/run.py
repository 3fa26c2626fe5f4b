"""Run the notebooks and store their outputs: `python nbs/run.py`, or `python nbs/run.py nbs/01_multilabel.ipynb`

What would change from run to run, or names a machine, does not get into the files: times and progress bars, versions of
Python, paths of temporary folders, addresses of objects; what a cell prints on stderr is dropped. Figures are stored
as small palette PNGs. A notebook is written only after it has run to its end"""
import argparse, base64, io, os, re, sys, tempfile, time
from pathlib import Path
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

NBS  = Path(__file__).resolve().parent
ROOT = NBS.parent
DPI  = 80      # of figures; the site shows them at their width in pixels

class ThisInterpreter(AsyncKernelManager):
    "The interpreter that runs this script as the kernel, whatever kernels are installed"
    shutdown_wait_time = 60.
    @property
    def kernel_spec(self):
        argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
        return KernelSpec(argv=argv, display_name='Python 3', language='python')

def run(
    nb,         # notebook; its cells get outputs
    folder:str, # empty folder for the working directory and temporary files
    timeout=600, # seconds per cell
):
    "Execute `nb` in `folder`, on a CPU with one thread; a cell that raises ends it"
    cwd,temp = Path(folder)/'cwd',Path(folder)/'temp'
    for o in (cwd, temp): o.mkdir()
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(temp), 'IPYTHONDIR': str(Path(folder)/'ipython'),
           'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONHASHSEED': '0', 'COLUMNS': '110',
           'PYTHONWARNINGS': 'ignore'}
    for o in ('MPLBACKEND', 'VISION_TASKS_DATA', 'VISION_TASKS_WEIGHTS'): env.pop(o, None)
    client = NotebookClient(nb, kernel_manager_class=ThisInterpreter, timeout=timeout,
                            resources={'metadata': {'path': str(cwd)}})
    figures = f"dict(bbox_inches='tight', dpi={DPI})"
    setup = nbformat.v4.new_code_cell(f'%config InlineBackend.print_figure_kwargs = {figures}')
    nb.cells.insert(0, setup)
    try: client.execute(env=env)
    finally: nb.cells.remove(setup)

# text that differs between runs -> what is stored
SAME = [(re.compile(r'<[^<>]* at 0x[0-9a-f]+>'), lambda m: re.sub(r' at 0x[0-9a-f]+', '', m[0])),
        (re.compile(r'0x[0-9a-f]{8,}'), lambda m: '0x...'),
        (re.compile(r'\x1b\[[0-9;]*m'), lambda m: '')]
# the last column of fastai's table of epochs
TIME_CELL = re.compile(r'(<th>time</th>)|<td>\d\d:\d\d(:\d\d)?</td>')

def clean_text(text, folder):
    "`text` without the folder of the run and what is random"
    # folders of `tempfile` below the one of the run have random names
    text = re.sub(re.escape(str(folder)) + r'/temp/tmp\w+', 'tmp', text).replace(f'{folder}/cwd/', '')
    text = text.replace(str(folder), 'tmp')
    for pattern,new in SAME: text = pattern.sub(new, text)
    return text

def clean_html(text, folder):
    "Tables of epochs lose their column of times, which no two runs share; those of pandas their style sheet"
    text = re.sub(r'<style scoped>.*?</style>\s*', '', clean_text(text, folder), flags=re.S)
    return TIME_CELL.sub('', text) if '<th>time</th>' in text else text

def small_png(data:str) -> str: # base64 -> base64
    "The same image with a palette of 128 colours where that is smaller"
    raw = base64.b64decode(data)
    im = Image.open(io.BytesIO(raw)).convert('RGB').quantize(128, dither=Image.Dither.NONE)
    out = io.BytesIO()
    im.save(out, 'PNG', optimize=True)
    return base64.b64encode(min(raw, out.getvalue(), key=len)).decode()

def clean(
    nb,     # executed notebook; its outputs are changed
    folder, # where it ran
):
    "Drop what differs between runs or machines, and make figures small"
    nb.metadata = nbformat.from_dict(dict(kernelspec=dict(display_name='Python 3', language='python', name='python3'),
                                          language_info=dict(name='python')))
    for c in nb.cells:
        c.metadata.pop('execution', None)
        if c.cell_type != 'code': continue
        outputs = []
        for o in c.outputs:
            if o.output_type == 'stream' and o.name == 'stderr': continue
            if o.output_type == 'stream': o.text = clean_text(o.text, folder)
            data = o.get('data', {})
            for kind in list(data):
                if kind == 'image/png': data[kind] = small_png(data[kind])
                elif kind == 'text/html': data[kind] = clean_html(data[kind], folder)
                elif kind.startswith('text/'): data[kind] = clean_text(data[kind], folder)
            if 'image/png' in data: data.pop('text/plain', None)
            # fastai's table of epochs comes as text too, with its times
            if 'fastprogress' in data.get('text/html', ''):
                for kind in ('text/markdown', 'text/plain'): data.pop(kind, None)
            if not is_bar(o): outputs.append(o)
        c.outputs = merged(outputs)
    for i,c in enumerate((c for c in nb.cells if c.cell_type == 'code'), 1):
        c.execution_count = i
        for o in c.outputs:
            if 'execution_count' in o: o.execution_count = i

def is_bar(o):
    "Whether an output is what a progress bar leaves: an empty display, or a style sheet"
    if o.output_type != 'display_data' or not set(o.data) <= {'text/html', 'text/plain', 'text/markdown'}: return False
    if 'text/markdown' in o.data and 'text/html' not in o.data: return False   # `display(Markdown(...))`
    html = o.data.get('text/html', '')
    return '<table' not in html and not re.sub(r'<style>.*?</style>|<[^>]*>|\s', '', html, flags=re.S)

def merged(outputs):
    "Pieces of one stream that come one after the other are one output: how they are cut depends on the machine's load"
    res = []
    for o in outputs:
        if res and o.output_type == res[-1].output_type == 'stream' and o.name == res[-1].name: res[-1].text += o.text
        else: res.append(o)
    return res

def machine_paths(nb) -> list[str]:
    "Paths of a machine that are left in the outputs"
    text = nbformat.writes(nb)
    return sorted(set(re.findall(r'(?<![\w.])/(?:home|root|Users|work|tmp|mnt|media|opt|usr)/[\w./-]*', text)))

def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('notebooks', nargs='*', type=Path, help="all of this folder by default")
    for file in parser.parse_args(args).notebooks or sorted(NBS.glob('*.ipynb')):
        start,nb = time.time(),nbformat.read(file, as_version=nbformat.NO_CONVERT)
        with tempfile.TemporaryDirectory() as folder:
            folder = os.path.realpath(folder)
            run(nb, folder)
            clean(nb, folder)
        left = machine_paths(nb)
        if left: sys.exit(f"{file.name}: outputs name paths of this machine, {left}; nothing was written")
        nbformat.validate(nb)
        part = file.with_suffix('.part')
        nbformat.write(nb, part)
        os.replace(part, file)
        print(f'{file.name}: {time.time()-start:.0f} s, {file.stat().st_size/1000:.0f} kB', flush=True)

if __name__ == '__main__': main()
