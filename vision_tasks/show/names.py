"Text on and below images: names that do not overlap"
from __future__ import annotations
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker
from matplotlib.text import Annotation as TextAt
from matplotlib.transforms import Bbox
from ..ops.colours import text_colour

__all__ = []

# --- names that hide neither each other nor points

class PlacedName(TextAt):
    "Text at one of several `places`, (x, y, horizontal, vertical alignment) each; not drawn where none of them is free"
    fits = True
    def __init__(self, text, places, colour, pad=0., **kwargs):
        x,y,ha,va = places[0]
        self.places,self.pad = places,pad
        super().__init__(text, (x, y), xytext=self._away(ha, va), textcoords='offset points', ha=ha, va=va,
                         clip_on=True, color=text_colour(to_rgb(colour)), zorder=5, **kwargs)
        self.set_in_layout(False)

    def _away(self, ha, va):
        "Offset in points from where the text is anchored"
        return dict(left=1, right=-1)[ha]*self.pad,dict(bottom=1, top=-1)[va]*self.pad

    def boxes(self, renderer, data):
        "The pixels that the text takes at each of its places"
        now,point = self.get_window_extent(renderer),renderer.points_to_pixels(1.)
        for x,y,ha,va in self.places:
            dx,dy = self._away(ha, va)
            x,y = data.transform((x, y)) + np.array([dx, dy])*point
            x,y = x - now.width*(ha == 'right'),y - now.height*(va == 'top')
            yield Bbox([[x-1, y-1], [x+now.width+1, y+now.height+1]])

    def move(self, place):
        x,y,ha,va = place
        if (self.xy, self.get_ha(), self.get_va()) == ((x, y), ha, va): return   # a change would trigger another draw
        self.xy,self.xyann = (x, y),self._away(ha, va)
        self.set(ha=ha, va=va)

    def draw(self, renderer):
        names = names_of(self.axes)
        names.texts = [t for t in names.texts if t.axes is self.axes]   # without those that were removed
        if self is names.texts[0]: names.arrange(renderer)   # drawn first: by now sizes are final
        if self.fits: super().draw(renderer)

class _Names:
    "The names on some axes, and the `points` of the image that they must not hide"
    def __init__(self): self.texts,self.points = [],[]

    def arrange(self, renderer):
        "Give each name the first of its places that is free"
        axes = self.texts[0].axes
        data,inside,r = axes.transData,axes.bbox.padded(2),renderer.points_to_pixels(2.)
        taken = [Bbox([[x-r, y-r], [x+r, y+r]]) for x,y in data.transform(np.reshape(self.points, (-1, 2)))]
        for t in self.texts:
            t.fits = False
            for place,box in zip(t.places, t.boxes(renderer, data)):
                within = all(inside.contains(*o) for o in (box.min, box.max))
                if not within or box.count_overlaps(taken): continue
                t.fits = True; t.move(place); taken.append(box)
                break

def names_of(ax):
    "The `_Names` of `ax`, kept on the axes themselves, so that both go together"
    if not hasattr(ax, 'image_names'): ax.image_names = _Names()
    return ax.image_names

def write_below(ax, lines, most=9, fontsize=8):
    "Coloured lines, (text, colour) each, under an image"
    if not lines: return
    if len(lines) > most: lines = lines[:most-1] + [(f'... and {len(lines)-most+1} more', 'grey')]
    texts = [TextArea(t, textprops=dict(color=c, fontsize=fontsize)) for t,c in lines]
    ax.add_artist(AnchoredOffsetbox('upper left', child=VPacker(children=texts, pad=0, sep=2, align='left'), pad=0,
                                    borderpad=.1, frameon=False, bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes))
