"""Explanations of a similarity, and measures of their faithfulness."""

from miniclip.explanation.explain import Explanation, explain
from miniclip.explanation.faithfulness import faithfulness, pointing_game, sanity
from miniclip.explanation.overlay import heat_layer, plot_explanation
from miniclip.explanation.word_faithfulness import word_faithfulness

__all__ = [
    "Explanation",
    "explain",
    "faithfulness",
    "heat_layer",
    "plot_explanation",
    "pointing_game",
    "sanity",
    "word_faithfulness",
]
