"Every vision task on top of fastai: `from vision_tasks.all import *`"
from . import documented

__version__ = '0.1.0'
documented.install()   # comments beside parameters become part of `__doc__` as the other modules are imported
