"""Letters of sequence logos, drawn as shapes of any height.

(letter, x, y, height) -> glyphs as paths, scaled -> matplotlib axes
"""

import numpy as np

# Colours that sequence logos have long had, darkened so that all four stand out on white.
LETTER_COLOURS = {"A": "#1B8A3A", "C": "#1F5FBF", "G": "#D98200", "T": "#C62828", "N": "#777777"}
WIDTH = 0.88


def add_letters(axes, letters):
    """Draw letters upright into axes, each WIDTH wide; those of no height or NaN are left out.

    letters  (letter, x of the left edge, y where it begins, height); a negative height hangs down from y
    """
    from matplotlib.collections import PathCollection
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    font, glyphs = FontProperties(family="DejaVu Sans", weight="bold"), {}
    paths, colours = [], []
    for letter, x, y, height in letters:
        if np.isnan(height) or height == 0:
            continue
        if letter not in glyphs:
            glyph = TextPath((0, 0), letter, size=1, prop=font)
            box = glyph.get_extents()
            glyphs[letter] = (glyph.vertices - [box.x0, box.y0]) / [box.width, box.height], glyph.codes
        vertices, codes = glyphs[letter]
        paths.append(Path(vertices * [WIDTH, abs(height)] + [x, y + min(height, 0.0)], codes))
        colours.append(LETTER_COLOURS[letter])
    axes.add_collection(PathCollection(paths, facecolors=colours, linewidths=0))
