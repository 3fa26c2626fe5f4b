"""Signatures as the source has them: annotations, defaults and the comments beside parameters

Comments are found by the positions that `ast` reports, with one parse per file: what follows the last default or
annotation of a line can only be punctuation and a comment. `fastcore.docments` reads the same style, but only the first
line of a comment that goes on below, and tokenizes every function anew"""
from __future__ import annotations
import ast, re
from dataclasses import dataclass, field

__all__ = ['Parameter', 'Signature', 'read_signatures']

# --- comments in a file

@dataclass(slots=True)
class Parameter:
    "One parameter of a function, or field of a dataclass"
    name:str         # as in the signature, without stars
    stars:str = ''   # '*' or '**' in front of it
    type:str = ''    # its annotation; '' if it has none
    default:str = '' # source of its default; '' if it has none
    text:str = ''    # its comment, lines separated by '\n'; '' if it has none

@dataclass(slots=True)
class Signature:
    "What the source of a function or class tells about its parameters"
    params:list[Parameter] = field(default_factory=list) # without `self` and `cls`
    returns:str = ''       # annotation of what is returned
    text:str = ''          # comment beside it
    prose:str = None       # docstring without its indentation; None as long as nobody asked for it
    is_class:bool = False  # the parameters are those of `__init__`, or the fields of a dataclass

class _File:
    "Source lines of a file, and what is found at the positions of nodes"
    def __init__(self, source): self.lines = source.split('\n')

    def after(self, i, col):   # line number from 1; column in bytes, as `ast` counts
        line = self.lines[i-1]
        return line[col:] if line.isascii() else line.encode()[col:].decode()

    def source(self, node):
        if node is None: return ''
        line = self.lines[node.lineno-1]
        if node.lineno == node.end_lineno and line.isascii(): return line[node.col_offset:node.end_col_offset]
        return ast.unparse(node)

    def comments(self, nodes, first, last):
        """{line: comment} of the lines `first` to `last`, and the set of lines with nothing but a comment. A comment
        within a node of several lines (a default that is a dict, say) is not one of these"""
        ends,inside = {},set()
        for o in nodes:
            ends[o.end_lineno] = max(ends.get(o.end_lineno, 0), o.end_col_offset)
            inside.update(range(o.lineno, o.end_lineno))
        found,alone = {},set()
        for i in range(first, last+1):
            if i in inside: continue
            before,mark,text = self.after(i, ends.get(i, 0)).partition('#')
            if not mark: continue
            found[i] = text.strip()
            if i not in ends and not before.strip(): alone.add(i)
        return found,alone

def _below(found, alone, i):
    "The comment at line `i` with the lines of comment below it, and the line after these"
    lines = [found[i]]
    while (i := i+1) in alone: lines.append(found[i])
    return '\n'.join(lines),i

def _texts(file, ends, nodes, first, last):
    "Comment of each line at which one of `ends` stands: beside and below it, or above it where the line above has none"
    found,alone = file.comments(nodes, first, last)
    texts,i = {},first
    while i <= last:
        if i in alone:     # above a parameter: the comment of the one before is read already
            text,i = _below(found, alone, i)
            if i in ends and i not in found: texts[i] = text
        elif i in found: texts[i],i = _below(found, alone, i)
        else: i += 1
    return texts

def _function(file, node, method) -> Signature:
    a = node.args
    plain = a.posonlyargs + a.args
    pairs = list(zip(plain, [None]*(len(plain) - len(a.defaults)) + a.defaults, ['']*len(plain)))
    if method: pairs = pairs[1:]
    if a.vararg: pairs.append((a.vararg, None, '*'))
    pairs += zip(a.kwonlyargs, a.kw_defaults, ['']*len(a.kwonlyargs))
    if a.kwarg: pairs.append((a.kwarg, None, '**'))
    nodes = [*plain[:1], *(o for arg,default,_ in pairs for o in (arg, default) if o is not None)]
    if node.returns is not None: nodes.append(node.returns)
    # the colon that ends the header
    colon,col = max(((o.end_lineno, o.end_col_offset) for o in nodes), default=(node.lineno, node.col_offset))
    while ':' not in (rest := file.after(colon, col)).partition('#')[0]: colon,col = colon+1,0
    ends = {(default or arg).end_lineno for arg,default,_ in pairs}
    texts = _texts(file, ends, nodes, node.lineno, colon-1)
    res = Signature([Parameter(arg.arg, stars, file.source(arg.annotation), file.source(default),
                               texts.get((default or arg).end_lineno, '')) for arg,default,stars in pairs],
                    file.source(node.returns))
    if node.body[0].lineno > colon and '#' in rest:
        at,lines = file.lines[colon-1].rindex(rest) + rest.index('#'),[rest.partition('#')[2].strip()]
        for line in file.lines[colon:]:   # below it and aligned with it: others are of the code that follows
            if line.find('#') != at or line[:at].strip(): break
            lines.append(line[at+1:].strip())
        res.text = '\n'.join(lines)
    return res

def _class(file, node, init) -> Signature:
    fields = [o for o in node.body if isinstance(o, ast.AnnAssign) and isinstance(o.target, ast.Name)]
    is_data = any('dataclass' in file.source(o) for o in node.decorator_list) or (
              any(file.source(o) == 'NamedTuple' for o in node.bases))
    params = init.params if init else []
    if is_data and not init and fields:
        ends = {o.end_lineno for o in fields}
        texts = _texts(file, ends, fields, fields[0].lineno, max(ends) + _comment_lines(file, max(ends)))
        params = [Parameter(o.target.id, '', file.source(o.annotation), _default(file, o.value),
                            texts.get(o.end_lineno, '')) for o in fields if 'ClassVar' not in file.source(o.annotation)]
    return Signature(params, is_class=bool(is_data or init))

def _default(file, node):
    "Source of a field's default"
    if not isinstance(node, ast.Call) or file.source(node.func) != 'field': return file.source(node)
    made = {o.arg: file.source(o.value) for o in node.keywords}
    return f"{made['default_factory']}()" if 'default_factory' in made else made.get('default', '')

def _comment_lines(file, i):
    "How many lines of nothing but a comment follow line `i`"
    n = 0
    while i+n < len(file.lines) and file.lines[i+n].lstrip().startswith('#'): n += 1
    return n

def read_signatures(
    source:str, # of a module
) -> dict[str,Signature]: # by qualified name; of the functions and classes of the module, and the methods of these
    "What the source of a module tells about parameters: annotations, defaults and the comments beside them"
    file,res = _File(source),{}
    def read(body, prefix):
        for node in body:
            if isinstance(node, (ast.If, ast.Try, ast.With)): read(node.body, prefix)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                static = any(file.source(o) == 'staticmethod' for o in node.decorator_list)
                res[prefix + node.name] = _function(file, node, bool(prefix) and not static)
            elif isinstance(node, ast.ClassDef):
                name = prefix + node.name
                read(node.body, f'{name}.')
                res[name] = _class(file, node, res.get(f'{name}.__init__'))
    try: tree = ast.parse(_headers(file.lines))
    except SyntaxError: tree = ast.parse(source)
    read(tree.body, '')
    return res

_HEADER = re.compile(r'( {4}|)(@|(?:async )?def (?=\w+\()|class (?=\w+[(:]))')
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")

def _end(lines, i):
    "The line in which all brackets are closed that are opened from line `i` on, and its code"
    depth = 0
    while True:
        code = _STRING.sub("''", lines[i]).partition('#')[0]
        depth += sum(map(code.count, '([{')) - sum(map(code.count, ')]}'))
        if depth <= 0 or i+1 == len(lines): return i,code.rstrip()
        i += 1

def _headers(lines):
    """The lines with nothing left but the headers of functions and classes, and the bodies of dataclasses, each in its
    place: parsed in a tenth of the time. All lines where a header is indented below an `if` or the like. Where a header
    is cut wrongly, what is left is no Python, and `read_signatures` parses everything"""
    res,i,owner,data = ['']*len(lines),0,'',False   # `owner`: what the last line without indentation began
    while i < len(lines):
        m = _HEADER.match(lines[i])
        if m is None:
            if lines[i][:1] not in ' #)]}': owner,data = 'other',False   # '' is in every string
            if data: res[i] = lines[i]
            i += 1
            continue
        indent,what = m.groups()
        if indent and owner == 'other': return '\n'.join(lines)
        last,code = _end(lines, i)
        if not (indent and owner == 'def'):
            res[i:last+1] = lines[i:last+1]
            if what != '@' and code.endswith(':') and last+1 < len(lines): res[last+1] = f'{indent}    ...'
        if not indent and what != '@':
            owner = what.split()[-1]
            data = owner == 'class' and ('NamedTuple' in code or 'dataclass' in lines[i-1])
        i = last+1
    return '\n'.join(res)
